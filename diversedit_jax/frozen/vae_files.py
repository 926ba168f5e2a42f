"""Reads the weights of an autoencoder from diffusers' files, and gives them back in that form.

The usual ones are stabilityai's sd-vae-ft-mse and -ema, which share their encoder. Our names become
diffusers' with dots for slashes and `weight` for `kernel` and `scale`; older files and those of
CompVis have other names (`vae_names`). Sizes are read off the arrays; groups, which arrays do not
show, are in a `config.json` beside the file; the scale is found by `vae_kinds`. A DC-AE is told by
its names, and its sizes are all in its `config.json` (`dcae_files`).
"""

from collections.abc import Iterator, Mapping, Sequence
import os
import pathlib
from typing import Any
import zlib

from absl import logging
import jax
import numpy as np

from diversedit_jax import trees, types
from diversedit_jax.data import files
from diversedit_jax.frozen import autoencoders, dcae, dcae_files, vae, vae_kinds, vae_names
from diversedit_jax.weights import array_files, folders, likely, location, misfits

FILE = 'diffusion_pytorch_model.safetensors'
SETTINGS = vae_kinds.SETTINGS
CLASS = 'AutoencoderKL'

# Where a folder has the weights; a pipeline's has a folder for them.
_FILES = (FILE, *folders.names(('vae',)))
_DECODER = ('decoder.', 'post_quant_conv.')
# The settings of an AutoencoderKL of which this one supports a single value.
_SUPPORTED = {
  '_class_name': CLASS,
  'act_fn': 'silu',
  'mid_block_add_attention': True,
}


def load(
  path: str | os.PathLike[str],
  *,
  scale: float | Sequence[float] | None = None,
  shift: float | Sequence[float] | None = None,
  dtype: str = 'float32',
) -> autoencoders.Autoencoder:
  """Reads the autoencoder from a file, or from a folder with one, which `_FILES` may name.

  Args:
    path: a file of weights of any floating-point dtype. What else it holds is left out, as in a
      checkpoint of Stable Diffusion.
    scale, shift: values that replace those that `vae_kinds` finds, see `autoencoders.Config`.
    dtype: the dtype of the matrix products, one of `vae.DTYPES`; parameters are always float32.

  Raises:
    UserError: there is no such file (the message says where to get it), it holds something else, or
      it contradicts its `config.json`, or nothing tells its scale.
  """
  path = _find(path)
  arrays = array_files.load(path, anchors=vae_names.ANCHORS)
  settings = settings_beside(path)
  known = location.side(path.name, vae_kinds.STATISTICS)[1:]
  found = [path.with_name(name) for name in known if path.with_name(name).is_file()]
  asked = scale is not None and shift is not None
  statistics = array_files.load(found[0]) if found and not asked else None
  try:
    return from_arrays(
      arrays,
      settings=settings,
      statistics=statistics,
      scale=scale,
      shift=shift,
      dtype=dtype,
      file=location.name(path),
      place=location.place_of(path) or '/'.join(path.parts[-2:]),
    )
  except types.UserError as error:
    raise types.UserError(f'{path}: {error}') from error


def settings_beside(path: pathlib.Path) -> dict[str, Any]:
  """The contents of the `config.json` beside a file of weights; nothing where there is none.

  Raises:
    UserError: it is damaged.
  """
  beside = path.with_name(SETTINGS)
  return files.read_json(beside) if beside.is_file() else {}


