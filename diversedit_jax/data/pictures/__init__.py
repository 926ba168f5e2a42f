"""Collections of encoded pictures: `open_pictures` opens one, `decode` and `crop` make its pixels.

`decode` and `crop` are modules; their functions are `decode.decode` and `crop.crop`.
"""

from diversedit_jax.data.pictures import crop, decode
from diversedit_jax.data.pictures.base import BadPicture, Pictures
from diversedit_jax.data.pictures.crop import CROPS
from diversedit_jax.data.pictures.decode import ORIENTATIONS
from diversedit_jax.data.pictures.loading import load
from diversedit_jax.data.pictures.opening import KINDS, folder_of, open_pictures, with_kind

__all__ = [
  'CROPS',
  'KINDS',
  'ORIENTATIONS',
  'BadPicture',
  'Pictures',
  'crop',
  'decode',
  'folder_of',
  'load',
  'open_pictures',
  'with_kind',
]
