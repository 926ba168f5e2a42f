"""ConvNeXt V2 (arXiv 2301.00808), fine-tuned on ImageNet-22K and ImageNet-1K at 224 pixels.

Four stages at 1/4, 1/8, 1/16 and 1/32 of the pixels. One block, with a depthwise 7 x 7 convolution
and global response normalisation of its hidden channels:

  x <- x + W2 GRN(GELU(W1 LN(Conv(x))))
  GRN(h) = h + bias + scale * h * n,   n_c = g_c / (mean_c' g_c' + 1e-6),             (1)
  g_c the l2 norm of channel c over all positions

Features are the positions of the last stage, before the last norm, and the summary is their mean,
as timm's `forward_features` with a spatial mean gives them (FDr6, arXiv 2604.28190). A token is 32
pixels wide. Blocks of a stage are stacked along a leading axis and scanned.
"""

from collections.abc import Mapping
import dataclasses
import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import types
from diversedit_jax.frozen.encoders import base, files, preprocess, vit
from diversedit_jax.models import embed, norms
from diversedit_jax.weights import array_files, location

URL = 'https://dl.fbaipublicfiles.com/convnext/convnextv2/im22k'
STRIDE = 32
_STEM, _KERNEL, _EPSILON = 4, 7, 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvNeXtConfig:
  """Sizes by stage.

  depths: number of blocks.
  widths: number of channels.
  """

  depths: tuple[int, ...]
  widths: tuple[int, ...]


def _widths(first: int) -> tuple[int, ...]:
  return tuple(first * 2**i for i in range(4))


CONFIGS = {
  'convnextv2-t': ConvNeXtConfig(depths=(3, 3, 9, 3), widths=_widths(96)),
  'convnextv2-b': ConvNeXtConfig(depths=(3, 3, 27, 3), widths=_widths(128)),
  'convnextv2-l': ConvNeXtConfig(depths=(3, 3, 27, 3), widths=_widths(192)),
}
_WORDS = {'t': 'tiny', 'b': 'base', 'l': 'large'}
_BLOCK = {
  'conv/kernel': 'conv_dw.weight',
  'conv/bias': 'conv_dw.bias',
  'norm/scale': 'norm.weight',
  'norm/bias': 'norm.bias',
  'fc1/kernel': 'mlp.fc1.weight',
  'fc1/bias': 'mlp.fc1.bias',
  'grn/scale': 'mlp.grn.weight',
  'grn/bias': 'mlp.grn.bias',
  'fc2/kernel': 'mlp.fc2.weight',
  'fc2/bias': 'mlp.fc2.bias',
}
# The authors' names, as patterns, and timm's.
_AUTHORS = (
  (r'downsample_layers\.0\.', 'stem.'),
  (r'downsample_layers\.(\d)\.', r'stages.\1.downsample.'),
  (r'stages\.(\d)\.(\d+)\.dwconv\.', r'stages.\1.blocks.\2.conv_dw.'),
  (r'stages\.(\d)\.(\d+)\.pwconv(\d)\.', r'stages.\1.blocks.\2.mlp.fc\3.'),
  (r'stages\.(\d)\.(\d+)\.grn\.gamma', r'stages.\1.blocks.\2.mlp.grn.weight'),
  (r'stages\.(\d)\.(\d+)\.grn\.beta', r'stages.\1.blocks.\2.mlp.grn.bias'),
  (r'stages\.(\d)\.(\d+)\.norm\.', r'stages.\1.blocks.\2.norm.'),
  (r'norm\.', 'head.norm.'),
)


