"""Pictures decoded and cropped when they are read: training on pixels without a store."""

from concurrent import futures
import functools
import hashlib

import numpy as np

from diversedit_jax import cores, types
from diversedit_jax.data import pictures as pictures_lib
from diversedit_jax.data.sources import base


class PictureSource(base.Source):
  """See `base.Source`: uint8 images of a collection, cropped to a square.

  A bad picture ends the run with its name, because leaving it out would change the order of all
  others. `python -m diversedit_jax.prepare` makes a store without bad pictures.
  """

  space: base.Space = 'pixels'
  scaling = None
  can_mirror = reads_files = decodes = True
  options = ('classes', 'labels', 'crop', 'orientation')

  def __init__(
    self,
    collection: pictures_lib.Pictures,
    *,
    size: int,
    crop: str = 'adm',
    orientation: str = 'exif',
  ):
    """See `pictures.crop` and `pictures.decode` for the options."""
    self.collection = collection
    self.name = collection.name
    self.num_classes = len(collection.listing.label_names)
    self._size, self._crop, self._orientation = size, crop, orientation

  @property
  def labels(self) -> np.ndarray:
    """Labels of all examples, int32 [len]."""
    return self.collection.listing.labels

  @property
  def shape(self) -> tuple[int, int, int]:
    """(H, W, 3) of the images."""
    return self._size, self._size, 3

  @property
  def pixel_shape(self) -> tuple[int, int, int]:
    """The same as `shape`: the pixels are the data."""
    return self.shape

  @property
  def label_names(self) -> tuple[str, ...]:
    """Names of all classes."""
    return self.collection.listing.label_names

  def digest(self) -> str:
    """SHA-256 of the listing: names, labels and sizes of the files."""
    return self.collection.listing.digest()

  def pixels_digest(self) -> str:
    """SHA-256 of the listing and of how the pictures are cropped."""
    made = f'{self.digest()} {self._crop} {self._orientation}'
    return hashlib.sha256(made.encode()).hexdigest()

  def __len__(self) -> int:
    return len(self.collection.listing)

  def name_of(self, index: int) -> str:
    """The file's name in the collection."""
    return self.collection.listing.names[index]

  def __getstate__(self):
    return {name: value for name, value in self.__dict__.items() if name != '_pool'}

  def gather(self, indices: np.ndarray, flips: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """See `base.Source`.

    Raises:
      BadExample: a picture is bad; it is named.
      UserError: a picture could not be read, again and again.
    """
    base.check_indices(self.name, indices, len(self))
    x_NHWC = np.stack(list(self._pool.map(self._load, indices.tolist())))
    return {'images': base.mirrored(x_NHWC, flips), 'labels': self.labels[indices]}

  @functools.cached_property
  def _pool(self):
    return futures.ThreadPoolExecutor(cores.available())

  def _load(self, index):
    try:
      _, pixels = pictures_lib.load(
        self.collection, index, size=self._size, rule=self._crop, orientation=self._orientation
      )
    except pictures_lib.BadPicture as error:
      raise base.BadExample(
        self.name,
        f'{self.collection.listing.names[index]}: {error}',
        'mend it, or make a store (python -m diversedit_jax.prepare), which lists what it leaves '
        'out',
      ) from error
    return pixels


def _open(request: base.Request) -> PictureSource:
  if not request.rest:
    raise types.UserError(f"data {request.spec!r} is malformed; expected '{request.spec}:...'")
  if request.size is None:
    raise types.UserError(
      f'data {request.spec!r} are pictures; set data.size to the side of their crop'
    )
  collection = pictures_lib.open_pictures(
    request.spec, classes=request.classes, labels=request.labels, split=request.split
  )
  return PictureSource(
    collection,
    size=request.size,
    crop=request.crop or 'adm',
    orientation=request.orientation or 'exif',
  )


for _kind in pictures_lib.KINDS:
  base.register(_kind, _open)
