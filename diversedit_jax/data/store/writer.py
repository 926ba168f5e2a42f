"""Writes a store shard by shard; the shards that a killed run has finished are kept.

The bytes of a store depend on its plan and examples alone: there are no times and no names of
machines in it. The columns of a shard are written under temporary names and renamed when they are
whole; then its facts are written. So a shard with facts is finished. See `layout` for the files.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import csv
import dataclasses
import hashlib
import pathlib
import re

from absl import logging
import numpy as np

from diversedit_jax import types
from diversedit_jax.data import files
from diversedit_jax.data.pictures import base
from diversedit_jax.data.store import layout

# Each record is a chunk of its own, so that it is read without its neighbours.
RECORD_OPTIONS = 'group_size:1,uncompressed'
# ArrayRecord's header and index of each record, its block headers, and its padding to blocks.
_RECORD_EXTRA, _BLOCK_EXTRA, _FILE_EXTRA = 72, 1.0005, 3 * 65536
_LEFTOVER = re.compile(
  rf'\.(?:plan|labels|manifest|skipped|(?:(?:{"|".join(layout.COLUMNS)})-)?(\d{{5,}}))'
  r'\.[0-9a-f]{12}\.\w+'
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Example:
  """What a store keeps of one picture.

  key: key of the picture in the listing.
  label: its label.
  sha256: digest of the encoded picture.
  columns: its records by column, [1, *shape] or with twins [2, *shape].
  """

  key: str
  label: int
  sha256: str
  columns: Mapping[str, np.ndarray]


def write_shard(
  root: pathlib.Path,
  plan: layout.Plan,
  shard: int,
  results: Iterable[Example | base.Skipped],
) -> layout.ShardFacts:
  """Writes one shard, whole or not at all, as the results come in.

  Args:
    root: folder of the store.
    plan: plan of the store.
    shard: number of the shard.
    results: what became of the shard's pictures, in the order of their keys.

  Raises:
    UserError: the files cannot be written, for example because the disk is full.
    ValueError: a record differs from the plan in dtype or shape.
  """
  keys, labels, skipped, content = [], [], [], hashlib.sha256()
  with contextlib.ExitStack() as columns:
    writers = {
      name: columns.enter_context(_column(layout.shard_file(root, name, shard)))
      for name in plan.columns
    }
    for result in results:
      if isinstance(result, base.Skipped):
        skipped.append((result.name, result.reason))
        continue
      for name, write in writers.items():
        write(_records(plan.columns[name], result, name))
      keys.append(result.key)
      labels.append(int(result.label))
      content.update(f'{result.key}\0{result.sha256}\n'.encode('utf-8', 'surrogateescape'))
  facts = layout.ShardFacts(
    shard=shard,
    count=len(keys),
    keys=tuple(keys),
    labels=tuple(labels),
    skipped=tuple(skipped),
    content_sha256=content.hexdigest(),
    plan=plan.digest(),
    columns={name: _file_facts(layout.shard_file(root, name, shard)) for name in plan.columns},
  )
  path = layout.facts_file(root, shard)
  with writing(path):
    layout.write_json(path, facts)
  return facts


def finished(root: pathlib.Path, plan: layout.Plan, shard: int) -> layout.ShardFacts | None:
  """Facts of a shard whose files exist with the right sizes; None if the shard must be made.

  Logs why a shard must be made again. The records are not read, see `verify`.
  """
  if not layout.facts_file(root, shard).is_file():
    return None
  try:
    facts = layout.read_facts(root, shard)
  except types.UserError as error:
    logging.warning('shard %d is made again: %s', shard, error)
    return None
  if facts.plan not in ('', plan.digest()):
    logging.warning('shard %d is made again: it belongs to another plan', shard)
    return None
  for name in plan.columns:
    path, expected = layout.shard_file(root, name, shard), facts.columns.get(name, {}).get('bytes')
    found = path.stat().st_size if path.is_file() else None
    if found != expected:
      logging.warning(
        'shard %d is made again: %s has %s bytes, its facts say %s',
        shard,
        path,
        'no' if found is None else found,
        expected,
      )
      return None
  return facts


def reopen(root: pathlib.Path, shard: int) -> None:
  """Removes a shard, and the manifest with it, before the shard is made again.

  The facts go before the columns, so that no facts describe files that are gone.
  """
  columns = (layout.shard_file(root, column, shard) for column in layout.COLUMNS)
  for path in (root / 'manifest.json', layout.facts_file(root, shard), *columns):
    path.unlink(missing_ok=True)


def finish(
  root: pathlib.Path,
  plan: layout.Plan,
  skipped: Sequence[base.Skipped],
  versions: Mapping[str, str],
) -> layout.Manifest:
  """Writes labels.npy, skipped.csv and the manifest of a store whose shards are all finished.

  Args:
    root: folder of the store.
    plan: plan of the store.
    skipped: what the listing left out.
    versions: versions of the programs that made it, by name.

  Raises:
    UserError: no picture became an example, or a file cannot be written.
  """
  facts = [layout.read_facts(root, shard) for shard in range(plan.shards)]
  rows = [(s.name, s.reason) for s in skipped] + [row for f in facts for row in f.skipped]
  labels = np.array([label for f in facts for label in f.labels], '<i4')
  if not len(labels):
    shown = '; '.join(f'{name!r}: {reason}' for name, reason in rows[:3])
    raise types.UserError(
      f'none of the {plan.examples} pictures of {plan.source} can be used, so {root} stays '
      f'unfinished; the first reasons: {shown}'
    )
  with writing(root / 'labels.npy'), files.atomic(root / 'labels.npy') as temporary:
    np.save(temporary, labels)
  with (
    writing(root / 'skipped.csv'),
    files.atomic(root / 'skipped.csv') as temporary,
    open(temporary, 'w', encoding='utf-8', errors='surrogateescape', newline='') as file,
  ):
    csv.writer(file, lineterminator='\n').writerows([('name', 'reason'), *rows])
  manifest = layout.Manifest(
    plan=plan,
    count=len(labels),
    counts=tuple(f.count for f in facts),
    classes=tuple(np.bincount(labels, minlength=len(plan.label_names)).tolist()),
    shards=tuple(layout.digest(layout.facts_file(root, f.shard)) for f in facts),
    labels=layout.digest(root / 'labels.npy'),
    skipped=len(rows),
    content_sha256=content_digest(f.content_sha256 for f in facts),
    versions=dict(versions),
  )
  with writing(root / 'manifest.json'):
    layout.write_json(root / 'manifest.json', manifest)
  return manifest


def content_digest(shards: Iterable[str]) -> str:
  """Digest of the content of a store, from those of its shards in order."""
  return hashlib.sha256('\n'.join(shards).encode()).hexdigest()


def shard_bytes(plan: layout.Plan, shard: int) -> int:
  """Upper bound of the bytes of a shard's files; large shards need 1 % more than their arrays."""
  count, total = len(plan.entries(shard)), 0
  for column in plan.columns.values():
    records = count * (1 + column.twins)
    total += records * (column.record_bytes + _RECORD_EXTRA) * _BLOCK_EXTRA + _FILE_EXTRA
  return int(total) + 128 * count  # The facts, mostly keys.


