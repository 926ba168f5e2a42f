"""The decoder of representation autoencoders (RAE, arXiv 2510.11690): a ViT from tokens to pixels.

It is the decoder of MAE (arXiv 2111.06377) with nothing masked and with a trained class token:

  (1)  x_0 = [class; z W + b] + P          one token z [C] of a frozen encoder per position
  (2)  x <- x + Attention(LN(x));  x <- x + MLP(LN(x))
  (3)  pixels of a patch = LN(x_L) W' + b'  ordered (row, column, RGB); the class token is dropped

P is the fixed table of sines and cosines that the file brings, zero for the class token. LayerNorm
has epsilon 1e-12 and GELU is exact. Tokens on another grid than that of P are resized after W and
b, bilinear with half-pixel centres and without antialiasing. Blocks are those of `encoders.vit`.

Files are the authors' state dicts (bytetriper/RAE, nanovisionx/RAEv2), alone or in a checkpoint of
their training. Sizes are read off the arrays; the number of heads, which arrays do not show, is in
the `config.json` of the decoder, or follows from the width where that is a published one.
"""

from collections.abc import Mapping
import dataclasses
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import types
from diversedit_jax.data import files as data_files
from diversedit_jax.frozen.encoders import files, vit
from diversedit_jax.models import embed
from diversedit_jax.weights import array_files, likely, location, misfits

SETTINGS = 'config.json'
EPSILON = 1e-12
# Heads by width: ViT-B, ViT-L and ViT-XL of RAE's configs.
HEADS = {768: 12, 1024: 16, 1152: 16}
_FILES = ('model.pt', 'decoder.pt')
_ANCHOR = 'decoder_pred.weight'
_LAYER = 'decoder_layers.{}.'
# What the published config.json may say otherwise, and is not supported.
_SUPPORTED = {'hidden_act': 'gelu', 'layer_norm_eps': EPSILON, 'qkv_bias': True, 'num_channels': 3}


