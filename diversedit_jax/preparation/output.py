"""The folder of a store before anything is encoded: whose it is, whether it fits, what to clear."""

from collections.abc import Collection, Mapping
import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
from typing import Any

from diversedit_jax import types
from diversedit_jax.data.store import layout, writer

_OWN = re.compile(r'\.(?:store|worker-\d+-of-\d+)\.lock')


def check(root: pathlib.Path, plan: layout.Plan) -> None:
  """Refuses a folder that holds something else; writes nothing.

  A plan that is lost is known from the manifest or, by its digest, from the facts of the shards.

  Raises:
    UserError: a file, files that are no store, or a store of another plan (what differs is listed).
  """
  if root.exists() and not root.is_dir():
    raise types.UserError(f'--output={root} is a file, expected a folder')
  # Listed before the plan is looked for: another worker writes its plan before all else.
  names = sorted(path.name for path in root.iterdir()) if root.exists() else []
  stored = layout.find_plan(root) or _plan_of_manifest(root)
  if stored is not None:
    changed = list(_differences(dataclasses.asdict(stored), dataclasses.asdict(plan)))
    if changed:
      listed = '; '.join(f'{name}: stored {old}, asked for {new}' for name, old, new in changed)
      raise types.UserError(
        f'--output={root} is a store of another plan. {listed}. Choose another folder, or ask '
        'for what is stored'
      )
    return
  own = {*layout.FILES, 'shards'} if _check_facts(root, plan) else _empty(root)
  own |= {name for name in names if writer.is_leftover(name) or _OWN.fullmatch(name)}
  others = [name for name in names if name not in own]
  if others:
    raise types.UserError(
      f'--output={root} holds {others[0]!r}{" and more" * (len(others) > 1)} but no plan.json: no '
      'store; choose a new or empty folder'
    )


def check_place(root: pathlib.Path, source: str | None) -> None:
  """Refuses a store within the folder of its pictures, where it would be listed as some of them.

  Raises:
    UserError: with both; links are followed.
  """
  if source is None:
    return
  inner, outer = (pathlib.Path(os.path.realpath(path)) for path in (root, source))
  if inner.is_relative_to(outer):
    raise types.UserError(
      f'--output={root} lies in --source={source}, so its files would be listed with the pictures; '
      'choose a folder outside'
    )


def check_space(root: pathlib.Path, plan: layout.Plan, missing: Collection[int]) -> None:
  """Refuses a disk on which the missing shards have no room, what lies there of them included.

  Raises:
    UserError: with both numbers.
  """
  needed = sum(writer.shard_bytes(plan, shard) for shard in missing)
  folder = next(path for path in (root, *root.absolute().parents) if path.exists())
  free = shutil.disk_usage(folder).free + writer.held_bytes(root, plan, missing)
  if needed > free:
    raise types.UserError(
      f'--output={root} needs {needed / 1e9:.3f} GB for {len(missing)} of {plan.shards} shards, '
      f'but its disk has {free / 1e9:.3f} GB free'
    )


def begin(root: pathlib.Path, plan: layout.Plan, worker: int, workers: int) -> None:
  """Writes the plan if it is not there, and removes what a killed run of this worker left.

  To be called under the lock of the store.

  Raises:
    UserError: as `check`, since another process may have come first.
  """
  check(root, plan)
  for path, shard in list(writer.leftovers(root)):
    if shard is None or shard % workers == worker:
      path.unlink(missing_ok=True)
  if layout.find_plan(root) is None:
    with writer.writing(root / 'plan.json'):
      layout.write_json(root / 'plan.json', plan)


def _plan_of_manifest(root):
  try:
    return layout.read_manifest(root).plan if (root / 'manifest.json').is_file() else None
  except types.UserError:
    return None


def _check_facts(root, plan):
  """Whether there are finished shards; refuses those that do not say that they are of the plan."""
  found = {}
  for path in sorted(root.glob('shards/[0-9]*.json')):
    with contextlib.suppress(types.UserError, ValueError):  # Damaged: the shard is made anew.
      found[path.name] = layout.read_facts(root, int(path.stem)).plan
  others = [name for name, digest in found.items() if digest != plan.digest()]
  if others:
    raise types.UserError(
      f'--output={root} has no plan.json that can be read, and its shards/{others[0]} is not known '
      'to be of the plan that is asked for; ask for the same as before, or choose another folder'
    )
  return bool(found)


def _empty(root):
  """Names of files of a store that say nothing: an empty plan, and shards that have no facts."""
  names = set()
  with contextlib.suppress(OSError):
    if not (root / 'plan.json').read_bytes().strip(b'\0'):
      names.add('plan.json')
  if all(writer.is_leftover(path.name) for path in root.glob('shards/*')):
    names.add('shards')
  return names


def _differences(stored: Mapping[str, Any], given: Mapping[str, Any], prefix: str = ''):
  """(name, stored, given) of every entry that differs, in words; entries of entries by dots."""
  for name in sorted({*stored, *given}):
    old, new = stored.get(name, '(absent)'), given.get(name, '(absent)')
    if isinstance(old, Mapping) and isinstance(new, Mapping):
      yield from _differences(old, new, f'{prefix}{name}.')
    elif old != new:
      yield f'{prefix}{name}', *_in_words(old, new)


def _in_words(old, new):
  """Both values; of long lists the length and the first entry that differs."""
  if not all(isinstance(value, (list, tuple)) and len(value) > 8 for value in (old, new)):
    return repr(old), repr(new)
  place = next(
    (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))
  )
  return tuple(
    f'{len(value)} entries with {value[place]!r} at {place}'
    if place < len(value)
    else f'{len(value)} entries'
    for value in (old, new)
  )
