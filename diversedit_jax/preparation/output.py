"""Checks the folder of a store before anything is encoded, and clears what a killed run left."""

from collections.abc import Collection, Mapping
import dataclasses
import itertools
import os
import pathlib
import re
from typing import Any

from diversedit_jax import paths, types
from diversedit_jax.data import files
from diversedit_jax.data.store import layout, writer

_LOCK = re.compile(r'\.(?:store|worker-\d+-of-\d+)\.lock')


def check(root: pathlib.Path, plan: layout.Plan) -> None:
  """Refuses a folder that holds something else; writes nothing.

  A store whose plan.json is lost is accepted if its finished shards say that they are of the plan.

  Raises:
    UserError: a file, a folder that is no store, or a store of another plan (differences listed).
  """
  paths.utf8(root)
  if root.exists() and not root.is_dir():
    raise types.UserError(f'--output={root} is a file, expected a folder')
  # Listed before the plan is looked for: another worker writes its plan before all else.
  names = sorted(path.name for path in root.iterdir()) if root.exists() else []
  if any((root / name).is_file() for name in ('plan.json', 'manifest.json')):
    stored = layout.read_plan(root)
    changed = list(_differences(dataclasses.asdict(stored), dataclasses.asdict(plan)))
    if changed:
      listed = '; '.join(f'{name}: stored {old}, asked for {new}' for name, old, new in changed)
      raise types.UserError(
        f'--output={root} is a store of another plan. {listed}. Choose another folder, or ask '
        f'for what is stored{_other_order(stored.label_names, plan.label_names)}'
      )
    return
  own = {*layout.FILES, 'shards'} if _has_shards_of(root, plan) else set()
  others = [n for n in names if not (n in own or writer.is_leftover(n) or _LOCK.fullmatch(n))]
  if others:
    raise types.UserError(
      f'--output={root} holds {others[0]!r}{" and more" * (len(others) > 1)} but no plan.json, and '
      'no finished shards of the plan asked for; choose a new or empty folder'
    )


def check_place(root: pathlib.Path, source: str | None) -> None:
  """Refuses a store within the folder of its pictures, where its files would be listed with them.

  Raises:
    UserError: naming both folders; links are followed.
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
  """Refuses a disk without room for the missing shards.

  Raises:
    UserError: with the space needed and the space free.
  """
  needed = sum(writer.shard_bytes(plan, shard) for shard in missing)
  free = files.free_space(root)
  # Leftovers of a killed run are removed before the shards are made.
  free += sum(path.stat().st_size for path, shard in writer.leftovers(root) if shard in missing)
  if needed > free:
    raise types.UserError(
      f'--output={root} needs {needed / 1e9:.3f} GB for {len(missing)} of {plan.shards} shards, '
      f'but its disk has {free / 1e9:.3f} GB free'
    )


def begin(root: pathlib.Path, plan: layout.Plan, worker: int, workers: int) -> None:
  """Writes the plan if there is none, and removes what a killed run of this worker left.

  Call it under the lock of the store.

  Raises:
    UserError: as `check`, because another process may have been first.
  """
  check(root, plan)
  for path, shard in list(writer.leftovers(root)):
    if shard is None or shard % workers == worker:
      path.unlink(missing_ok=True)
  if not (root / 'plan.json').is_file():
    with writer.writing(root / 'plan.json'):
      layout.write_json(root / 'plan.json', plan)


def _has_shards_of(root, plan):
  """Whether a folder has finished shards, all of them of the plan."""
  shards = [int(path.stem) for path in root.glob('shards/[0-9]*.json')]
  return bool(shards) and all(layout.read_facts(root, s).plan == plan.digest() for s in shards)


def _differences(stored: Mapping[str, Any], given: Mapping[str, Any], prefix: str = ''):
  """Yields (name, stored, given) of every entry that differs; names of nested entries have dots."""
  for name in sorted({*stored, *given}):
    old, new = stored.get(name, '(absent)'), given.get(name, '(absent)')
    if isinstance(old, Mapping) and isinstance(new, Mapping):
      yield from _differences(old, new, f'{prefix}{name}.')
    elif old != new:
      yield f'{prefix}{name}', *_in_words(old, new)


def _other_order(stored, given):
  """The way on for a store that was begun with its classes in another order."""
  if stored == given or sorted(stored) != sorted(given):
    return ''
  way = 'alphabetical' if list(stored) == sorted(stored) else 'FILE with the stored order'
  return f'; the classes are the same in another order, which --classes={way} gives'


def _in_words(old, new):
  """Both values; for long lists only the first entries that differ."""
  if not all(isinstance(value, (list, tuple)) and len(value) > 8 for value in (old, new)):
    return repr(old), repr(new)
  pairs = itertools.zip_longest(old, new, fillvalue='(no entry)')
  place, a, b = next((i, a, b) for i, (a, b) in enumerate(pairs) if a != b)
  return f'{len(old)} entries with {a!r} at {place}', f'{len(new)} entries with {b!r} at {place}'
