"""Opens collections of pictures by the specs that command lines and configs hold."""

from collections.abc import Sequence
import copy
import dataclasses
import os
import tarfile
import zipfile

from absl import logging
import numpy as np

from diversedit_jax import trees, types
from diversedit_jax.data.pictures import (
  archives,
  base,
  folders,
  parquet,
  remarks,
  rows,
  several,
  system,
  tables,
  tars,
  tfds_pictures,
)
from diversedit_jax.data.pictures import (
  labels as labels_lib,
)

KINDS = ('folder', 'tar', 'zip', 'csv', 'parquet', 'tfds')
ALPHABETICAL = 'alphabetical'
_OPEN = {
  'folder': folders.open_folder,
  'tar': archives.open_tar,
  'zip': archives.open_zip,
  'csv': tables.open_table,
  'parquet': parquet.open_parquet,
}
_UNPACK = {
  b'7z\xbc\xaf': '; unpack it with `7z x FILE` and give the folder',
  b'Rar!': '; unpack it with `unrar x FILE` and give the folder',
}
_FORMS = ', '.join([*(f'{kind}:PATH' for kind in KINDS[:-1]), 'tfds:NAME[:SPLIT]'])


def open_pictures(
  spec: str | os.PathLike[str],
  *,
  classes: str | Sequence[str] | None = None,
  labels: str | None = None,
  split: str = 'train',
) -> base.Pictures:
  """Opens the collection of a spec.

    folder:PATH          a folder, with classes by the rule of `naming`
    tar:PATH  zip:PATH   the same in an archive, or the tar of tars of ILSVRC-2012; PATH may go on
                         inside, as in cifar10.tar/train, or name several tars, see `several.files`
    csv:PATH             a table with columns of paths and labels, see `tables.open_table`
    parquet:PATH         Parquet files of Hugging Face, see `parquet.open_parquet`
    tfds:NAME[:SPLIT]    a prepared dataset of TFDS, see `tfds_pictures.open_tfds`
    PATH                 one of the first five, by what is there

  Args:
    spec: one of the forms above; '{split}' in it becomes `split`.
    classes: names of all classes in order, or a spec of `labels.read_classes` such as 'imagenet';
      None takes the names that are found, in their `base.class_order`; 'alphabetical' sorts them by
      their letters even if they are numbers, as versions before 0.3 did.
    labels: who says the class of a picture, see `labelling`; the name of a column for tables and
      Parquet; 'none': all pictures are of one class. None leaves it to the collection. '{split}' in
      it becomes `split`.
    split: split of the data; another than 'train' needs '{split}' in the spec.

  Raises:
    UserError: the spec is unknown or malformed, or as the opener of its kind.
  """
  kind, rest = _parse(os.fspath(spec).replace('{split}', split))
  alphabetical = classes == ALPHABETICAL
  if isinstance(classes, str):
    classes = None if alphabetical else labels_lib.read_classes(classes)
  labels = labels and labels.replace('{split}', split)
  if labels == 'none' and classes is not None:
    raise types.UserError(
      '--labels=none makes all pictures one class, so --classes has nothing to name; leave out one '
      'of them (in a config: data.labels, data.classes)'
    )
  logging.info('listing %s', spec)
  fixed = split != 'train' and '{split}' not in os.fspath(spec)
  if kind == 'tfds':
    name, named_split = tfds_pictures.parse(rest, split)
    if fixed and named_split != split:
      raise _one_split(spec, named_split, split)
    pictures = tfds_pictures.open_tfds(name, named_split, classes, labels)
  elif fixed:
    raise _one_split(spec, 'train', split)
  else:
    pictures = _OPEN[kind](rest, classes, labels)
  if alphabetical:
    pictures = _sorted(pictures)
  listing = pictures.listing
  if classes is None:
    for remark in remarks.of_labels(listing.labels, listing.label_names):
      logging.warning('%s: %s', pictures.name, remark)
  if bad := [s for s in listing.skipped if s.bad]:
    logging.warning(
      '%s: %d pictures or folders are left out, first %r: %s',
      pictures.name,
      len(bad),
      bad[0].name,
      bad[0].reason,
    )
  return pictures


