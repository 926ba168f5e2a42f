"""DiT as diffusers publishes it (facebook/DiT-XL-2-256): its names, and its folder.

`DiTTransformer2DModel` is DiT's network: adaLN's six vectors, the shift and the scale before the
head, the patches and the order of a patch's outputs are DiT's own. Three things differ:

- The queries, keys and values of a block are three layers, not rows of one.
- Each block holds the embeddings of time and label. They are copies of each other in weights that
  were converted; a network trained by diffusers has different ones, which DiT cannot hold.
- It computes the frequencies of time as 10000^(-k / 127), DiT and we as 10000^(-k / 128), with
  which the published weights were trained.
"""

from collections.abc import Mapping
import json
import pathlib
import re
from typing import Any

import numpy as np

from diversedit_jax import types
from diversedit_jax.data import files
from diversedit_jax.models import sizes
from diversedit_jax.weights import array_files

ANCHOR = 'pos_embed.proj.weight'
FILE, SETTINGS = 'diffusion_pytorch_model.safetensors', 'config.json'

_WHOLE = {
  'pos_embed.proj': 'x_embedder.proj',
  'proj_out_1': 'final_layer.adaLN_modulation.1',
  'proj_out_2': 'final_layer.linear',
}
_EMBEDDERS = {
  'norm1.emb.timestep_embedder.linear_1': 't_embedder.mlp.0',
  'norm1.emb.timestep_embedder.linear_2': 't_embedder.mlp.2',
  'norm1.emb.class_embedder.embedding_table': 'y_embedder.embedding_table',
}
_BLOCK = {
  'norm1.linear': 'adaLN_modulation.1',
  'attn1.to_out.0': 'attn.proj',
  'ff.net.0.proj': 'mlp.fc1',
  'ff.net.2': 'mlp.fc2',
}
_QKV = ('attn1.to_q', 'attn1.to_k', 'attn1.to_v')
_NAME = re.compile(r'(?:transformer_blocks\.(\d+)\.)?(.+)\.(weight|bias)')
# The settings of which DiT has a single value.
_SUPPORTED = {
  'norm_type': 'ada_norm_zero',
  'activation_fn': 'gelu-approximate',
  'attention_bias': True,
  'norm_elementwise_affine': False,
}


def recognises(names: Mapping[str, Any]) -> bool:
  """Whether names are those of diffusers' DiT."""
  return any(f'transformer_blocks.0.{layer}.weight' in names for layer in _EMBEDDERS)


