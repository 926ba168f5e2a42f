"""Reads a whole store and finds every fault in it, file by file.

Files are compared with the digests in the facts, and the facts with those in the manifest. Then the
latents are read: they must be finite. Files that belong to no store are faults too.
"""

from collections.abc import Iterator
import csv
import dataclasses
import io

import numpy as np

from diversedit_jax import progress, types
from diversedit_jax.data.store import layout, places, remote, statistics, writer

_RECORDS = 256  # Records read at once.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """What was found in a store.

  root: folder of the store, or its URL.
  faults: (file, what is wrong with it) pairs; a file is given by its path in the store.
  examples, classes: number of examples, in all and of each label, by the facts of the shards.
  mean, std: mean and standard deviation of each channel of scaled latents, see `statistics`; empty
    without latents.
  """

  root: places.Root
  faults: tuple[tuple[str, str], ...]
  examples: int
  classes: tuple[int, ...]
  mean: tuple[float, ...]
  std: tuple[float, ...]

  def text(self) -> str:
    """The report for a console."""
    lines = [f'store     {self.root}', f'examples  {self.examples}']
    filled = [count for count in self.classes if count] or [0]
    lines.append(
      f'classes   {len(self.classes)}, {self.classes.count(0)} without examples, the others with '
      f'{min(filled)} to {max(filled)}'
    )
    for name, values in (('mean', self.mean), ('std', self.std)):
      if values:
        lines.append(f'{name:<10}{"  ".join(f"{v:.3f}" for v in values)}  of scaled latents')
    lines.append(f'faults    {len(self.faults) or "none"}')
    lines += [f'  {name}: {fault}' for name, fault in self.faults]
    if self.faults:
      lines.append('To repair: remove the files named and prepare again with the same arguments.')
    return '\n'.join(lines)


def verify(root: str | places.Root) -> Report:
  """Reads all of a store, finished or not, on a disk or in a bucket.

  Raises:
    UserError: there is no store, or neither plan.json nor the manifest has its plan.
  """
  root, faults = places.root(root), []
  plan = _read_plan(root, faults)
  manifest = _manifest(root, plan, faults)
  facts = {shard: _facts(root, plan, manifest, shard, faults) for shard in range(plan.shards)}
  facts = {shard: f for shard, f in facts.items() if f is not None}
  last = ''
  for shard, f in facts.items():
    for key in f.keys:
      if key <= last:
        name = _name(root, layout.facts_file(root, shard))
        faults.append((name, f'keys are not unique and in order: {key!r} after {last!r}'))
      last = max(last, key)
  labels = np.array([label for f in facts.values() for label in f.labels], np.int64)
  classes = np.bincount(labels[labels >= 0], minlength=len(plan.label_names))
  if manifest is not None and len(facts) == plan.shards:
    faults += _check_whole(root, manifest, list(facts.values()), labels, classes)
  sums = statistics.Statistics()
  for shard in _with_progress(facts):
    for name in plan.columns:
      path = layout.shard_file(root, name, shard)
      found = _column(root, path, plan, name, facts[shard], sums)
      faults += [(_name(root, path), fault) for fault in found]
  faults += [(name, 'belongs to no store') for name in _strangers(root, plan)]
  scaling = plan.vae if plan.latents == 'moments' else {}  # Latents are scaled already.
  mean, std = sums.scaled(scaling) if sums.count else ((), ())
  return Report(
    root=root,
    faults=tuple(faults),
    examples=len(labels),
    classes=tuple(classes.tolist()),
    mean=mean,
    std=std,
  )


def _read_plan(root, faults):
  """The plan; if plan.json is lost, the plan of the manifest and a fault."""
  if not (root / 'plan.json').is_file() and (root / 'manifest.json').is_file():
    faults.append(('plan.json', 'is missing; the manifest has the plan too'))
  try:
    return layout.read_plan(root)
  except types.UserError as error:
    plan = layout.read_manifest(root).plan  # Without a manifest this raises the same error.
    faults.append(('plan.json', str(error)))
    return plan


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
    fault = f'lists {len(manifest.shards)} shards, the plan has {plan.shards}'
    faults.append(('manifest.json', fault))
    return None
  return manifest


def _facts(root, plan, manifest, shard, faults):
  """The facts of a shard, or None; what is wrong with them is added to the faults."""
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
  # If plan.json and the manifest differ, that is the fault.
  plans = {'', plan.digest(), manifest.plan.digest() if manifest else ''}
  if facts.plan not in plans:
    faults.append((name, 'belongs to another plan'))
  keys, labels, skipped = len(facts.keys), len(facts.labels), len(facts.skipped)
  if not facts.count == keys == labels == listed - skipped:
    faults.append(
      (name, f'{facts.count} examples, {keys} keys, {labels} labels, {skipped} of {listed} skipped')
    )
  if not all(0 <= label < classes for label in facts.labels):
    faults.append((name, f'labels outside [0, {classes}), the number of classes'))
  return facts


def _check_whole(root, manifest, facts, labels, classes) -> Iterator[tuple[str, str]]:
  """Yields the faults of the manifest's sums, of labels.npy and of skipped.csv."""
  if manifest.counts != tuple(f.count for f in facts) or manifest.classes != tuple(classes):
    yield 'manifest.json', "numbers of examples are not those of the shards' facts"
  if manifest.content_sha256 != writer.content_digest(f.content_sha256 for f in facts):
    yield 'manifest.json', "its content is not that of the shards' facts"
  try:
    if layout.digest(root / 'labels.npy') != manifest.labels:
      yield 'labels.npy', 'its SHA-256 is not that in the manifest'
    stored = io.BytesIO((root / 'labels.npy').read_bytes())
    if not np.array_equal(np.load(stored, allow_pickle=False), labels):
      yield 'labels.npy', "labels are not those in the shards' facts"
  except (types.UserError, OSError, ValueError, EOFError) as error:
    yield 'labels.npy', f'cannot be read: {error}'
  try:
    text = (root / 'skipped.csv').read_bytes().decode('utf-8', 'surrogateescape')
    rows = [tuple(row) for row in csv.reader(io.StringIO(text, newline=''))][1:]
  except (OSError, csv.Error) as error:
    yield 'skipped.csv', f'cannot be read: {error}'
    return
  known = [row for f in facts for row in f.skipped]
  if len(rows) != manifest.skipped or rows[len(rows) - len(known) :] != known:
    yield 'skipped.csv', "pictures are not those of the manifest and the shards' facts"


