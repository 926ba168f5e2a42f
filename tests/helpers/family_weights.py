"""A small state dict of every family, under the names that its system's program gives."""

import numpy as np

from diversedit_jax.models import embed, rotary

FAMILIES = (
  *('sit', 'reg', 'sra', 'meanflow', 'sit_original', 'selfflow', 'lightning', 'rae', 'ddt'),
  *('raev2', 'dit'),
)
_HEADS = {'lightning': (4, None), 'rae': (4, None), 'ddt': (2, 2), 'raev2': (3, 2)}
_FILES = {'sit': 'sit_skip', 'reg': 'reg', 'sit_original': 'dit_sit_original'}
_WIDE = {'ddt': 'ddt', 'raev2': 'v2'}
_FILES['dit'] = _FILES['sit_original']


def of(family, golden):
  """Arrays by name; all have a 4 x 4 grid, of patches of side 2, or 1 for wide heads."""
  if family in _WIDE:
    name = f'{_WIDE[family]}/params/'
    found = golden('ddt').items()
    return with_our_tables({n.removeprefix(name): x for n, x in found if n.startswith(name)})
  if family == 'sra':
    return sra(golden)
  if family == 'selfflow':
    return selfflow(parameters(golden(_FILES['sit_original'])))
  if family == 'meanflow':
    return meanflow(parameters(golden('sit_plain')))
  if family == 'lightning':
    return lightning(parameters(golden('sit_plain')))
  if family == 'rae':
    return rae(lightning(parameters(golden('sit_plain'))))
  return parameters(golden(_FILES[family]))


def heads(family):
  """The attention heads that only tables of rotary positions tell, for `convert.to_torch`."""
  return dict(zip(('heads', 'decoder_heads'), _HEADS.get(family, (None, None)), strict=True))


def parameters(archive):
  """The state dict in a file of reference arrays."""
  return {n.removeprefix('params/'): x for n, x in archive.items() if n.startswith('params/')}


def sra(golden):
  """The head of the reference on a SiT of its width, cut from another one."""
  head = parameters(golden('sra'))
  plain, width = parameters(golden('sit_plain')), head['ap_head.linear1.weight'].shape[1]
  cut = {64: width, 192: 3 * width, 256: 4 * width, 384: 6 * width, 128: 2 * width}

  def shrunk(name, x):
    kept = [cut.get(n, n) for n in x.shape]
    if name == 't_embedder.mlp.0.weight':
      kept[1] = embed.TIME_FREQUENCIES
    return x[tuple(slice(n) for n in kept)]

  body = {n: shrunk(n, x) for n, x in plain.items() if not n.startswith('projectors')}
  return body | head | {'pos_embed': embed.position_table(4, 4, width)[None]}


def selfflow(original):
  """The original SiT with its patches as a matrix, and a head."""
  patches, draw = 'x_embedder.proj.weight', np.random.default_rng(0).normal
  width = len(original[patches])
  head = {
    f'projector.linear{i + 1}.{name}': draw(size=shape).astype(np.float32)
    for i, (fan_in, out) in enumerate(((width, 2 * width), (2 * width, width)))
    for name, shape in (('weight', (out, fan_in)), ('bias', (out,)))
  }
  return original | head | {patches: original[patches].reshape(width, -1)}


def lightning(plain):
  """LightningDiT's names and shapes around what a plain SiT has too."""
  body = {n: x for n, x in plain.items() if '.mlp.fc' not in n and not n.startswith('projectors')}
  width, draw = len(plain['x_embedder.proj.bias']), np.random.default_rng(0).standard_normal
  hidden = int(2 / 3 * 4 * width)
  shapes = {'final_layer.norm_final.weight': (width,)}
  for i in range(4):
    shapes |= {f'blocks.{i}.norm{n}.weight': (width,) for n in (1, 2)}
    for name, out, fan_in in (('w12', 2 * hidden, width), ('w3', width, hidden)):
      shapes[f'blocks.{i}.mlp.{name}.weight'] = (out, fan_in)
      shapes[f'blocks.{i}.mlp.{name}.bias'] = (out,)
  cos, sin = rotary.tables(4, 4, width // _HEADS['lightning'][0])
  tables = {'feat_rope.freqs_cos': cos, 'feat_rope.freqs_sin': sin}
  return body | tables | {n: draw(shape).astype(np.float32) for n, shape in shapes.items()}


def rae(lightning):
  """LightningDiT's names and shapes with RAE's time embedding."""
  draw, first = np.random.default_rng(1).standard_normal, 't_embedder.mlp.0.weight'
  shapes = {'t_embedder.W': (256,), first: (len(lightning[first]), 512)}
  return lightning | {n: draw(shape).astype(np.float32) for n, shape in shapes.items()}


def with_our_tables(arrays):
  """Tables of positions as we compute them, equal but for rounding."""
  made = {'pos_embed': lambda x: embed.position_table(4, 4, x.shape[-1])[None]}
  for module in ('enc_feat_rope', 'dec_feat_rope', 'enc_rope', 'dec_rope'):
    for i, of in enumerate(('cos', 'sin')):
      still = lambda x, i=i: np.full((len(x) - 16, x.shape[1]), 1.0 - i, np.float32)
      turned = lambda x, i=i: rotary.tables(4, 4, x.shape[1])[i]
      made[f'{module}.freqs_{of}'] = lambda x, a=turned, b=still: np.concatenate([a(x), b(x)])
  return {name: made[name](x) if name in made else x for name, x in arrays.items()}


def meanflow(plain):
  """MeanFlow's Flax parameters with the numbers of a plain SiT, and others for the interval."""
  flat = {
    'net/x_embedder/proj/kernel': plain['x_embedder.proj.weight'].transpose(2, 3, 1, 0),
    'net/x_embedder/proj/bias': plain['x_embedder.proj.bias'],
    'net/y_embedder/embedding_table/_flax_embedding/embedding': plain[
      'y_embedder.embedding_table.weight'
    ],
  }

  def linear(theirs, name, change=lambda x: x):
    flat[f'net/{theirs}/_flax_linear/kernel'] = change(plain[f'{name}.weight'].T)
    flat[f'net/{theirs}/_flax_linear/bias'] = change(plain[f'{name}.bias'])

  for i in (0, 2):
    linear(f't_embedder/mlp/layers_{i}', f't_embedder.mlp.{i}')
    linear(f'h_embedder/mlp/layers_{i}', f't_embedder.mlp.{i}', lambda x: np.flip(x) / 2)
  for i in range(4):
    for layer in ('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2'):
      linear(f'blocks/layers_{i}/{layer.replace(".", "/")}', f'blocks.{i}.{layer}')
    linear(f'blocks/layers_{i}/adaLN_modulation/layers_1', f'blocks.{i}.adaLN_modulation.1')
  linear('final_layer/adaLN_modulation/layers_1', 'final_layer.adaLN_modulation.1')
  linear('final_layer/linear', 'final_layer.linear')
  return flat