def to_dit(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
  """Arrays by DiT's own names; those by other names stay as they are.

  Raises:
    UserError: the blocks have different embeddings.
  """
  if not recognises(arrays):
    return arrays
  named: dict[str, np.ndarray] = {}
  for name, array in arrays.items():
    match = _NAME.fullmatch(name)
    block, layer, leaf = match.groups() if match else (None, None, None)
    if block is None:
      its = f'{_WHOLE[layer]}.{leaf}' if layer in _WHOLE else name
    elif layer in _EMBEDDERS:
      its = f'{_EMBEDDERS[layer]}.{leaf}'
      if its in named and not np.array_equal(named[its], array):
        raise types.UserError(
          f'{name} differs between the blocks, as in a network that diffusers trained; DiT and our '
          'model have one embedding of time and one of labels for all blocks'
        )
    elif layer in _QKV:
      three = [arrays.get(f'transformer_blocks.{block}.{one}.{leaf}') for one in _QKV]
      whole = len({np.shape(x) for x in three}) == 1 and three[0].ndim > 0
      its = f'blocks.{block}.attn.qkv.{leaf}' if whole else name
      array = np.concatenate(three) if whole and its not in named else array
    else:
      its = f'blocks.{block}.{_BLOCK[layer]}.{leaf}' if layer in _BLOCK else name
    named.setdefault(its, array)
  return named


def from_dit(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The inverse of `to_dit`; the position table is left out, which diffusers computes."""
  back = lambda table: {theirs: name for name, theirs in table.items()}
  whole, block_layers, embedders = back(_WHOLE), back(_BLOCK), back(_EMBEDDERS)
  blocks = sorted({int(m[1]) for name in arrays if (m := re.match(r'blocks\.(\d+)\.', name))})
  named: dict[str, np.ndarray] = {}
  for name, array in arrays.items():
    layer, _, leaf = name.rpartition('.')
    match = re.fullmatch(r'blocks\.(\d+)\.(.+)', layer)
    if match and match[2] == 'attn.qkv':
      for one, part in zip(_QKV, np.split(array, 3), strict=True):
        named[f'transformer_blocks.{match[1]}.{one}.{leaf}'] = part
    elif match:
      named[f'transformer_blocks.{match[1]}.{block_layers[match[2]]}.{leaf}'] = array
    elif layer in embedders:
      for block in blocks:
        named[f'transformer_blocks.{block}.{embedders[layer]}.{leaf}'] = array
    elif layer in whole:
      named[f'{whole[layer]}.{leaf}'] = array
  return named


def read_settings(file: pathlib.Path) -> dict[str, Any]:
  """The `config.json` beside a file; {} without one.

  Raises:
    UserError: it is unreadable, or of a network that only has DiT's names.
  """
  path = file.with_name(SETTINGS)
  if not path.is_file():
    return {}
  found = files.read_json(path)
  for key, value in _SUPPORTED.items():
    if found.get(key, value) != value:
      raise types.UserError(
        f"{path} says {key}={found[key]!r}; DiT's network has {value!r}, and no other is read"
      )
  return found


def check_output(folder: pathlib.Path) -> None:
  """Refuses a folder to write that is not new or empty (UserError)."""
  if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
    raise types.UserError(f'{folder} exists and is not overwritten; name a new folder')
  if not folder.parent.is_dir():
    raise types.UserError(f'no folder {folder.parent} to write {folder.name} in')


def save(
  folder: pathlib.Path,
  arrays: Mapping[str, np.ndarray],
  config: Mapping[str, Any],
  grid: tuple[int, int],
) -> None:
  """Writes a folder that `DiTTransformer2DModel.from_pretrained` reads.

  Args:
    folder: new or empty.
    arrays: by DiT's own names.
    config: the sizes from `mapping.infer_config`; heads may be unknown.
    grid: rows and columns of tokens, which must be as many.

  Raises:
    UserError: the folder is neither, the grid is no square, or the heads are unknown or do not
      divide the width.
  """
  check_output(folder)
  heads = config['heads'] or _published_heads(config)
  if not heads or config['width'] % heads:
    raise types.UserError(
      f'the weights do not tell the attention heads of width {config["width"]}, which {SETTINGS} '
      f'needs: give --heads{f", a divisor; given {heads}" if heads else ""}'
    )
  if grid[0] != grid[1]:
    raise types.UserError(f'diffusers has square pictures only; given --grid={grid[0]}x{grid[1]}')
  folder.mkdir(exist_ok=True)
  array_files.save(folder / FILE, from_dit(arrays))
  settings = json.dumps(_settings(config, heads, grid[0] * config['patch_size']), indent=2)
  (folder / SETTINGS).write_text(f'{settings}\n', encoding='utf-8')


def _published_heads(config) -> int | None:
  shape = config['depth'], config['width']
  return next((s.heads for s in sizes.SIZES.values() if (s.depth, s.width) == shape), None)


def _settings(config, heads, side) -> dict[str, Any]:
  channels = config['channels']
  return {
    '_class_name': 'DiTTransformer2DModel',
    **_SUPPORTED,
    'attention_head_dim': config['width'] // heads,
    'dropout': 0.0,
    'in_channels': channels,
    'norm_eps': 1e-6,
    'num_attention_heads': heads,
    'num_embeds_ada_norm': config['num_classes'],
    'num_layers': config['depth'],
    'out_channels': channels * (2 if config['learn_sigma'] else 1),
    'patch_size': config['patch_size'],
    'sample_size': side,
    'upcast_attention': False,
  }