def _joined(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Arrays with query, key and value of each layer as one, as `vit` has them."""
  found = dict(arrays)
  for name in arrays:
    if '.attention.attention.query.' in name:
      theirs = [name.replace('.query.', f'.{part}.') for part in ('query', 'key', 'value')]
      if all(part in found for part in theirs):
        parts = [found.pop(part) for part in theirs]
        found[name.replace('.query.', '.qkv.')] = np.concatenate(parts)
  return found


LAYOUT = files.Layout(
  names={
    'embed/kernel': 'decoder_embed.weight',
    'embed/bias': 'decoder_embed.bias',
    'class_token': 'trainable_cls_token',
    'positions': 'decoder_pos_embed',
    **{
      f'blocks/{ours}/{kind}': f'{_LAYER}{theirs}.{its}'
      for ours, theirs in (
        ('norm1', 'layernorm_before'),
        ('qkv', 'attention.attention.qkv'),
        ('proj', 'attention.output.dense'),
        ('norm2', 'layernorm_after'),
        ('fc1', 'intermediate.dense'),
        ('fc2', 'output.dense'),
      )
      for kind, its in (('scale' if 'norm' in ours else 'kernel', 'weight'), ('bias', 'bias'))
    },
    'norm/scale': 'decoder_norm.weight',
    'norm/bias': 'decoder_norm.bias',
    'pred/kernel': _ANCHOR,
    'pred/bias': 'decoder_pred.bias',
  },
  translate=_joined,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
  """Sizes of a decoder.

  latent: channels C of a token. width, depth, heads, hidden: of the transformer, see
  `vit.ViTConfig`. grid: rows, and columns, of its tokens. patch: pixels of a token along a side.
  """

  latent: int
  width: int
  depth: int
  heads: int
  hidden: int
  grid: int
  patch: int

  @property
  def side(self) -> int:
    """Rows, and columns, of the pictures."""
    return self.grid * self.patch

  @property
  def blocks(self) -> vit.ViTConfig:
    """The blocks (2)."""
    return vit.ViTConfig(
      width=self.width,
      depth=self.depth,
      heads=self.heads,
      hidden=self.hidden,
      layer_scale=False,
      table=self.grid,
      epsilon=EPSILON,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Decoder:
  """A decoder with weights; they are arguments of `decode`, not constants.

  config: its sizes. params: weights as nested dicts of float32 numpy arrays.
  file: name of the file they came from. sha256: digest of their names and values.
  """

  config: DecoderConfig
  params: vit.Params
  file: str
  sha256: str


def flat_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
  """Shapes of all parameters by slash-joined name; `blocks/` have a leading axis L."""
  d, out = config.width, 3 * config.patch**2
  of_blocks = vit.flat_shapes(config.blocks, (config.grid, config.grid))
  names = ('class_token', 'positions', 'norm/scale', 'norm/bias')
  kept = {n: s for n, s in of_blocks.items() if n in names or n.startswith('blocks/')}
  ends = {'embed/kernel': (config.latent, d), 'embed/bias': (d,), 'pred/kernel': (d, out)}
  return {**ends, **kept, 'pred/bias': (out,)}


def decode(params: vit.Params, z_NHWC: jax.Array, config: DecoderConfig) -> jax.Array:
  """Maps tokens on a square grid to the numbers of (3), [N, H, W, 3], whatever they stand for."""
  types.check('z', z_NHWC, 'N H W C', C=config.latent)
  n, rows, cols, _ = z_NHWC.shape
  if rows != cols:
    raise types.UserError(f'this decoder takes a square grid of tokens, found {rows}x{cols}')
  x_NHWD = vit.linear(z_NHWC, params['embed'])
  if rows != config.grid:
    shape = (n, config.grid, config.grid, config.width)
    x_NHWD = jax.image.resize(x_NHWD, shape, 'linear', antialias=False)
  x_NTD = x_NHWD.reshape(n, -1, config.width)
  front_N1D = jnp.broadcast_to(params['class_token'].astype(x_NTD.dtype), (n, 1, config.width))
  x_NTD = jnp.concatenate([front_N1D, x_NTD], axis=1) + params['positions'][None]
  step = lambda x, p: (vit.block(p, x, config.blocks), None)
  x_NTD, _ = jax.lax.scan(step, x_NTD, params['blocks'])
  x_NTP = vit.linear(vit.normalised(x_NTD[:, 1:], params['norm'], config.blocks), params['pred'])
  return embed.unpatchify(x_NTP, config.patch, config.side, config.side)


def flops(config: DecoderConfig) -> float:
  """FLOPs of the matrix products for one picture, a multiply-add being 2."""
  tokens, ends = config.grid**2, config.latent + 3 * config.patch**2
  blocks = vit.flops(dataclasses.replace(config.blocks, channels=0), (config.grid, config.grid))
  return blocks + 2.0 * tokens * config.width * ends


def load(path: str | os.PathLike[str]) -> Decoder:
  """Reads a decoder from a file, or from a folder with `model.pt` or `decoder.pt`, on the hub too.

  Raises:
    UserError: there is no such file, it holds something else, or it contradicts its `config.json`.
  """
  publisher = 'The authors publish it (nyu-visionx/RAE-collections on Hugging Face, for example)'
  path = array_files.find(path, _FILES, 'the decoder of an RAE needs its weights', publisher)
  arrays = array_files.load(path, anchors=(_ANCHOR,))
  beside = path.with_name(SETTINGS)
  settings = data_files.read_json(beside) if beside.is_file() else {}
  try:
    return from_arrays(arrays, settings=settings, file=location.name(path))
  except types.UserError as error:
    raise types.UserError(f'{path}: {error}') from error


def from_arrays(
  arrays: Mapping[str, np.ndarray], *, settings: Mapping[str, Any] | None = None, file: str = ''
) -> Decoder:
  """The decoder with these arrays, by the authors' names.

  Args:
    arrays: the weights. settings: contents of `config.json`. file: the file they came from.

  Raises:
    UserError: the arrays are something else, or contradict the settings.
  """
  proper = files.proper_names(arrays, LAYOUT)
  config = _config(proper, settings or {})
  flat = flat_shapes(config)
  if faults := misfits.find(proper, LAYOUT.shapes(flat), finite=True):
    raise types.UserError(f'these are not the weights of an RAE decoder: {"; ".join(faults)}')
  found = files.arranged(proper, LAYOUT, flat, lambda name: np.dtype('float32'))
  params = array_files.unflatten(found)
  return Decoder(config=config, params=params, file=file, sha256=array_files.digest(arrays.items()))


def _config(arrays, settings):
  """The sizes that the arrays show, and the heads that the settings or the width tell."""
  for key, expected in _SUPPORTED.items():
    if (found := settings.get(key, expected)) != expected:
      raise types.UserError(f'{SETTINGS} says {key}={found!r}; only {expected!r} is supported')
  embedded, table = (
    _shape(arrays, 'decoder_embed.weight', 2),
    _shape(arrays, 'decoder_pos_embed', 3),
  )
  hidden = _shape(arrays, f'{_LAYER}intermediate.dense.weight'.format(0), 2)[0]
  tokens, values = table[1] - 1, _shape(arrays, _ANCHOR, 2)[0]
  grid, patch = math.isqrt(max(tokens, 0)), math.isqrt(values // 3)
  if grid**2 != tokens or 3 * patch**2 != values or not grid * patch:
    raise types.UserError(
      f'{tokens} positions and {values} values of a patch are no square grid of square RGB patches'
    )
  layers = f'{_LAYER}layernorm_before.weight'
  depth = next(i for i in range(len(arrays) + 1) if layers.format(i) not in arrays)
  width = embedded[0]
  found = {'hidden_size': width, 'num_hidden_layers': depth, 'intermediate_size': hidden}
  for key, value in found.items():
    stated = settings.get(f'decoder_{key}', value)
    if stated != value:
      raise types.UserError(f'{SETTINGS} says decoder_{key}={stated}, but the arrays have {value}')
  heads = settings.get('decoder_num_attention_heads', HEADS.get(width))
  if not isinstance(heads, int) or heads < 1 or width % heads:
    raise types.UserError(
      f'the number of heads of a decoder of width {width} is not known: found {heads!r}; put the '
      f"published {SETTINGS} of the decoder, with 'decoder_num_attention_heads', beside the file"
    )
  return DecoderConfig(
    latent=embedded[1],
    width=width,
    depth=depth,
    heads=heads,
    hidden=hidden,
    grid=grid,
    patch=patch,
  )


def _shape(arrays, name, axes):
  if name not in arrays or arrays[name].ndim != axes:
    found = f'has shape {arrays[name].shape}' if name in arrays else 'is missing'
    raise types.UserError(
      f'these are not the weights of an RAE decoder: {name} {found}; the {len(arrays)} arrays are '
      f'{misfits.first_few(sorted(arrays))}{likely.kind(arrays)}'
    )
  return arrays[name].shape
