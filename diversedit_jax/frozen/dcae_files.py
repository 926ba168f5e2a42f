"""Reads the sizes of a DC-AE from its `config.json`, as diffusers' `AutoencoderDC` has it.

Published are mit-han-lab's dc-ae-f32c32, -f64c128 and -f128c512, each as -in-1.0 and -mix-1.0,
dc-ae-f32c32-sana-1.0 and -1.1, and dc-ae-lite-f32c32-sana-1.1, all with `-diffusers` at the end of
the repository's name. Arrays do not show the heads of the attention and the activations, so the
config is needed; it has the scale, too.
"""

from collections.abc import Iterable, Mapping
import re
from typing import Any

from diversedit_jax import types
from diversedit_jax.frozen import dcae, dcae_layers, vae_kinds
from diversedit_jax.weights import misfits

CLASS = 'AutoencoderDC'
COUNTER = '.num_batches_tracked'
"""End of the name of what batch norms count in training, which is no weight."""

_MARK = re.compile(r'(encoder\.down|decoder\.up)_blocks\.\d+\.\d+\..*')
_HALVES = ('encoder', 'decoder')
_OF_HALVES = ('block_types', 'block_out_channels', 'layers_per_block', 'qkv_multiscales')
_NEEDED = (
  'latent_channels',
  *(f'{half}_{key}' for half in _HALVES for key in _OF_HALVES),
  'downsample_block_type',
  'upsample_block_type',
  'decoder_norm_types',
  'decoder_act_fns',
)
# What diffusers takes where an entry is missing; files of its first versions lack the last three.
_OPTIONAL = {
  'in_channels': 3,
  'attention_head_dim': 32,
  'encoder_out_shortcut': True,
  'decoder_in_shortcut': True,
  'decoder_conv_act_fn': 'relu',
}


def is_one(names: Iterable[str], settings: Mapping[str, Any]) -> bool:
  """Whether names of arrays, or the contents of `config.json`, are those of a DC-AE."""
  return settings.get('_class_name') == CLASS or any(map(_MARK.fullmatch, names))


def fields(settings: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of `dcae.DCAEConfig`, but scale and shift, from the contents of `config.json`.

  Raises:
    UserError: entries are missing, or say what is not supported.
  """
  name = vae_kinds.SETTINGS
  if settings.get('_class_name', CLASS) != CLASS:
    raise types.UserError(
      f'{name} says _class_name={settings["_class_name"]!r}, but the arrays are those of an {CLASS}'
    )
  if missing := [key for key in _NEEDED if key not in settings]:
    raise types.UserError(
      f'a DC-AE is read with its {name}, which says what arrays do not show: '
      f'{misfits.first_few(missing)} {"is" if len(missing) == 1 else "are"} missing; put the '
      'published one beside the file'
    )
  settings = _OPTIONAL | settings
  return {
    'encoder': _levels(settings, 'encoder', 'rms_norm', 'silu'),
    'decoder': _levels(
      settings, 'decoder', settings['decoder_norm_types'], settings['decoder_act_fns']
    ),
    'latent_channels': _whole('latent_channels', settings['latent_channels']),
    'image_channels': _whole('in_channels', settings['in_channels']),
    'head': _whole('attention_head_dim', settings['attention_head_dim']),
    'down_folds': _choice(settings, 'downsample_block_type', ('Conv', 'pixel_unshuffle')),
    'up_folds': _choice(settings, 'upsample_block_type', ('interpolate', 'pixel_shuffle')),
    'out_shortcut': _flag(settings, 'encoder_out_shortcut'),
    'in_shortcut': _flag(settings, 'decoder_in_shortcut'),
    'last_activation': _known(
      'decoder_conv_act_fn', settings['decoder_conv_act_fn'], dcae_layers.ACTIVATIONS
    ),
  }


def _levels(settings, half, norms, activations) -> tuple[dcae.Level, ...]:
  key = f'{half}_block_out_channels'
  widths = [_whole(key, width) for width in _listed(key, settings[key])]
  blocks, depths, scales = (
    _each(half, key, settings[f'{half}_{key}'], widths)
    for key in ('block_types', 'layers_per_block', 'qkv_multiscales')
  )
  norms, activations = (
    _each(half, key, value, widths)
    for key, value in (('norm_types', norms), ('act_fns', activations))
  )
  return tuple(
    dcae.Level(
      width=width,
      depth=_whole(f'{half}_layers_per_block', depth, least=0),
      block=_known(f'{half}_block_types', block, dcae.BLOCKS),
      scales=_odd(f'{half}_qkv_multiscales', sizes),
      norm=_known(f'{half}_norm_types', norm, dcae_layers.NORMS),
      activation=_known(f'{half}_act_fns', activation, dcae_layers.ACTIVATIONS),
    )
    for width, depth, block, sizes, norm, activation in zip(
      widths, depths, blocks, scales, norms, activations, strict=True
    )
  )


def _each(half, key, value, widths):
  """One value for each level; what is no list stands for all."""
  value = value if isinstance(value, list | tuple) else [value] * len(widths)
  if len(value) != len(widths):
    raise types.UserError(
      f'{vae_kinds.SETTINGS}: {half}_{key} has {len(value)} entries, expected {len(widths)}, one '
      f'per level of {half}_block_out_channels'
    )
  return value


def _listed(key, value):
  if not isinstance(value, list | tuple):
    raise types.UserError(f'{vae_kinds.SETTINGS} says {key}={value!r}; expected a list')
  return value


def _whole(key, value, least=1):
  if not isinstance(value, int) or isinstance(value, bool) or value < least:
    raise types.UserError(
      f'{vae_kinds.SETTINGS} says {key}={value!r}; expected whole numbers from {least}'
    )
  return value


def _odd(key, sizes) -> tuple[int, ...]:
  for size in _listed(key, sizes):
    if _whole(key, size) % 2 == 0:
      raise types.UserError(f'{vae_kinds.SETTINGS} says {key}={size}; expected odd numbers')
  return tuple(sizes)


def _flag(settings, key) -> bool:
  if not isinstance(settings[key], bool):
    raise types.UserError(
      f'{vae_kinds.SETTINGS} says {key}={settings[key]!r}; expected true or false'
    )
  return settings[key]


def _choice(settings, key, values) -> bool:
  """Whether a setting is the second of two values, in capitals or not: programs differ."""
  found = settings[key]
  same = [value for value in values if isinstance(found, str) and found.lower() == value.lower()]
  return _known(key, same[0] if same else found, values) == values[1]


def _known(key, value, known):
  if not any(value == one for one in known):
    raise types.UserError(
      f'{vae_kinds.SETTINGS} says {key}={value!r}; only {" and ".join(map(repr, known))} are '
      'supported'
    )
  return value