def _column(root, path, plan, column, facts, sums) -> Iterator[str]:
  """Yields the faults of one file of records; adds the latents of a sound file to the sums."""
  known = facts.columns.get(column, {})
  if not path.is_file():
    yield 'is missing'
    return
  size, digest = places.measure(path, known.get('bytes', 0))
  if size != known.get('bytes'):
    yield f'has {size} bytes, its facts say {known.get("bytes")}'
    return
  if digest != known.get('sha256'):
    yield 'its SHA-256 is not that in its facts'
    return
  if column != plan.latents:
    return
  of, start = plan.columns[column], 0
  try:
    for latents in _batches(root, path, plan, facts):
      finite = np.isfinite(latents).all((1, 2, 3))
      if not finite.all():
        key = facts.keys[(start + int(np.argmin(finite))) // (1 + of.twins)]
        yield f'{column} of {key!r} are not finite'
        return
      sums.add(latents, drawn=column == 'moments')
      start += len(latents)
  except (RuntimeError, ValueError, types.UserError) as error:
    yield f'cannot be read: {error}'


def _batches(root, path, plan, facts) -> Iterator[np.ndarray]:
  """The latents of a shard, or their moments."""
  of = plan.columns[plan.latents]
  dtype = np.dtype(of.dtype).newbyteorder('<')
  if isinstance(root, places.Place):
    records, count = remote.Records(root, plan), facts.count * (1 + of.twins)
    for start in range(0, count, _RECORDS):
      rows = np.arange(start, min(start + _RECORDS, count))
      found = records.read(plan.latents, np.full(len(rows), facts.shard), rows)
      yield np.ascontiguousarray(found).view(dtype).reshape(-1, *of.shape)
    return
  # Imported where it is used, see `local`.
  from array_record.python import array_record_module

  reader = array_record_module.ArrayRecordReader(str(path), 'readahead_buffer_size:0')
  try:
    for start in range(0, reader.num_records(), _RECORDS):
      records = reader.read(start, min(start + _RECORDS, reader.num_records()))
      yield np.frombuffer(b''.join(records), dtype).reshape(-1, *of.shape)
  finally:
    reader.close()


def _strangers(root, plan):
  """Files that are not in a store of this plan."""
  known = set(layout.FILES)
  for shard in range(plan.shards):
    files = [layout.shard_file(root, column, shard) for column in plan.columns]
    known |= {_name(root, path) for path in (layout.facts_file(root, shard), *files)}
  return sorted(set(places.files(root)) - known)


def _with_progress(facts) -> Iterator[int]:
  """Yields the shards and logs a line every few seconds about how much has been read."""
  sizes = {shard: sum(c.get('bytes', 0) for c in f.columns.values()) for shard, f in facts.items()}
  reading, done = progress.Progress('checking', sum(sizes.values())), 0
  for shard, size in sizes.items():
    yield shard
    done += size
    reading.at(done)


def _name(root, path):
  return path.relative_to(root).as_posix()