def _sorted(pictures):
  """The same pictures, classes that they name in the order of their letters."""
  if not pictures.listing.named:
    return pictures
  listing, names = pictures.listing, sorted(pictures.listing.label_names)
  place = {name: k for k, name in enumerate(names)}
  moved = np.array([place[name] for name in listing.label_names], np.int32)
  other = copy.copy(pictures)
  other.listing = dataclasses.replace(
    listing, labels=moved[listing.labels], label_names=tuple(names)
  )
  return other


def with_kind(spec: str) -> str:
  """A spec as 'KIND:PATH', by what is there if it is a bare path.

  Raises:
    UserError: as `open_pictures`.
  """
  return ':'.join(_parse(spec))


def folder_of(spec: str | os.PathLike[str], split: str = 'train') -> str | None:
  """The folder whose files a spec lists; None for other kinds of collections.

  Raises:
    UserError: as `open_pictures`.
  """
  kind, rest = _parse(os.fspath(spec).replace('{split}', split))
  return rest if kind == 'folder' else None


def _parse(spec):
  kind, colon, rest = spec.partition(':')
  if '://' in spec:
    raise types.UserError(
      f'pictures {spec!r} lie behind a URL, expected a path: copy them to a disk (`gcloud storage '
      'cp -r`, `aws s3 cp --recursive`) or mount the bucket; a store that prepare made of them is '
      'read from a bucket, --config.data.source=store:gs://BUCKET/FOLDER'
    )
  if colon and kind in KINDS:
    if not rest:
      raise types.UserError(f'pictures {spec!r} are malformed; expected one of {_FORMS}')
    return kind, rest
  if colon and '/' not in kind and not os.path.lexists(spec):
    raise types.UserError(f'unknown kind of pictures {spec!r}{trees.did_you_mean(kind, KINDS)}')
  if not spec:
    raise types.UserError(f'pictures have no name; expected one of {_FORMS}, or a path')
  return _kind(spec), spec


def _kind(path):
  """The kind of what is at a path, by its content, or by its name if the content is damaged."""
  if os.path.isdir(path):
    return _kind_of_folder(path)
  if (found := several.files(path, '')) is not None:
    path = found[0]
  archive, _ = archives.split_path(path)
  try:
    with open(archive, 'rb') as file:
      start = file.read(8)
    if tars.compression(start) or tarfile.is_tarfile(archive):
      return 'tar'
    if zipfile.is_zipfile(archive):
      return 'zip'
    if start.startswith(b'PAR1'):
      return 'parquet'
  except OSError as error:
    raise types.UserError(f'{archive}: cannot be read: {error.strerror}') from error
  if rows.is_table(archive):
    return 'csv'
  suffix = os.path.splitext(archive)[1].lower().removeprefix('.')
  if suffix in ('tar', 'zip', 'parquet'):
    return suffix
  way = next((how for magic, how in _UNPACK.items() if start.startswith(magic)), '')
  if suffix == 'txt':
    way = '; a list of names and labels goes with its pictures, as --source=DIR --labels=FILE'
  raise types.UserError(
    f'{path}: neither a folder nor a tar, zip, csv or parquet file; expected one of {_FORMS}, or a '
    f'path{way}'
  )


def _kind_of_folder(path):
  """'parquet' or 'tar' for a folder of nothing but such files and what lies beside them."""
  try:
    entries = [e for e in os.scandir(path) if not system.foreign(e.name)]
    names = [entry.name.lower() for entry in entries if entry.is_file()]
    inner = [entry.name for entry in entries if entry.is_dir()]
    if inner == ['data'] and not any(name.endswith('.tar') for name in names):
      names += [name.lower() for name in os.listdir(os.path.join(path, 'data'))]
      inner = []
  except OSError:
    return 'folder'  # Which says why.
  for suffix in ('tar', 'parquet'):
    if not inner and any(name.endswith(f'.{suffix}') for name in names):
      return suffix
  return 'folder'


def _one_split(spec, found, split):
  return types.UserError(
    f'pictures {os.fspath(spec)!r} are the split {found!r} alone; to read the split {split!r} too, '
    "write '{split}' in place of the name"
  )
