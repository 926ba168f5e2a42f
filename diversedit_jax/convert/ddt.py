"""The networks of RAE and RAEv2 (arXiv 2510.11690, 2605.18324) by names that our rules can read.

Both number the decoder's blocks on from the encoder's, in `blocks`; here they are in `decoder`.
RAEv2 has queries, keys and values, and the two halves of SwiGLU, as layers of their own; here they
are joined, as LightningDiT has them, and its adaLN has LightningDiT's name.
"""

from collections.abc import Mapping
import re

import numpy as np

from diversedit_jax import types
from diversedit_jax.convert import lightning
from diversedit_jax.convert.rules import linear, projectors, rule, scale, skips
from diversedit_jax.models import embed

_BLOCK, _OURS = 'blocks.{block}', 'model/blocks/{block}'
_DECODER, _OUR_DECODER = 'decoder.{decoder}', 'model/decoder/blocks/{decoder}'

# The time embedding but for its last layer.
GAUSSIAN = (
  rule('t_embedder.W', 'model/time_embed/frequencies', str(embed.TIME_FREQUENCIES)),
  *linear('t_embedder.mlp.0', 'model/time_embed/fc1', str(2 * embed.TIME_FREQUENCIES), 'D'),
)

_HEAD = (
  *GAUSSIAN,
  rule('s_embedder.proj.weight', 'model/patch_embed/kernel', *'DCpp', layout='patches'),
  rule('s_embedder.proj.bias', 'model/patch_embed/bias', 'D'),
  rule('x_embedder.proj.weight', 'model/decoder/patch_embed/kernel', *'WCpp', layout='patches'),
  rule('x_embedder.proj.bias', 'model/decoder/patch_embed/bias', 'W'),
  *linear('s_projector', 'model/decoder/project', 'D', 'W', part='project'),
  *linear('t_embedder.mlp.2', 'model/time_embed/fc2', 'D', 'D'),
  *lightning.block(_BLOCK, _OURS, width='D', hidden='M', head='E'),
  *lightning.block(_DECODER, _OUR_DECODER, width='W', hidden='V', head='U'),
  *lightning.adaln(_DECODER, _OUR_DECODER, width='W', vectors='B'),
  *skips(),
  *linear('final_layer.linear', 'model/final/linear', 'W', 'p*p*C'),
)

RAE = (
  *_HEAD,
  rule('y_embedder.embedding_table.weight', 'model/label_embed/embedding', 'R', 'D'),
  *lightning.adaln(_BLOCK, _OURS, width='D', vectors='A'),
  scale('final_layer.norm_final', 'model/final/norm', 'W', 'rms'),
  *linear('final_layer.adaLN_modulation.1', 'model/final/adaln', 'W', '2*W'),
  *projectors(),
)

RAEV2 = (
  *_HEAD,
  rule('t_embedder.learnable_tokens', 'model/time_tokens', 'I', 'D'),
  rule('ctx_embedder.learnable_tokens', 'model/label_tokens', 'J', 'D'),
  rule('ctx_embedder.embedding_table.weight', 'model/label_embed/embedding', 'R', 'D'),
  scale('final_layer.norm', 'model/final/norm', 'W', 'rms'),
  *linear('final_layer.adaln_modulation.1', 'model/final/adaln', 'W', '2*W'),
  scale('base_final_layer.norm', 'model/base/norm', 'D', 'base'),
  *linear('base_final_layer.linear', 'model/base/linear', 'D', 'p*p*C', part='base'),
  *linear('base_final_layer.adaln_modulation.1', 'model/base/adaln', 'D', '2*D', part='base'),
  *projectors(),
)

_JOINED = {'attn.qkv': ('attn.q', 'attn.k', 'attn.v'), 'mlp.w12': ('mlp.w1', 'mlp.w2')}
_NUMBERED = re.compile(r'blocks\.(\d+)\.(.+)')


def to_own(
  arrays: Mapping[str, np.ndarray], decoder_depth: int | None = None
) -> Mapping[str, np.ndarray]:
  """Arrays by the names of our rules; those by other names, and by ours already, stay as they are.

  decoder_depth: blocks of the decoder; None finds them: they have another width, or are the only
    ones with a modulation.

  Raises:
    UserError: the blocks do not tell which are the decoder's, or decoder_depth leaves none.
  """
  named = any(name.startswith('decoder.') for name in arrays)
  if named or 's_embedder.proj.weight' not in arrays:
    return arrays
  arrays = _joined(arrays)
  blocks = _blocks(arrays)
  if decoder_depth is None:
    decoder_depth = _decoder_depth(arrays)
  elif not 0 < decoder_depth < blocks:
    raise types.UserError(
      f'--decoder_depth={decoder_depth} of {blocks} blocks: expected 1 to {blocks - 1}'
    )
  depth = blocks - decoder_depth

  def own(name):
    match = _NUMBERED.fullmatch(name)
    if not match:
      return name
    number, rest = int(match[1]), match[2].replace('adaln_modulation', 'adaLN_modulation')
    return f'blocks.{number}.{rest}' if number < depth else f'decoder.{number - depth}.{rest}'

  return {own(name): array for name, array in arrays.items()}


def from_own(arrays: Mapping[str, np.ndarray], *, parted: bool) -> dict[str, np.ndarray]:
  """The inverse of `to_own`. parted: whether for RAEv2."""
  depth, named = _blocks(arrays), {}
  for name, array in arrays.items():
    match = re.fullmatch(r'(blocks|decoder)\.(\d+)\.(.+)\.(weight|bias)', name)
    if not match:
      named[name] = array
      continue
    place, number, layer, leaf = match.groups()
    block = f'blocks.{int(number) + depth * (place == "decoder")}'
    layers = (layer,)
    if parted:
      layers = _JOINED.get(layer, (layer.replace('adaLN', 'adaln'),))
    for one, part in zip(layers, np.split(array, len(layers)), strict=True):
      named[f'{block}.{one}.{leaf}'] = part
  return named


def _joined(arrays):
  """With the layers that are parts of another joined to it."""
  found = dict(arrays)
  for whole, parts in _JOINED.items():
    for name in arrays:
      block, at, leaf = name.partition(f'.{parts[0]}.')
      names = [f'{block}.{part}.{leaf}' for part in parts]
      if at and all(one in found for one in names):
        found[f'{block}.{whole}.{leaf}'] = np.concatenate([found.pop(one) for one in names])
  return found


def _blocks(arrays) -> int:
  return len({match[1] for name in arrays if (match := _NUMBERED.fullmatch(name))})


def _decoder_depth(arrays) -> int:
  width = len(arrays['s_embedder.proj.weight'])
  number = lambda name: int(_NUMBERED.fullmatch(name)[1])
  modulated = {
    number(n) for n in arrays if n.endswith('adaln_modulation.1.weight') and 'blocks' in n
  }
  wide = {
    number(name)
    for name, array in arrays.items()
    if name.endswith('.attn.proj.weight') and len(array) != width
  }
  found = len(modulated or wide)
  if not found:
    raise types.UserError(
      f"all blocks have width {width}, which does not tell how many are the decoder's: give "
      '--decoder_depth (2 in published weights)'
    )
  return found