def from_arrays(
  arrays: Mapping[str, np.ndarray],
  *,
  settings: Mapping[str, Any] | None = None,
  statistics: Mapping[str, np.ndarray] | None = None,
  scale: float | Sequence[float] | None = None,
  shift: float | Sequence[float] | None = None,
  dtype: str = 'float32',
  file: str = '',
  place: str = '',
) -> autoencoders.Autoencoder:
  """The autoencoder with these arrays, by the names of diffusers or, for a VAE, of CompVis.

  Args:
    arrays: the weights.
    settings: the contents of `config.json`.
    statistics: those of latents, see `vae_kinds`.
    scale, shift, dtype: see `load`.
    file: the name of the file they came from.
    place: the names of that file and of its folder.

  Raises:
    UserError: the arrays are something else, or contradict the settings.
  """
  settings = settings or {}
  told = {'scale': scale, 'shift': shift, 'statistics': statistics, 'place': place}
  if dcae_files.is_one(arrays, settings):
    kind, make, fields = dcae_files.CLASS, dcae.DCAEConfig, dcae_files.fields(settings)
    arrays = {n: x for n, x in arrays.items() if not n.endswith(dcae_files.COUNTER)}
    sizes = {'family': 'DC-AE', 'latent_channels': fields['latent_channels']}
  else:
    kind, make, arrays = CLASS, vae.VAEConfig, vae_names.current(arrays)
    _refuse_unsupported(settings)
    sizes = _sizes(arrays, settings)
    fields = sizes | {'norm_groups': settings.get('norm_num_groups') or 32}
  known = vae_kinds.scales(sizes, settings=settings, **told)
  config = make(**fields, scale=known.scale, shift=known.shift)
  shapes = autoencoders.shapes(config)
  expected = {
    _diffusers_name(path): (*leaf.shape[:-3:-1], *leaf.shape[:-2])
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
  }
  for name, shape in expected.items():
    if name in arrays and len(shape) == 2 and arrays[name].shape == (*shape, 1, 1):
      arrays[name] = arrays[name][:, :, 0, 0]
  if faults := misfits.find(arrays, expected, finite=True):
    raise types.UserError(f'these are not the weights of an {kind}: {"; ".join(faults)}')

  def ours(path, leaf):
    array = arrays[_diffusers_name(path)]
    array = array_files.kernel_from_torch(array) if leaf.ndim > 1 else array
    return np.ascontiguousarray(array, np.float32)

  made = _autoencoder(
    config, jax.tree_util.tree_map_with_path(ours, shapes), dtype, file, known.kind
  )
  numbers = [_in_words(x) for x in (config.scale, config.shift)]
  logging.info('%s: %s, scale %s, shift %s (%s)', file, made.name, *numbers, known.source)
  return made


def to_arrays(params: Mapping[str, Any], config: autoencoders.Config) -> dict[str, np.ndarray]:
  """Parameters as float32 arrays, with diffusers' current names and layout.

  Raises:
    ValueError: the parameters are not those of the config.
  """
  expected = {
    name: leaf.shape for name, leaf in trees.named_leaves(autoencoders.shapes(config)).items()
  }
  found = {name: np.shape(leaf) for name, leaf in trees.named_leaves(params).items()}
  if found != expected:
    wrong = sorted(dict(found.items() ^ expected.items()))
    raise ValueError(
      f'parameters and config of the autoencoder disagree on {misfits.first_few(wrong)}'
    )
  return {name: np.ascontiguousarray(array) for name, array in _named(params)}


def random(
  config: autoencoders.Config, seed: int, *, dtype: str = 'float32'
) -> autoencoders.Autoencoder:
  """An autoencoder with random weights, none of them neutral, for tests and trials.

  Values are of order 1 throughout, and so are the pixels and moments that come out.
  """

  def draw(path, leaf):
    name = trees.path_name(path)
    noise = np.random.default_rng((seed, zlib.crc32(name.encode())))
    x = noise.standard_normal(leaf.shape, np.float32)
    if name.endswith('/kernel'):
      return x / np.float32(np.sqrt(np.prod(leaf.shape[:-1])))
    return np.float32(0.1) * x + np.float32(name.endswith(('/scale', '/running_var')))

  params = jax.tree_util.tree_map_with_path(draw, autoencoders.shapes(config))
  return _autoencoder(config, params, dtype, f'random-{seed}')


def _in_words(value) -> str:
  each = isinstance(value, tuple)
  return f'{min(value):.4g} to {max(value):.4g}, one per channel' if each else f'{value:g}'


def _autoencoder(config, params, dtype, file, kind=CLASS):
  trees.check_known('dtype of the autoencoder', dtype, vae.DTYPES)
  return autoencoders.Autoencoder(
    config=config,
    params=params,
    file=file,
    encoder_sha256=array_files.digest(
      (n, x) for n, x in _named(params) if not n.startswith(_DECODER)
    ),
    decoder_sha256=array_files.digest((n, x) for n, x in _named(params) if n.startswith(_DECODER)),
    dtype=dtype,
    name=f'{kind} f{config.factor}d{config.latent_channels}',
  )