def from_authors(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Arrays by timm's names, also from the authors' files."""
  if 'stem.0.weight' in arrays:
    return arrays
  found = {}
  for name, array in arrays.items():
    for pattern, theirs in _AUTHORS:
      if match := re.match(pattern, name):
        name = match.expand(theirs) + name[match.end() :]
        break
    found[name] = array.reshape(-1) if '.grn.' in name else array
  return found


LAYOUT = files.Layout(
  names={
    'stem/kernel': 'stem.0.weight',
    'stem/bias': 'stem.0.bias',
    'stem_norm/scale': 'stem.1.weight',
    'stem_norm/bias': 'stem.1.bias',
    **{
      f'stage{i}/{ours}': f'stages.{i}.{theirs}'
      for i in range(4)
      for ours, theirs in {
        'norm/scale': 'downsample.0.weight',
        'norm/bias': 'downsample.0.bias',
        'down/kernel': 'downsample.1.weight',
        'down/bias': 'downsample.1.bias',
        **{f'blocks/{k}': f'blocks.{{}}.{v}' for k, v in _BLOCK.items()},
      }.items()
    },
  },
  unused=('head.',),
  translate=from_authors,
)


def published(name: str) -> files.Published:
  """The file of an encoder, as 'convnextv2_base_22k_224_ema.pt' for 'convnextv2-b'."""
  word = _WORDS[name[-1]]
  file, timm = f'convnextv2_{word}_22k_224_ema.pt', f'convnextv2_{word}.fcmae_ft_in22k_in1k'
  return files.Published(
    file=file,
    url=f'{URL}/{file} (and timm at https://huggingface.co/timm/{timm})',
    others=(f'{timm}/model', timm, 'model'),
  )


def flat_shapes(config: ConvNeXtConfig) -> dict[str, tuple[int, ...]]:
  """Shapes of all parameters by slash-joined name; kernels are [..., in, out]."""
  first = config.widths[0]
  shapes = {'stem/kernel': (_STEM, _STEM, 3, first), 'stem/bias': (first,)}
  shapes |= {f'stem_norm/{kind}': (first,) for kind in ('scale', 'bias')}
  for i, (depth, c) in enumerate(zip(config.depths, config.widths, strict=True)):
    if i:
      before = config.widths[i - 1]
      shapes |= {f'stage{i}/norm/{kind}': (before,) for kind in ('scale', 'bias')}
      shapes |= {f'stage{i}/down/kernel': (2, 2, before, c), f'stage{i}/down/bias': (c,)}
    of_block = {
      'conv/kernel': (_KERNEL, _KERNEL, 1, c),
      'fc1/kernel': (c, 4 * c),
      'fc2/kernel': (4 * c, c),
      **dict.fromkeys(('conv/bias', 'norm/scale', 'norm/bias', 'fc2/bias'), (c,)),
      **dict.fromkeys(('fc1/bias', 'grn/scale', 'grn/bias'), (4 * c,)),
    }
    shapes |= {f'stage{i}/blocks/{name}': (depth, *shape) for name, shape in of_block.items()}
  return shapes


def encode(params: vit.Params, x_NHWC: jax.Array, config: ConvNeXtConfig) -> jax.Array:
  """Maps normalised pixels to the positions of the last stage, [N, H/32, W/32, C] float32."""
  x_NHWC = _norm(_down(x_NHWC, params['stem']), params['stem_norm'])
  for i in range(len(config.depths)):
    p = params[f'stage{i}']
    if i:
      x_NHWC = _down(_norm(x_NHWC, p['norm']), p['down'])
    x_NHWC, _ = jax.lax.scan(lambda x, of_block: (block(of_block, x), None), x_NHWC, p['blocks'])
  return x_NHWC


def block(p: vit.Params, x_NHWC: jax.Array) -> jax.Array:
  """One block, with its own parameters p, without the leading axis."""
  kernel = p['conv']['kernel']
  h = jax.lax.conv_general_dilated(
    x_NHWC.astype(kernel.dtype),
    kernel,
    (1, 1),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x_NHWC.shape[-1],
    preferred_element_type=x_NHWC.dtype,
  )
  h = _norm(h + p['conv']['bias'][None, None, None], p['norm'])
  h = respond(jax.nn.gelu(vit.linear(h, p['fc1']), approximate=False), p['grn'])
  return x_NHWC + vit.linear(h, p['fc2'])


def respond(h_NHWC: jax.Array, p: vit.Params) -> jax.Array:
  """Global response normalisation (1)."""
  g = jnp.sqrt(jnp.sum(h_NHWC**2, axis=(1, 2), keepdims=True))
  n = g / (g.mean(axis=-1, keepdims=True) + _EPSILON)
  scale, bias = (p[name][None, None, None] for name in ('scale', 'bias'))
  return h_NHWC + bias + scale * h_NHWC * n


def flops(config: ConvNeXtConfig, size: tuple[int, int]) -> float:
  """FLOPs of products and convolutions for one image of a size, a multiply-add being 2."""
  total, before, positions = 0, 3, size[0] * size[1]
  for i, (depth, c) in enumerate(zip(config.depths, config.widths, strict=True)):
    side = 2 if i else _STEM
    positions //= side**2
    total += positions * (side**2 * before * c + depth * (_KERNEL**2 * c + 8 * c * c))
    before = c
  return 2.0 * total


def make(name: str, config: ConvNeXtConfig, request: base.Request) -> base.Encoder:
  """The encoder with a config.

  Raises:
    UserError: the pixels are not RGB, or a side is not a multiple of 32.
  """
  height, width, channels = request.image_shape
  if channels != 3 or height % STRIDE or width % STRIDE:
    raise types.UserError(
      f'encoder {name!r} takes pixels with 3 channels and sides divisible by {STRIDE}; found '
      f'{height}x{width}x{channels}'
    )

  def apply(params: vit.Params, x_NHWC: jax.Array) -> base.Features:
    wide = jnp.promote_types(request.dtype, jnp.float32)
    f_NHWC = encode(params, preprocess.normalise(x_NHWC.astype(wide)), config).astype(jnp.float32)
    tokens = f_NHWC.reshape(len(f_NHWC), -1, f_NHWC.shape[-1])
    return base.Features(tokens=tokens, summary=tokens.mean(axis=1))

  find = functools.partial(file, name, config, request.weights)
  return base.Encoder(
    name=name,
    params=array_files.unflatten(
      {
        ours: jax.ShapeDtypeStruct(shape, vit.dtype_of(ours, request.dtype))
        for ours, shape in flat_shapes(config).items()
      }
    ),
    apply=apply,
    load=lambda: request.blamed(lambda: load(name, config, request.weights, request.dtype)),
    file=lambda: request.blamed(lambda: location.name(find())),
    image_shape=request.image_shape,
    flops=flops(config, (height, width)),
  )


def file(name: str, config: ConvNeXtConfig, weights: str) -> pathlib.Path:
  """The weights file, see `files.find`."""
  return files.find(name, published(name), weights, LAYOUT.shapes(flat_shapes(config)))


def fits(name: str, arrays: Mapping[str, np.ndarray]) -> bool:
  """Whether arrays by the names of a file are the weights of an encoder."""
  return not LAYOUT.faults(flat_shapes(CONFIGS[name]), files.proper_names(arrays, LAYOUT))


def load(name: str, config: ConvNeXtConfig, weights: str, dtype: str) -> vit.Params:
  """Reads parameters as numpy arrays.

  Raises:
    UserError: as `files.find` and `files.read`.
  """
  dtype_of = functools.partial(vit.dtype_of, dtype=dtype)
  path = file(name, config, weights)
  return array_files.unflatten(files.read(name, path, LAYOUT, flat_shapes(config), dtype_of))


def _down(x_NHWC: jax.Array, p: Mapping[str, jax.Array]) -> jax.Array:
  """A convolution whose windows touch and do not overlap: a product per window."""
  side = p['kernel'].shape[0]
  n, height, width, _ = x_NHWC.shape
  flat = {**p, 'kernel': p['kernel'].reshape(-1, p['kernel'].shape[-1])}
  y_NTC = vit.linear(embed.patchify(x_NHWC, side), flat)
  return y_NTC.reshape(n, height // side, width // side, -1)


def _norm(x_NHWC: jax.Array, p: Mapping[str, jax.Array]) -> jax.Array:
  x_NHWC = norms.normalise(x_NHWC, _EPSILON)
  return x_NHWC * p['scale'][None, None, None] + p['bias'][None, None, None]


for _name, _config in CONFIGS.items():
  base.register(_name, functools.partial(make, _name, _config))