def leftovers(root: pathlib.Path) -> Iterator[tuple[pathlib.Path, int | None]]:
  """Temporary files of a killed run, each with its shard; None for a file of the whole store."""
  for folder in (root, root / 'shards'):
    for path in sorted(folder.glob('.*')):
      if match := _LEFTOVER.fullmatch(path.name):
        yield path, None if match[1] is None else int(match[1])


def is_leftover(name: str) -> bool:
  """Whether a file of this name is one of `leftovers`."""
  return _LEFTOVER.fullmatch(name) is not None


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
  """Names the file if it cannot be written, for example because the disk is full.

  Raises:
    UserError: instead of the errors of the operating system and of ArrayRecord.
  """
  try:
    yield
  except (OSError, RuntimeError) as error:  # ArrayRecord raises the latter.
    raise types.UserError(
      f'{path} cannot be written: {error}; fix this and run the same command again: finished '
      'shards are kept'
    ) from error


@contextlib.contextmanager
def _column(path):
  """Yields a function that appends records to a new ArrayRecord file.

  The file has its own name only after the block has ended well.
  """
  # Imported where it is used, see `reader`.
  from array_record.python import array_record_module

  with contextlib.ExitStack() as stack:
    with writing(path):
      temporary = stack.enter_context(files.atomic(path))
      writer = array_record_module.ArrayRecordWriter(str(temporary), RECORD_OPTIONS)

    def write(records):
      with writing(path):
        for record in records:
          writer.write(record)

    try:
      yield write
    finally:
      with writing(path):
        writer.close()
    with writing(path):
      stack.close()  # Syncs and renames the file.


def _records(facts, example, name):
  array = example.columns[name]
  expected = (2 if facts.twins else 1, *facts.shape)
  if array.shape != expected or array.dtype != np.dtype(facts.dtype):
    raise ValueError(
      f'{name} of {example.key!r} is {array.dtype} {array.shape}, expected {facts.dtype} {expected}'
    )
  little_endian = array.astype(array.dtype.newbyteorder('<'), copy=False)
  return [record.tobytes() for record in little_endian]


def _file_facts(path):
  return {'bytes': path.stat().st_size, 'sha256': layout.digest(path)}