def _named(params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
  """Parameters as views with diffusers' names and layout."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    leaf = np.asarray(leaf, np.float32)
    yield _diffusers_name(path), np.moveaxis(leaf, (-1, -2), (0, 1)) if leaf.ndim > 1 else leaf


def _diffusers_name(path: tuple[Any, ...]) -> str:
  folder, _, leaf = trees.path_name(path).rpartition('/')
  return f'{folder.replace("/", ".")}.{"weight" if leaf in ("kernel", "scale") else leaf}'


def _sizes(arrays, settings) -> dict[str, Any]:
  """The fields of the config that arrays show; the settings must not contradict them."""
  size = lambda name, axis: _size(arrays, name, axis)
  first = 'encoder.down_blocks.{}.resnets.{}.conv1.weight'.format
  count = lambda name: next(i for i in range(len(arrays) + 1) if name(i) not in arrays)
  image = size('encoder.conv_in.weight', 1)
  levels = max(count(lambda i: first(i, 0)), 1)
  attends = lambda i, half: f'{half}_blocks.{i}.attentions.0.to_q.weight' in arrays
  down = [attends(i, 'encoder.down') for i in range(levels)]
  up = [attends(i, 'decoder.up') for i in range(levels)]
  fields = {
    'image_channels': image,
    'latent_channels': size('decoder.conv_in.weight', 1),
    'block_channels': tuple(size(first(i, 0), 0) for i in range(levels)),
    'layers_per_block': count(lambda i: first(0, i)),
    'quant_conv': any(name.startswith('quant_conv.') for name in arrays),
    'post_quant_conv': any(name.startswith('post_quant_conv.') for name in arrays),
    'encoder_attention': tuple(i for i in range(levels) if down[i]),
    'decoder_attention': tuple(i for i in range(levels) if up[levels - 1 - i]),
  }
  told = {
    'in_channels': image,
    'out_channels': image,
    'latent_channels': fields['latent_channels'],
    'block_out_channels': fields['block_channels'],
    'layers_per_block': fields['layers_per_block'],
    'use_quant_conv': fields['quant_conv'],
    'use_post_quant_conv': fields['post_quant_conv'],
    'down_block_types': tuple(f'{"Attn" * x}DownEncoderBlock2D' for x in down),
    'up_block_types': tuple(f'{"Attn" * x}UpDecoderBlock2D' for x in up),
  }
  for key, found in told.items():
    value = settings.get(key, found)
    value = tuple(value) if isinstance(value, list) else value
    if value != found:
      raise types.UserError(f'{SETTINGS} says {key}={value}, but the arrays have {found}')
  return fields


def _size(arrays, name, axis):
  if name not in arrays or arrays[name].ndim != 4:
    found = f'has shape {arrays[name].shape}' if name in arrays else 'is missing'
    raise types.UserError(
      f"these are not the weights of an AutoencoderKL with diffusers' names: {name} {found}; "
      f'the {len(arrays)} arrays are {misfits.first_few(sorted(arrays))}{likely.kind(arrays)}'
    )
  return arrays[name].shape[axis]


def _refuse_unsupported(settings: Mapping[str, Any]) -> None:
  for key, expected in _SUPPORTED.items():
    found = settings.get(key, expected)
    if found != expected:
      raise types.UserError(f'{SETTINGS} says {key}={found!r}; only {expected!r} is supported')


def _find(path: str | os.PathLike[str]) -> pathlib.Path:
  publisher = (
    'The usual one is on Hugging Face as stabilityai/sd-vae-ft-mse (335 MB; or -ft-ema: the '
    f'same encoder, another decoder); download it, with its {SETTINGS}, and give the path, or give '
    'hf://stabilityai/sd-vae-ft-mse; docs/weights.md lists others'
  )
  wanted = f'the autoencoder needs its weights, {FILE}'
  path = location.resolve(path, _FILES, vae_kinds.STATISTICS)
  if path.is_dir() and not any((path / name).is_file() for name in _FILES):
    path = folders.alone(path) or path
  return array_files.find(path, _FILES, wanted, publisher)
