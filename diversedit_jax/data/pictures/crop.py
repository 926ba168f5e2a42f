"""Square crops of pictures, by the rules used to train and evaluate ImageNet models.

  adm     while the shorter side is at least 2 S: halve both sides, rounded down, with a box filter;
          then one bicubic resize by S / shorter side, sides rounded; then the central S x S.
  center  one bicubic resize by S / shorter side, sides rounded; then the central S x S.
  exact   no change: the picture must have S x S already.

Both filters are Pillow's, antialiased, on uint8. 'adm' is `center_crop_arr` of guided-diffusion and
'center-crop-dhariwal' of REPA. The upper left corner of a crop is ((W - S) // 2, (H - S) // 2).
"""

import numpy as np
from PIL import Image

from diversedit_jax import trees, types
from diversedit_jax.data.pictures import base

CROPS = ('adm', 'center', 'exact')
# A picture of 1 x 100,000 would become one of 256 x 25,600,000 before its crop.
_MAX_PIXELS = 2**27


def crop(image: Image.Image, size: int, rule: str = 'adm') -> np.ndarray:
  """Crops an RGB image to uint8 [size, size, 3] by a rule of `CROPS`.

  Raises:
    BadPicture: the picture has not the size that 'exact' demands, or is too narrow for its length.
    UserError: the rule is unknown, or the size is below 1.
  """
  trees.check_known('crop', rule, CROPS)
  if size < 1:
    raise types.UserError(f'the size of a crop must be at least 1, got {size}')
  if rule == 'exact':
    if image.size != (size, size):
      raise base.BadPicture(f'{_by(image.size)}, expected exactly {_by((size, size))}')
    return np.array(image)
  width, height = image.size
  if size * size * max(width, height) > _MAX_PIXELS * min(width, height):
    raise base.BadPicture(f'{_by(image.size)} is too narrow to be cropped to {size}')
  if rule == 'adm':
    while min(image.size) >= 2 * size:
      image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
  scale = size / min(image.size)
  image = image.resize(
    (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
  )
  left, top = (image.width - size) // 2, (image.height - size) // 2
  return np.array(image.crop((left, top, left + size, top + size)))


def _by(size):
  return f'{size[0]}x{size[1]}'
