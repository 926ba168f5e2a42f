"""Sources by name, as a config writes them."""

from collections.abc import Sequence

from diversedit_jax import trees
from diversedit_jax.data import pictures as pictures_lib
from diversedit_jax.data.sources import base, memory, pictures, store, synthetic
from diversedit_jax.types import UserError

KINDS = ('digits', 'arrays', 'store', *pictures_lib.KINDS, 'synthetic')


def open_source(
  spec: str,
  split: str = 'train',
  num_classes: int | None = None,
  *,
  classes: str | Sequence[str] | None = None,
  size: int | None = None,
  crop: str | None = None,
  orientation: str | None = None,
  pixels: bool = True,
) -> base.Source:
  """Opens the source that a spec names.

    digits                             scikit-learn's digits
    arrays:PATH                        an .npz file
    store:PATH                         a folder that `python -m diversedit_jax.prepare` made
    folder:PATH  tar:  zip:  csv:      pictures, decoded and cropped as they are used; see
    tfds:NAME[:SPLIT]                    `pictures.open_pictures`
    synthetic:HxWxC:CLASSES[:N]        Gaussian latents; N defaults to the size of ImageNet's split
    synthetic:HxWxC+HxWxC:CLASSES[:N]  with pixels beside them, of the second shape

  '{split}' in a PATH becomes 'train' or 'test'.

  Args:
    spec: as above.
    split: 'train' or 'test'.
    num_classes: demanded of the source; None accepts what the source has.
    classes: classes of pictures, see `pictures.open_pictures`.
    size, crop, orientation: how pictures are made; None is 'adm' and 'exif', see `pictures.crop`
      and `pictures.decode`. A store must have been made so.
    pixels: whether pixels that lie beside latents are read.

  Raises:
    UserError: an unknown kind or split, a malformed spec, or another number of classes.
  """
  trees.check_known('split', split, base.SPLITS)
  kind, _, rest = spec.partition(':')
  trees.check_known('data source', kind, KINDS)
  if (kind == 'digits') == bool(rest):
    raise UserError(f"data {spec!r} is malformed; expected 'digits' or '{kind}:...'")
  if kind == 'digits':
    source: base.Source = memory.digits(split)
  elif kind == 'synthetic':
    source = synthetic.parse(spec, split, pixels=pixels)
  elif kind in pictures_lib.KINDS:
    if size is None:
      raise UserError(f'data {spec!r} are pictures; set data.size to the side of their crop')
    collection = pictures_lib.open_pictures(spec, classes=classes, split=split)
    source = pictures.PictureSource(
      collection, size=size, crop=crop or 'adm', orientation=orientation or 'exif'
    )
  elif kind == 'store':
    source = store.StoreSource(_path(spec, rest, split), pixels=pixels)
    source.check_made(size=size, crop=crop, orientation=orientation)
  else:
    source = memory.arrays(_path(spec, rest, split), num_classes, pixels=pixels)
  if num_classes is not None and source.num_classes != num_classes:
    raise UserError(f'data {spec!r} has {source.num_classes} classes, expected {num_classes}')
  return source


def _path(spec, rest, split):
  if '{split}' not in rest and split != 'train':
    raise UserError(
      f'data {spec!r} names one split, which is the train split; for the {split!r} split write '
      f"'{{split}}' in the path, as in {spec.partition(':')[0]}:FOLDER/{{split}}"
    )
  return rest.replace('{split}', split)
