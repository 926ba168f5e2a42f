"""Sources by name, as a config writes them."""

from collections.abc import Sequence
import os

from diversedit_jax import paths, trees
from diversedit_jax.data.sources import base
from diversedit_jax.types import UserError


def open_source(
  spec: str,
  split: str = 'train',
  num_classes: int | None = None,
  *,
  classes: str | Sequence[str] | None = None,
  labels: str | None = None,
  size: int | None = None,
  crop: str | None = None,
  orientation: str | None = None,
  pixels: bool = True,
  cache: str | None = None,
) -> base.Source:
  """Opens the source that a spec names.

    digits                             scikit-learn's digits
    arrays:PATH                        an .npz file
    store:PATH                         a folder that `python -m diversedit_jax.prepare` made, or
                                         its URL in a bucket, gs://BUCKET/... or s3://BUCKET/...
    folder:PATH  tar:  zip:  csv:      pictures, decoded and cropped as they are used; see
    parquet:PATH  tfds:NAME[:SPLIT]      `pictures.open_pictures`
    synthetic:HxWxC:CLASSES[:N]        Gaussian latents; N defaults to the size of ImageNet's split
    synthetic:HxWxC+HxWxC:CLASSES[:N]  with pixels beside them, of the second shape

  '{split}' in a PATH becomes 'train' or 'test'.

  Args:
    spec: as above.
    split: 'train' or 'test'.
    num_classes: demanded of the source; None accepts what the source has.
    classes, labels: classes of pictures, see `pictures.open_pictures`.
    size, crop, orientation: how pictures are made; None is 'adm' and 'exif', see `pictures.crop`
      and `pictures.decode`. A store must have been made so.
    pixels: whether pixels that lie beside latents are read.
    cache: folder to which a store is copied before it is read.

  Raises:
    UserError: an unknown kind or split, a malformed spec, or another number of classes.
  """
  trees.check_known('split', split, base.SPLITS)
  kind, _, rest = spec.partition(':')
  if paths.is_bucket(spec):
    raise UserError(f'data {spec!r} is a URL without its kind; write store:{spec}')
  if kind not in base.KINDS and os.path.exists(spec):
    raise UserError(
      f'data {spec!r} is a path without its kind; write folder:{spec}, or another of '
      f'{", ".join(sorted(base.KINDS))} in place of folder'
    )
  trees.check_known('data source', kind, base.KINDS)
  source = base.KINDS[kind](
    base.Request(
      spec=spec,
      rest=rest,
      split=split,
      num_classes=num_classes,
      classes=classes,
      labels=labels,
      size=size,
      crop=crop,
      orientation=orientation,
      pixels=pixels,
      cache=cache,
    )
  )
  if num_classes is not None and source.num_classes != num_classes:
    raise UserError(
      f'data {spec!r} has {source.num_classes} classes, expected data.num_classes={num_classes}'
    )
  return source
