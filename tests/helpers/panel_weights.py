"""The networks of FDr6 and CMMD, tiny, with the weights of `tests/golden/summaries_tiny.npz`."""

import dataclasses

from helpers import encoder_files

from diversedit_jax.evaluation import representations
from diversedit_jax.frozen.encoders import convnext

VIT = {'width': 24, 'depth': 2, 'heads': 2, 'hidden': 96}
CHANGES = {
  'convnext': {'depths': (1, 2, 3, 1), 'widths': (6, 12, 24, 48)},
  'dinov2': VIT | {'table': 9},
  'mae': VIT,
  'siglip': VIT | {'hidden': 89},
  'clip': VIT,
}


def patch(monkeypatch, **changes):
  """Makes the networks tiny, those of FDr6 with changes, as of their `side`."""
  tiny = {
    name: dataclasses.replace(one, changes={**one.changes, **CHANGES[name]}, **changes)
    for name, one in representations.REPRESENTATIONS.items()
  }
  monkeypatch.setattr(representations, 'REPRESENTATIONS', tiny)
  config = dataclasses.replace(representations.CMMD_CLIP, **VIT, projection=12)
  monkeypatch.setattr(representations, 'CMMD_CLIP', config)


def write(folder, arrays, *names):
  """Files of weights by their published names; 'clip336' is that of CMMD."""
  for name in names or (*CHANGES, 'clip336'):
    weights = encoder_files.part(arrays, f'{name}/sd/')
    if name == 'clip':
      weights = by_openai(weights)
    if name == 'clip336':
      file = 'ViT-L-14-336px.pt'
    elif name == 'convnext':
      file = f'{convnext.published("convnextv2-b").others[1]}.safetensors'
    else:
      one = representations.REPRESENTATIONS[name]
      file = one.family.published(one.encoder).file
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    encoder_files.write(path, weights)
  return folder


def by_openai(weights):
  """CLIP's weights by the names of OpenAI's file, from timm's."""
  names = {
    'patch_embed.proj.weight': 'conv1.weight',
    'cls_token': 'class_embedding',
    'pos_embed': 'positional_embedding',
    'norm_pre.': 'ln_pre.',
    '.norm1.': '.ln_1.',
    '.norm2.': '.ln_2.',
    '.attn.qkv.': '.attn.in_proj_',
    '.attn.proj.': '.attn.out_proj.',
    '.mlp.fc1.': '.mlp.c_fc.',
    '.mlp.fc2.': '.mlp.c_proj.',
  }
  found = {}
  for name, array in weights.items():
    for timm, theirs in names.items():
      name = name.replace(timm, theirs)
    name = f'ln_post{name[4:]}' if name.startswith('norm.') else name
    name = f'transformer.res{name}' if name.startswith('blocks.') else name
    shape = {'class_embedding': (-1,), 'positional_embedding': array.shape[1:]}
    found[f'visual.{name}'] = array.reshape(shape.get(name, array.shape))
  return found
