"""Reads the weights of the VAE from diffusers' files, and gives them back in that form.

The published files are stabilityai's sd-vae-ft-mse and -ema, which share their encoder. Our names
become theirs with dots for slashes and `weight` for `kernel` and `scale`; older files and those of
CompVis have other names (`vae_names`). Sizes are read off the arrays; groups and scale, which
arrays do not show, are in a `config.json` beside the file.
"""

from collections.abc import Iterator, Mapping, Sequence
import os
import pathlib
from typing import Any
import zlib

import jax
import numpy as np

from diversedit_jax import trees, types
from diversedit_jax.data import files
from diversedit_jax.frozen import vae, vae_names
from diversedit_jax.weights import array_files, folders, likely, location, misfits

FILE = 'diffusion_pytorch_model.safetensors'
SETTINGS = 'config.json'

# Where a folder has the weights; a pipeline's has a folder for them.
_FILES = (FILE, *folders.names(('vae',)))
_DECODER = ('decoder.', 'post_quant_conv.')
# The scale of Stable Diffusion's first autoencoders, which their config.json does not give.
_SD_CHANNELS, _SD_SCALE = 4, 0.18215
# The settings of an AutoencoderKL of which this one supports a single value.
_SUPPORTED = {
  '_class_name': 'AutoencoderKL',
  'act_fn': 'silu',
  'mid_block_add_attention': True,
  'down_block_types': 'DownEncoderBlock2D',
  'up_block_types': 'UpDecoderBlock2D',
}


def load(
  path: str | os.PathLike[str],
  *,
  scale: float | Sequence[float] | None = None,
  shift: float | Sequence[float] | None = None,
  dtype: str = 'float32',
) -> vae.Autoencoder:
  """Reads the autoencoder from a file, or from a folder with a file called as in `_FILES`.

  Args:
    path: a file of weights of any floating-point dtype. What else it holds is left out, as in a
      checkpoint of Stable Diffusion.
    scale, shift: values that replace those of `config.json`, see `vae.VAEConfig`.
    dtype: the dtype of the matrix products, one of `vae.DTYPES`; parameters are always float32.

  Raises:
    UserError: there is no such file (the message says where to get it), it holds something else, or
      it contradicts its `config.json`.
  """
  path = _find(path)
  arrays = array_files.load(path, anchors=vae_names.ANCHORS)
  beside = path.with_name(SETTINGS)
  settings = files.read_json(beside) if beside.is_file() else {}
  try:
    return from_arrays(
      arrays, settings=settings, scale=scale, shift=shift, dtype=dtype, file=location.name(path)
    )
  except types.UserError as error:
    raise types.UserError(f'{path}: {error}') from error


def from_arrays(
  arrays: Mapping[str, np.ndarray],
  *,
  settings: Mapping[str, Any] | None = None,
  scale: float | Sequence[float] | None = None,
  shift: float | Sequence[float] | None = None,
  dtype: str = 'float32',
  file: str = '',
) -> vae.Autoencoder:
  """The autoencoder with these arrays, by the names of diffusers or of CompVis.

  Args:
    arrays: the weights.
    settings: the contents of `config.json`.
    scale, shift, dtype: see `load`.
    file: the name of the file they came from.

  Raises:
    UserError: the arrays are something else, or contradict the settings.
  """
  settings = settings or {}
  arrays = vae_names.current(arrays)
  _refuse_unsupported(settings, scale is not None and shift is not None)
  config = _config(arrays, settings, scale, shift)
  shapes = vae.shapes(config)
  expected = {
    _diffusers_name(path): (*leaf.shape[:-3:-1], *leaf.shape[:-2])
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
  }
  for name, shape in expected.items():
    if name in arrays and len(shape) == 2 and arrays[name].shape == (*shape, 1, 1):
      arrays[name] = arrays[name][:, :, 0, 0]
  if faults := misfits.find(arrays, expected, finite=True):
    raise types.UserError(f'these are not the weights of an AutoencoderKL: {"; ".join(faults)}')

  def ours(path, leaf):
    array = arrays[_diffusers_name(path)]
    array = array_files.kernel_from_torch(array) if leaf.ndim > 1 else array
    return np.ascontiguousarray(array, np.float32)

  return _autoencoder(config, jax.tree_util.tree_map_with_path(ours, shapes), dtype, file)


def to_arrays(params: Mapping[str, Any], config: vae.VAEConfig) -> dict[str, np.ndarray]:
  """Parameters as float32 arrays, with diffusers' current names and layout.

  Raises:
    ValueError: the parameters are not those of the config.
  """
  expected = {name: leaf.shape for name, leaf in trees.named_leaves(vae.shapes(config)).items()}
  found = {name: np.shape(leaf) for name, leaf in trees.named_leaves(params).items()}
  if found != expected:
    wrong = sorted(dict(found.items() ^ expected.items()))
    raise ValueError(f'parameters and config of the VAE disagree on {misfits.first_few(wrong)}')
  return {name: np.ascontiguousarray(array) for name, array in _named(params)}


