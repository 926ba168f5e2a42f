"""Reads a whole store and finds every fault of it, file by file.

Bytes are compared with the digests in the facts, facts with those in the manifest; then the records
are read: their number, their length, finite values. What belongs to no store is a fault too.
"""

from collections.abc import Iterator
import csv
import dataclasses
import pathlib

import numpy as np

from diversedit_jax import progress, types
from diversedit_jax.data.store import layout, statistics, writer

_RECORDS = 256  # Read at once.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """What was found.

  faults: (file, what is wrong with it), the file by its path in the store.
  examples, classes: as the shards' facts have them, in all and of each label.
  mean, std: of each channel of scaled latents, see `statistics`; empty without latents.
  """

  root: pathlib.Path
  faults: tuple[tuple[str, str], ...]
  examples: int
  classes: tuple[int, ...]
  mean: tuple[float, ...]
  std: tuple[float, ...]

  def text(self) -> str:
    """For a console."""
    lines = [f'store     {self.root}', f'examples  {self.examples}']
    filled = [count for count in self.classes if count] or [0]
    lines.append(
      f'classes   {len(self.classes)}, {self.classes.count(0)} without examples, the others of '
      f'{min(filled)} to {max(filled)}'
    )
    for name, values in (('mean', self.mean), ('std', self.std)):
      if values:
        lines.append(f'{name:<10}{"  ".join(f"{v:.3f}" for v in values)}  of scaled latents')
    lines.append(f'faults    {len(self.faults) or "none"}')
    lines += [f'  {name}: {fault}' for name, fault in self.faults]
    if self.faults:
      lines.append('To mend: remove the files named and prepare again with the same arguments.')
    return '\n'.join(lines)


def verify(root: str | pathlib.Path) -> Report:
  """Reads all of a store, finished or not.

  Raises:
    UserError: no store there, or neither plan.json nor the manifest tells its plan.
  """
  root, faults = pathlib.Path(root), []
  plan = _read_plan(root, faults)
  manifest = _manifest(root, plan, faults)
  facts = {shard: _facts(root, plan, manifest, shard, faults) for shard in range(plan.shards)}
  facts = {shard: f for shard, f in facts.items() if f is not None}
  _check_keys(root, facts, faults)
  labels = np.array([label for f in facts.values() for label in f.labels], np.int64)
  classes = np.bincount(labels[labels >= 0], minlength=len(plan.label_names))
  if manifest is not None and len(facts) == plan.shards:
    faults += _check_whole(root, manifest, list(facts.values()), labels, classes)
  sums = statistics.Statistics()
  for shard in _with_progress(facts):
    for name in plan.columns:
      path = layout.shard_file(root, name, shard)
      faults += [(_name(root, path), f) for f in _column(path, plan, name, facts[shard], sums)]
  faults += [(name, 'belongs to no store') for name in _strangers(root, plan)]
  mean, std = sums.scaled(plan.vae) if sums.count else ((), ())
  return Report(
    root=root,
    faults=tuple(faults),
    examples=len(labels),
    classes=tuple(classes.tolist()),
    mean=mean,
    std=std,
  )


def _read_plan(root, faults):
  """The plan; if it is lost the one in the manifest, and a fault."""
  plan = layout.find_plan(root)
  if plan is None and (root / 'manifest.json').is_file():
    plan = layout.read_manifest(root).plan
    known = 'no JSON' if (root / 'plan.json').exists() else 'missing'
    faults.append(('plan.json', f'is {known}; the manifest has the plan too'))
  return plan or layout.read_plan(root)  # Which says what is wrong.


def _manifest(root, plan, faults):
  if not (root / 'manifest.json').is_file():
    faults.append(('manifest.json', 'is missing: the store is unfinished'))
    return None
  try:
    manifest = layout.read_manifest(root)
  except types.UserError as error:
    faults.append(('manifest.json', str(error)))
    return None
  if manifest.plan != plan:
    faults.append(('manifest.json', 'its plan is not that of plan.json'))
  if not len(manifest.counts) == len(manifest.shards) == plan.shards:
    faults.append(('manifest.json', f'does not speak of {plan.shards} shards, as the plan does'))
    return None
  return manifest


def _facts(root, plan, manifest, shard, faults):
  """Facts of a shard, or None; what is wrong with them is added to the faults."""
  path = layout.facts_file(root, shard)
  name = _name(root, path)
  if not path.is_file():
    faults.append((name, f'is missing: shard {shard} is not finished'))
    return None
  if manifest is not None and layout.digest(path) != manifest.shards[shard]:
    faults.append((name, 'its SHA-256 is not that in the manifest'))
  try:
    facts = layout.read_facts(root, shard)
  except types.UserError as error:
    faults.append((name, str(error)))
    return None
  listed, classes = len(plan.entries(shard)), len(plan.label_names)
  # Where plan.json and the manifest differ, that is the fault.
  plans = {'', plan.digest(), manifest.plan.digest() if manifest else ''}
  for wrong, fault in (
    (facts.shard != shard, f'is of shard {facts.shard}'),
    (facts.plan not in plans, 'is of another plan'),
    (
      not facts.count == len(facts.keys) == len(facts.labels),
      f'{facts.count} examples, but {len(facts.keys)} keys and {len(facts.labels)} labels',
    ),
    (
      facts.count + len(facts.skipped) != listed,
      f'{facts.count} examples and {len(facts.skipped)} skipped are not the {listed} planned',
    ),
    (
      not all(0 <= label < classes for label in facts.labels),
      f'labels outside of [0, {classes}), the number of classes',
    ),
    (set(facts.columns) != set(plan.columns), f'has the columns {sorted(facts.columns)}'),
    (
      manifest is not None and manifest.counts[shard] != facts.count,
      f'{facts.count} examples are not those that the manifest has',
    ),
  ):
    if wrong:
      faults.append((name, fault))
  return facts


def _check_keys(root, facts, faults):
  """Keys are unique and in order over all shards."""
  seen, last = {}, ''
  for shard, f in facts.items():
    for key in f.keys:
      name = _name(root, layout.facts_file(root, shard))
      if key in seen:
        faults.append((name, f'the key {key!r} is there twice, first in shard {seen[key]}'))
      elif key < last:
        faults.append((name, f'keys are not in order: {key!r} after {last!r}'))
      seen[key], last = shard, max(last, key)


def _check_whole(root, manifest, facts, labels, classes) -> Iterator[tuple[str, str]]:
  """Faults of the manifest's sums, of labels.npy and of skipped.csv."""
  if manifest.count != len(labels) or list(manifest.classes) != classes.tolist():
    yield 'manifest.json', "numbers of examples are not those of the shards' facts"
  if manifest.content_sha256 != writer.content_digest(f.content_sha256 for f in facts):
    yield 'manifest.json', "its content is not that of the shards' facts"
  try:
    if layout.digest(root / 'labels.npy') != manifest.labels:
      yield 'labels.npy', 'its SHA-256 is not that in the manifest'
    if not np.array_equal(np.load(root / 'labels.npy', allow_pickle=False), labels):
      yield 'labels.npy', "labels are not those in the shards' facts"
  except (types.UserError, OSError, ValueError, EOFError) as error:
    yield 'labels.npy', f'cannot be read: {error}'
  try:
    with open(root / 'skipped.csv', encoding='utf-8', errors='surrogateescape', newline='') as file:
      rows = [tuple(row) for row in csv.reader(file)][1:]
  except (OSError, csv.Error) as error:
    yield 'skipped.csv', f'cannot be read: {error}'
    return
  known = [row for f in facts for row in f.skipped]
  if len(rows) != manifest.skipped or rows[len(rows) - len(known) :] != known:
    yield 'skipped.csv', "pictures are not those of the manifest and the shards' facts"


