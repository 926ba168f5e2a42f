"""The folder of a store: names of its files, and the three kinds of JSON in it.

  plan.json                           what is being made; a restart must ask for the same
  shards/moments-00003.array_record   a column of one shard; also latents-00003, pixels-00003
  shards/00003.json                   facts of a shard, written last: the shard is finished
  manifest.json, labels.npy           written after all shards: the store is finished

Records are raw little-endian arrays of one shape. A store with twins has two records for each
example, the picture and its mirror image, at 2 i and 2 i + 1 of the shard. The examples of a store
are those of its shards one after the other, in the order of their keys.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any, Literal

import numpy as np

from diversedit_jax import types
from diversedit_jax.data import files
from diversedit_jax.data.store import places

VERSION = 1
FILES = ('plan.json', 'manifest.json', 'labels.npy', 'skipped.csv')
"""Files of a whole store; all others are in its folder `shards`."""

COLUMNS = ('moments', 'latents', 'pixels')
Column = Literal['moments', 'latents', 'pixels']


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnFacts:
  """One column of a store.

  dtype: dtype of the records.
  shape: shape of one record.
  twins: whether each example has a second record, that of its mirror image.
  """

  dtype: str
  shape: tuple[int, ...]
  twins: bool = False

  @property
  def record_bytes(self) -> int:
    """Bytes of one record."""
    return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """What is being made: everything that decides the bytes of the store.

  source: name of the collection.
  source_digest: digest of its listing.
  examples: number of pictures listed.
  records_per_shard: pictures listed for a shard; skipped ones leave the shard smaller.
  columns: the columns by name.
  label_names: names of all classes.
  size, crop, orientation: side, crop and orientation of the pictures, see `pictures.crop` and
    `pictures.decode`.
  vae: None for a store of pixels alone; of an autoencoder {'file', 'encoder_sha256', 'scale',
    'shift', 'dtype', 'config'}, scale and shift being those of `data.latents.Scaling`, which are
    applied to latents but not to moments; of an encoder's latents what `frozen.rae.Latents.facts`
    says, 'file' and 'dtype'.
  """

  source: str
  source_digest: str
  examples: int
  records_per_shard: int
  columns: dict[str, ColumnFacts]
  label_names: tuple[str, ...]
  size: int
  crop: str
  orientation: str
  vae: dict[str, Any] | None
  version: int = VERSION

  @property
  def latents(self) -> Column | None:
    """The column of latents or of their moments; None without any."""
    return next((name for name in ('moments', 'latents') if name in self.columns), None)

  @property
  def shards(self) -> int:
    """Number of shards."""
    return -(-self.examples // self.records_per_shard)

  def entries(self, shard: int) -> range:
    """Positions of one shard's pictures in the listing."""
    first = shard * self.records_per_shard
    return range(first, min(first + self.records_per_shard, self.examples))

  def digest(self) -> str:
    """SHA-256 of the whole plan, the same after writing and reading it."""
    return _digest(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardFacts:
  """One finished shard.

  count: number of examples.
  keys, labels: key and label of each example.
  skipped: (name, reason) of each listed picture that is no example.
  columns: {column: {'bytes', 'sha256'}} of its files.
  content_sha256: digest over keys and encoded pictures.
  plan: digest of the plan; '' in old stores, whose facts do not have it.
  """

  shard: int
  count: int
  keys: tuple[str, ...]
  labels: tuple[int, ...]
  skipped: tuple[tuple[str, str], ...]
  columns: dict[str, dict[str, Any]]
  content_sha256: str
  plan: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
  """A finished store.

  plan: how it was made.
  count: number of examples.
  counts: number of examples in each shard.
  classes: number of examples of each label.
  shards: SHA-256 of each shard's facts.
  labels: SHA-256 of labels.npy.
  skipped: number of pictures and files left out, by the listing and by the shards.
  content_sha256: digest over those of the shards.
  versions: versions of the programs that made it, by name.
  """

  plan: Plan
  count: int
  counts: tuple[int, ...]
  classes: tuple[int, ...]
  shards: tuple[str, ...]
  labels: str
  skipped: int
  content_sha256: str
  versions: dict[str, str]

  def digest(self) -> str:
    """SHA-256 of the whole manifest, as of a plan."""
    return _digest(self)


def shard_file(root: places.Root, column: str, shard: int) -> places.Root:
  """The ArrayRecord file of a column of a shard."""
  return root / 'shards' / f'{column}-{shard:05d}.array_record'


def facts_file(root: places.Root, shard: int) -> places.Root:
  """The facts of a shard; the file exists when the shard is finished."""
  return root / 'shards' / f'{shard:05d}.json'


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a dataclass of this module, whole or not at all, always with the same bytes."""
  with files.atomic(path) as temporary:
    temporary.write_text(_text(value))


def read_plan(root: places.Root) -> Plan:
  """The plan of a store that may be unfinished, from plan.json or else from the manifest.

  Raises:
    UserError: there is no store, it has another version, or the file is damaged.
  """
  path = root / 'plan.json'
  if path.is_file():
    return _plan(path, _read(path))
  if (root / 'manifest.json').is_file():
    return read_manifest(root).plan
  raise types.UserError(f'{root} is no store: it has no plan.json')


def read_facts(root: places.Root, shard: int) -> ShardFacts:
  """The facts of a finished shard.

  Raises:
    UserError: the file is missing or damaged; it is named.
  """
  path = facts_file(root, shard)
  fields = _fields(path, ShardFacts, _read(path), optional={'plan'})
  for name in ('keys', 'labels'):
    fields[name] = tuple(fields[name])
  fields['skipped'] = tuple((name, reason) for name, reason in fields['skipped'])
  return ShardFacts(**fields)


def read_manifest(root: places.Root) -> Manifest:
  """The manifest of a finished store.

  Raises:
    UserError: there is no store, it is unfinished or of another version, or the file is damaged.
  """
  path = root / 'manifest.json'
  if not path.is_file():
    plan = read_plan(root)
    done = sum(facts_file(root, shard).is_file() for shard in range(plan.shards))
    raise types.UserError(
      f'the store {root} is unfinished: {done} of {plan.shards} shards are done; run '
      '`python -m diversedit_jax.prepare` again with the same arguments to finish it'
    )
  fields = _fields(path, Manifest, _read(path))
  fields['plan'] = _plan(path, fields['plan'])
  for name in ('counts', 'classes', 'shards'):
    fields[name] = tuple(fields[name])
  shards, count = fields['plan'].shards, fields['count']
  if len(fields['counts']) != shards or sum(fields['counts']) != count:
    raise types.UserError(
      f'{path}: found counts of {len(fields["counts"])} shards that add up to '
      f'{sum(fields["counts"])}, expected {shards} shards and {count}'
    )
  return Manifest(**fields)


def digest(path: places.Root) -> str:
  """SHA-256 of a file, of which a bucket gives all bytes at once.

  Raises:
    UserError: it cannot be read.
  """
  try:
    if isinstance(path, places.Place):
      return hashlib.sha256(path.read_bytes()).hexdigest()
    with open(path, 'rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise types.UserError(f'{path}: cannot be read: {error.strerror}') from error


def _read(path):
  try:
    return json.loads(path.read_bytes())
  except OSError as error:
    raise types.UserError(f'{path}: cannot be read: {error.strerror}') from error
  except ValueError as error:
    raise types.UserError(
      f'{path}: damaged, not JSON: {error}; remove it and prepare again with the same arguments'
    ) from error


def _digest(value):
  return hashlib.sha256(_text(value).encode('utf-8', 'surrogateescape')).hexdigest()


def _text(value):
  return json.dumps(dataclasses.asdict(value), indent=1, sort_keys=True) + '\n'


def _fields(path, cls, found, optional=frozenset()):
  expected = {field.name for field in dataclasses.fields(cls)}
  if not isinstance(found, dict) or set(found) | optional != expected:
    raise types.UserError(
      f'{path}: expected the entries {sorted(expected)}, found '
      f'{sorted(found) if isinstance(found, dict) else type(found).__name__}'
    )
  return dict(found)


def _plan(path, found):
  if isinstance(found, dict) and found.get('version') != VERSION:
    raise types.UserError(
      f'{path}: the store has version {found.get("version")}; this program reads version {VERSION}'
    )
  fields = _fields(path, Plan, found)
  try:
    fields['columns'] = {
      name: ColumnFacts(**{**column, 'shape': tuple(column['shape'])})
      for name, column in fields['columns'].items()
    }
  except (AttributeError, KeyError, TypeError) as error:
    raise types.UserError(f'{path}: its columns are damaged: {error}') from error
  fields['label_names'] = tuple(fields['label_names'])
  return Plan(**fields)