def random(config: vae.VAEConfig, seed: int, *, dtype: str = 'float32') -> vae.Autoencoder:
  """An autoencoder with random weights, none of them neutral, for tests and trials.

  Values are of order 1 throughout, and so are the pixels and moments that come out.
  """

  def draw(path, leaf):
    name = trees.path_name(path)
    noise = np.random.default_rng((seed, zlib.crc32(name.encode())))
    x = noise.standard_normal(leaf.shape, np.float32)
    if name.endswith('/kernel'):
      return x / np.float32(np.sqrt(np.prod(leaf.shape[:-1])))
    return np.float32(0.1) * x + np.float32(name.endswith('/scale'))

  params = jax.tree_util.tree_map_with_path(draw, vae.shapes(config))
  return _autoencoder(config, params, dtype, f'random-{seed}')


def _autoencoder(config, params, dtype, file):
  trees.check_known('dtype of the VAE', dtype, vae.DTYPES)
  return vae.Autoencoder(
    config=config,
    params=params,
    file=file,
    encoder_sha256=array_files.digest(
      (n, x) for n, x in _named(params) if not n.startswith(_DECODER)
    ),
    decoder_sha256=array_files.digest((n, x) for n, x in _named(params) if n.startswith(_DECODER)),
    dtype=dtype,
  )


def _named(params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
  """Parameters as views with diffusers' names and layout."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    leaf = np.asarray(leaf, np.float32)
    yield _diffusers_name(path), np.moveaxis(leaf, (-1, -2), (0, 1)) if leaf.ndim > 1 else leaf


def _diffusers_name(path: tuple[Any, ...]) -> str:
  folder, _, leaf = trees.path_name(path).rpartition('/')
  return f'{folder.replace("/", ".")}.{"bias" if leaf == "bias" else "weight"}'


def _config(arrays, settings, scale, shift) -> vae.VAEConfig:
  """The sizes of the arrays and the rest from the settings; they must not contradict each other."""
  size = lambda name, axis: _size(arrays, name, axis)
  first = 'encoder.down_blocks.{}.resnets.{}.conv1.weight'.format
  count = lambda name: next(i for i in range(len(arrays) + 1) if name(i) not in arrays)
  latent, image = size('decoder.conv_in.weight', 1), size('encoder.conv_in.weight', 1)
  levels = max(count(lambda i: first(i, 0)), 1)
  fields = {
    'latent_channels': latent,
    'block_channels': tuple(size(first(i, 0), 0) for i in range(levels)),
    'layers_per_block': count(lambda i: first(0, i)),
    'quant_conv': any(name.startswith('quant_conv.') for name in arrays),
    'post_quant_conv': any(name.startswith('post_quant_conv.') for name in arrays),
  }
  theirs = {'block_channels': 'block_out_channels'}
  theirs |= {name: f'use_{name}' for name in ('quant_conv', 'post_quant_conv')}
  told = {theirs.get(name, name): value for name, value in fields.items()}
  for key, found in (told | {'in_channels': image, 'out_channels': image}).items():
    value = settings.get(key, found)
    value = tuple(value) if isinstance(value, list) else value
    if value != found:
      raise types.UserError(f'{SETTINGS} says {key}={value}, but the arrays have {found}')
  usual = _SD_SCALE if latent == _SD_CHANNELS else None
  scale = _first(scale, settings.get('scaling_factor'), usual)
  if scale is None:
    raise types.UserError(
      f'the scale of {latent} latent channels is not known: give it (--vae_scale), or put the '
      f'published {SETTINGS}, which has it as scaling_factor, into the folder of the file'
    )
  return vae.VAEConfig(
    image_channels=image,
    norm_groups=_first(settings.get('norm_num_groups'), 32),
    scale=scale,
    shift=_first(shift, settings.get('shift_factor'), 0.0),
    **fields,
  )


def _first(*values):
  return next((value for value in values if value is not None), None)


def _size(arrays, name, axis):
  if name not in arrays or arrays[name].ndim != 4:
    found = f'has shape {arrays[name].shape}' if name in arrays else 'is missing'
    raise types.UserError(
      f"these are not the weights of an AutoencoderKL with diffusers' names: {name} {found}; "
      f'the {len(arrays)} arrays are {misfits.first_few(sorted(arrays))}{likely.kind(arrays)}'
    )
  return arrays[name].shape[axis]


def _refuse_unsupported(settings: Mapping[str, Any], scaled: bool) -> None:
  for key, expected in _SUPPORTED.items():
    found = settings.get(key, expected)
    if any(value != expected for value in (found if isinstance(found, list) else [found])):
      raise types.UserError(f'{SETTINGS} says {key}={found!r}; only {expected!r} is supported')
  if not scaled and any(settings.get(key) for key in ('latents_mean', 'latents_std')):
    raise types.UserError(
      f'{SETTINGS} has latents_mean and latents_std, which programs apply in different ways; '
      'give a scale and a shift instead (--vae_scale, --vae_shift)'
    )


def _find(path: str | os.PathLike[str]) -> pathlib.Path:
  publisher = (
    'Its authors publish it on Hugging Face as stabilityai/sd-vae-ft-mse (or '
    'stabilityai/sd-vae-ft-ema: the same encoder, another decoder); download it, with its '
    f'{SETTINGS}, and give the path, or give hf://stabilityai/sd-vae-ft-mse'
  )
  wanted = f'the VAE needs its weights, {FILE} (about 335 MB)'
  return array_files.find(path, _FILES, wanted, publisher)
