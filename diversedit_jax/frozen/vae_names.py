"""Other names of the VAE's parameters, as those that diffusers gives them today.

Diffusers' older files name the attention differently. CompVis' program, with which the VAE was
trained, and whose files are Stable Diffusion's `.ckpt` and most single files of a VAE, names levels
and layers differently and counts the decoder's levels from the image, as do FLUX's single file,
VA-VAE's and REPA-E's. In both, the matrices of the attention may be 1x1 convolutions.
"""

from collections.abc import Mapping
import re

import numpy as np

from diversedit_jax import types

ANCHORS = ('decoder.conv_in.weight', 'encoder.conv_in.weight')
"""Names in all of these files, which tell the VAE from what lies beside it."""

_LEGACY = {'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'proj_attn': 'to_out.0'}
_LEGACY_NAME = re.compile(rf'(\.attentions\.\d+\.)({"|".join(_LEGACY)})(?=\.)')

_COMPVIS = re.compile(r'(encoder\.down|decoder\.up)\.\d+\.block\.0\.conv1\.weight')
_ATTENTION = {'norm': 'group_norm', 'q': 'to_q', 'k': 'to_k', 'v': 'to_v', 'proj_out': 'to_out.0'}
_RENAMED = (
  (
    r'(\.mid\.attn_1|\.attn\.\d+)\.(norm|q|k|v|proj_out)\.',
    lambda m: f'{m[1]}.{_ATTENTION[m[2]]}.',
  ),
  (r'\.mid\.attn_1\.', '.mid_block.attentions.0.'),
  (r'\.mid\.block_(\d+)\.', lambda m: f'.mid_block.resnets.{int(m[1]) - 1}.'),
  (r'^encoder\.down\.(\d+)\.', r'encoder.down_blocks.\1.'),
  (r'(_blocks\.\d+)\.block\.', r'\1.resnets.'),
  (r'(_blocks\.\d+)\.attn\.', r'\1.attentions.'),
  (r'(_blocks\.\d+)\.(down|up)sample\.', r'\1.\2samplers.0.'),
  (r'\.nin_shortcut\.', '.conv_shortcut.'),
  (r'^(encoder|decoder)\.norm_out\.', r'\1.conv_norm_out.'),
)
# What the programs that trained a VAE kept beside it; the last two are VA-VAE's.
_TRAINING = ('loss.', 'model_ema.', 'foundation_model.', 'linear_proj.')


def current(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Arrays by diffusers' current names; a name that is none of the others stays.

  Raises:
    UserError: one is there twice, under two names.
  """
  rename = lambda name: _LEGACY_NAME.sub(lambda m: m[1] + _LEGACY[m[2]], name)
  if any(map(_COMPVIS.fullmatch, arrays)):
    arrays = {name: x for name, x in arrays.items() if not name.startswith(_TRAINING)}
    levels = {m[1] for name in arrays if (m := re.match(r'decoder\.up\.(\d+)\.', name))}
    rename = lambda name: _from_compvis(name, len(levels))
  named: dict[str, np.ndarray] = {}
  for name, array in arrays.items():
    its = rename(name)
    if its in named:
      raise types.UserError(f'{its} is there twice, under its current and another name')
    named[its] = array
  return named


def _from_compvis(name, levels) -> str:
  name = re.sub(
    r'^decoder\.up\.(\d+)\.', lambda m: f'decoder.up_blocks.{levels - 1 - int(m[1])}.', name
  )
  for pattern, new in _RENAMED:
    name = re.sub(pattern, new, name)
  return name
