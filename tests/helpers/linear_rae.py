"""A decoder of representation autoencoders that is a linear map, fitted to pictures."""

import json
import pathlib

from helpers import torch_zip
import numpy as np

from diversedit_jax.frozen import rae_decoder
from diversedit_jax.frozen.encoders import preprocess

_FAR = 1e3  # Two channels so far from zero that the last norm scales all tokens alike.


def write(folder: pathlib.Path, tokens_NHWC: np.ndarray, images_NHWC: np.ndarray) -> float:
  """Writes `model.pt` and `config.json`: the map of tokens to pixels of least squares.

  Args:
    folder: where to, it is made. tokens_NHWC: of the pictures. images_NHWC: these, in [0, 1].

  Returns:
    The root mean square of what is left.
  """
  n, grid, _, channels = tokens_NHWC.shape
  patch = images_NHWC.shape[1] // grid
  normed = (images_NHWC - preprocess.IMAGENET_MEAN) / preprocess.IMAGENET_STD
  cells = normed.reshape(n, grid, patch, grid, patch, 3).transpose(0, 1, 3, 2, 4, 5)
  cells_MP = cells.reshape(n * grid**2, -1).astype(np.float64)
  rows_MC = np.pad(tokens_NHWC.reshape(-1, channels).astype(np.float64), ((0, 0), (0, 1)))
  rows_MC[:, -1] = 1
  map_CP = np.linalg.lstsq(rows_MC, cells_MP, rcond=None)[0]
  # Every channel beside its negative, so that a token has mean zero, and `_FAR` with its negative.
  width = 2 * channels + 2
  config = rae_decoder.DecoderConfig(
    latent=channels, width=width, depth=1, heads=1, hidden=1, grid=grid, patch=patch
  )
  shapes = rae_decoder.LAYOUT.shapes(rae_decoder.flat_shapes(config))
  arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
  arrays['decoder_embed.weight'][:-2] = np.concatenate([np.eye(channels), -np.eye(channels)])
  arrays['decoder_embed.bias'][-2:] = _FAR, -_FAR
  arrays['trainable_cls_token'][..., -2:] = _FAR, -_FAR
  arrays['decoder_norm.weight'][:] = _FAR * np.sqrt(2 / width)
  half = map_CP[:-1].T / 2
  arrays['decoder_pred.weight'][:, :-2] = np.concatenate([half, -half], axis=1)
  arrays['decoder_pred.bias'][:] = map_CP[-1]
  for name in [name for name in arrays if '.qkv.' in name]:
    parts = np.split(arrays.pop(name), 3)
    names = [name.replace('.qkv.', f'.{part}.') for part in ('query', 'key', 'value')]
    arrays |= dict(zip(names, parts, strict=True))
  folder.mkdir(parents=True)
  torch_zip.write(folder / 'model.pt', torch_zip.tensors(arrays))
  (folder / rae_decoder.SETTINGS).write_text(json.dumps({'decoder_num_attention_heads': 1}))
  left = (cells_MP - rows_MC @ map_CP).reshape(n, -1, 3) * preprocess.IMAGENET_STD
  return float(np.sqrt(np.mean(left**2)))