def _column(path, plan, column, facts, sums) -> Iterator[str]:
  """Faults of one file of records; moments of a sound one go into the sums."""
  known = facts.columns.get(column, {})
  if not path.is_file():
    yield 'is missing'
    return
  if path.stat().st_size != known.get('bytes'):
    yield f'has {path.stat().st_size} bytes, its facts say {known.get("bytes")}'
    return
  if layout.digest(path) != known.get('sha256'):
    yield 'its SHA-256 is not that in its facts'
    return
  # Imported where it is used, see `reader`.
  from array_record.python import array_record_module

  of = plan.columns[column]
  reader = array_record_module.ArrayRecordReader(str(path), 'readahead_buffer_size:0')
  try:
    found, expected = reader.num_records(), facts.count * (1 + of.twins)
    if found != expected:
      yield f'has {found} records, expected {expected}'
      return
    dtype = np.dtype(of.dtype).newbyteorder('<')
    for start in range(0, found, _RECORDS):
      records = reader.read(start, min(start + _RECORDS, found))
      lengths = {len(record) for record in records}
      if lengths != {of.record_bytes}:
        yield f'has records of {sorted(lengths)} bytes, expected {of.record_bytes}'
        return
      if column == 'moments':
        moments = np.frombuffer(b''.join(records), dtype).reshape(-1, *of.shape)
        finite = np.isfinite(moments).all((1, 2, 3))
        if not finite.all():
          key = facts.keys[(start + int(np.argmin(finite))) // (1 + of.twins)]
          yield f'moments of {key!r} are not finite'
          return
        sums.add(moments)
  except (RuntimeError, IndexError) as error:
    yield f'cannot be read: {error}'
  finally:
    reader.close()


def _strangers(root, plan):
  """Files that no store of this plan has."""
  known = {root / name for name in layout.FILES}
  for shard in range(plan.shards):
    known.add(layout.facts_file(root, shard))
    known |= {layout.shard_file(root, column, shard) for column in plan.columns}
  return [
    _name(root, path) for path in sorted(root.rglob('*')) if path.is_file() and path not in known
  ]


def _with_progress(facts) -> Iterator[int]:
  """The shards; a line every few seconds tells how far they are read."""
  sizes = {shard: sum(c.get('bytes', 0) for c in f.columns.values()) for shard, f in facts.items()}
  reading, done = progress.Progress('checking', sum(sizes.values())), 0
  for shard, size in sizes.items():
    yield shard
    done += size
    reading.at(done)


def _name(root, path):
  return path.relative_to(root).as_posix()
