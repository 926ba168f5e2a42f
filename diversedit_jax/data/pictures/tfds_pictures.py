"""Pictures of a TFDS dataset prepared as ArrayRecord files, read without TensorFlow."""

from collections.abc import Sequence
import functools
import os
import pathlib
import re

import numpy as np

from diversedit_jax import paths, progress, types
from diversedit_jax.data.pictures import base, naming

_VERSION = re.compile(r'\d+\.\d+\.\d+')
_SPEC = re.compile(r'(?P<name>[^:]+(:\d+\.\d+\.\d+)?)(:(?P<split>.+))?')
_BATCH = 256
# TFDS needs importlib_resources to prepare but does not require it; its command line needs Beam.
_PREPARE = (
  'pip install importlib_resources && python -c "import tensorflow_datasets as tfds; '
  "tfds.builder('{name}', file_format='array_record').download_and_prepare()\""
)
_ARCHIVES = (
  '; before that put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, from '
  'https://image-net.org/download-images, into {folder}/downloads/manual'
)


class TfdsPictures(base.Pictures):
  """See `base.Pictures`; names are positions in the split."""

  def __init__(self, name: str, folder: pathlib.Path, split: str, listing: base.Listing):
    self.name, self.listing = name, listing
    self._folder, self._split = folder, split

  def __getstate__(self):
    return {name: value for name, value in self.__dict__.items() if name != '_source'}

  def read(self, index: int) -> bytes:
    """See `base.Pictures`."""
    source = self._source
    try:
      return source[int(self.listing.names[index])]['image']
    # ArrayRecord and the parser of examples raise errors of their own. The listing could read every
    # example, so this is a failure of the machine, not of the bytes.
    except Exception as error:
      raise OSError(' '.join(str(error).split())) from error

  @functools.cached_property
  def _source(self):
    return _data_source(self._folder, self._split, self.name)


def parse(spec: str, split: str) -> tuple[str, str]:
  """Splits 'NAME[:VERSION][:SPLIT]' into the name with its version, and the split or `split`.

  Raises:
    UserError: the spec is malformed.
  """
  match = _SPEC.fullmatch(spec)
  if not match:
    raise types.UserError(
      f"'tfds:{spec}' is malformed; expected tfds:NAME or tfds:NAME:SPLIT, as in "
      'tfds:imagenet2012:train'
    )
  return match['name'], match['split'] or split


def open_tfds(
  dataset: str, split: str, classes: Sequence[str] | None = None, labels: str | None = None
) -> TfdsPictures:
  """The pictures of one split of a prepared dataset with the features 'image' and 'label'.

  TFDS keeps the labels beside the pictures, so the listing reads the whole split once.

  Args:
    dataset: 'cifar10', 'imagenet2012:5.1.0', 'NAME/CONFIG', ..., in the folder of the environment
      variable TFDS_DATA_DIR or in ~/tensorflow_datasets.
    split: a split in TFDS's notation, such as 'train' or 'train[:10%]'.
    classes: all classes in order; None takes the dataset's own.
    labels: 'none': all pictures are of one class.

  Raises:
    UserError: the dataset is not prepared (the message says how to), the split is unknown, the
      features are missing, or examples have no labels.
  """
  where, folder = f'tfds:{dataset}:{split}', _find(dataset)
  without = labels == 'none'
  if labels not in (None, 'none', 'any'):
    raise types.UserError(f'labels {labels!r} is not for {where}, which has its own; or say none')
  source = _data_source(folder, split, where)
  names = _label_names(source.dataset_info.features, where)
  labels, sizes = _facts(source, where)
  keys = [f'{i:08d}' for i in range(len(source))]
  if without:
    labels = [naming.ALL] * len(keys)
  elif labels and min(labels) < 0:
    raise types.UserError(
      f'{where} has examples without labels; take another split, or --labels=none (data.labels in '
      'a config) for pictures without classes'
    )
  elif classes is None:
    classes = names
  elif names != tuple(str(i) for i in range(len(names))):  # Names that the dataset gives itself.
    labels = [names[label] for label in labels]
  found = list(zip(keys, labels, sizes, strict=True))
  listing, _ = base.make_listing(found, (), classes, where)
  return TfdsPictures(f'tfds/{dataset}/{split}', folder, split, listing)


def _find(dataset):
  """The folder of a prepared dataset; without a version in its name, of the newest."""
  name, _, version = dataset.partition(':')
  root = paths.path(os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets'))
  found = [path.parent for path in (root / name).glob('*/dataset_info.json')]
  versions = {path.name: path for path in found if _VERSION.fullmatch(path.name)}
  if version in versions:
    return versions[version]
  if versions and not version:
    return versions[max(versions, key=lambda v: [int(part) for part in v.split('.')])]
  configs = sorted(
    {path.parent.parent.name for path in (root / name).glob('*/*/dataset_info.json')}
  )
  if configs and not versions:
    raise types.UserError(
      f'tfds:{dataset} has configurations in {root}: {", ".join(configs)}; name one, as in '
      f'tfds:{name}/{configs[0]}'
    )
  prepare = f'prepare it with `{_PREPARE.format(name=dataset)}`'
  if name == 'imagenet2012':
    prepare += _ARCHIVES.format(folder=root)
  if versions:
    prepare = f'there are {", ".join(sorted(versions))}; take one of these or {prepare}'
  raise types.UserError(f'tfds:{dataset} is not in {root} (TFDS_DATA_DIR); {prepare}')


def _data_source(folder, split, where):
  import tensorflow_datasets as tfds  # Here: its import takes a third of a second.

  try:
    # Built from the files alone: building by name would query a bucket, through TensorFlow.
    return tfds.builder_from_directory(folder).as_data_source(
      split=split, decoders={'image': tfds.decode.SkipDecoding()}
    )
  except NotImplementedError as error:
    prepare = _PREPARE.format(name=folder.parent.name)
    raise types.UserError(
      f'{where}: {folder} has no array_record files, the only ones that can be read in any order; '
      f'set TFDS_DATA_DIR to another folder and prepare it with `{prepare}`'
    ) from error
  except (ValueError, LookupError, OSError, AssertionError) as error:
    raise types.UserError(f'{where}: {" ".join(str(error).split())}') from error


def _label_names(features, where):
  """Names of the classes; '0', '1', ... where the dataset has none."""
  import tensorflow_datasets as tfds

  if not {'image', 'label'} <= set(features):
    raise types.UserError(
      f"{where} has the features {', '.join(sorted(features))}; expected 'image' and 'label'"
    )
  image, label = features['image'], features['label']
  if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
    raise types.UserError(f"{where}: the feature 'image' is {image}, expected uint8 pictures")
  if not isinstance(label, tfds.features.ClassLabel):
    raise types.UserError(f"{where}: the feature 'label' is {label}, expected a ClassLabel")
  return tuple(label.names)


def _facts(source, where):
  labels, sizes = [], []
  listing = progress.Progress(f'listing {where}', len(source), unit='examples')
  for start in range(0, len(source), _BATCH):
    listing.at(start)
    positions = list(range(start, min(start + _BATCH, len(source))))
    try:
      examples = source.__getitems__(positions)
    except Exception as error:  # As in `TfdsPictures.read`.
      raise types.UserError(
        f'{where}: examples {start} to {positions[-1]} cannot be read: {error}; prepare it again'
      ) from error
    labels += [int(example['label']) for example in examples]
    sizes += [len(example['image']) for example in examples]
  return labels, sizes
