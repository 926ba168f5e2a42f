"""Opens collections of pictures by the specs that command lines and configs hold."""

from collections.abc import Sequence
import os
import tarfile
import zipfile

from absl import logging

from diversedit_jax import trees, types
from diversedit_jax.data.pictures import (
  archives,
  base,
  folders,
  labels,
  naming,
  tables,
  tars,
  tfds_pictures,
)

KINDS = ('folder', 'tar', 'zip', 'csv', 'tfds')
_OPEN = {
  'folder': folders.open_folder,
  'tar': archives.open_tar,
  'zip': archives.open_zip,
  'csv': tables.open_table,
}
_FORMS = ', '.join([*(f'{kind}:PATH' for kind in KINDS[:-1]), 'tfds:NAME[:SPLIT]'])


def open_pictures(
  spec: str | os.PathLike[str], *, classes: str | Sequence[str] | None = None, split: str = 'train'
) -> base.Pictures:
  """Opens the collection of a spec.

    folder:PATH          class folders, see `folders.open_folder`
    tar:PATH  zip:PATH   an archive of class folders or of pictures named by WordNet ids, or the tar
                         of tars of ILSVRC-2012; PATH may go on inside, as in cifar10.tar/train
    csv:PATH             a table with the columns path and label, see `tables.open_table`
    tfds:NAME[:SPLIT]    a prepared dataset of TFDS, see `tfds_pictures.open_tfds`
    PATH                 one of the first four, by what is there

  Args:
    spec: one of the forms above; '{split}' in it becomes `split`.
    classes: names of all classes in order, or a spec of `labels.read_classes` such as 'imagenet';
      None takes the names that are found, sorted.
    split: split of the data; another than 'train' needs '{split}' in the spec.

  Raises:
    UserError: the spec is unknown or malformed, or as the opener of its kind.
  """
  kind, rest = _parse(os.fspath(spec).replace('{split}', split))
  if isinstance(classes, str):
    classes = labels.read_classes(classes)
  logging.info('listing %s', spec)
  fixed = split != 'train' and '{split}' not in os.fspath(spec)
  if kind == 'tfds':
    name, named_split = tfds_pictures.parse(rest, split)
    if fixed and named_split != split:
      raise _one_split(spec, named_split, split)
    pictures = tfds_pictures.open_tfds(name, named_split, classes)
  elif fixed:
    raise _one_split(spec, 'train', split)
  else:
    pictures = _OPEN[kind](rest, classes)
  names = pictures.listing.label_names
  if classes is None and len(names) < 1000 and all(naming.is_wordnet(name) for name in names):
    logging.warning(
      '%s has %d classes named by WordNet ids: labels count these classes, not the 1,000 of '
      "ILSVRC-2012; set classes='imagenet' for those",
      pictures.name,
      len(names),
    )
  return pictures


def folder_of(spec: str | os.PathLike[str], split: str = 'train') -> str | None:
  """The folder whose files a spec lists; None for other kinds of collections.

  Raises:
    UserError: as `open_pictures`.
  """
  kind, rest = _parse(os.fspath(spec).replace('{split}', split))
  return rest if kind == 'folder' else None


def _parse(spec):
  kind, colon, rest = spec.partition(':')
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
    return 'folder'
  archive, _ = archives.split_path(path)
  try:
    with open(archive, 'rb') as file:
      start = file.read(8)
    if tars.compression(start) or tarfile.is_tarfile(archive):
      return 'tar'
    if zipfile.is_zipfile(archive):
      return 'zip'
  except OSError as error:
    raise types.UserError(f'{archive}: cannot be read: {error.strerror}') from error
  suffix = os.path.splitext(archive)[1].lower().removeprefix('.')
  if suffix in ('tar', 'zip', 'csv'):
    return suffix
  raise types.UserError(
    f'{path}: neither a folder nor a tar, zip or csv file; expected one of {_FORMS}, or a path'
  )


def _one_split(spec, found, split):
  return types.UserError(
    f'pictures {os.fspath(spec)!r} are the split {found!r} alone; to read the split {split!r} too, '
    "write '{split}' in place of the name"
  )
