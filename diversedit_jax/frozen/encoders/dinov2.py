"""DINOv2 (arXiv 2304.07193), with and without registers (2309.16588).

The weights are the authors' own hub files. Features are the patch tokens after the last norm, the
summary is the class token; registers are left out.
"""

import dataclasses

from diversedit_jax.frozen.encoders import family, files, vit

URL = 'https://dl.fbaipublicfiles.com/dinov2'

_SIZES = {
  's': vit.ViTConfig(width=384, depth=12, heads=6, hidden=4 * 384),
  'b': vit.ViTConfig(width=768, depth=12, heads=12, hidden=4 * 768),
  'l': vit.ViTConfig(width=1024, depth=24, heads=16, hidden=4 * 1024),
  'g': vit.ViTConfig(width=1536, depth=40, heads=24, hidden=4096, mlp='swiglu'),
}
CONFIGS = {f'dinov2-vit-{size}': config for size, config in _SIZES.items()} | {
  f'dinov2reg-vit-{size}': dataclasses.replace(config, registers=4)
  for size, config in _SIZES.items()
}

_LAYOUT = files.Layout(
  names={
    **files.TIMM,
    'registers': 'register_tokens',
    'blocks/scale1': 'blocks.{}.ls1.gamma',
    'blocks/scale2': 'blocks.{}.ls2.gamma',
  },
  unused=('mask_token',),  # Every file has it; only DINOv2's own training uses it.
)
_SWIGLU = dataclasses.replace(
  _LAYOUT,
  names={
    ours: theirs.replace('mlp.fc1', 'mlp.w12').replace('mlp.fc2', 'mlp.w3')
    for ours, theirs in _LAYOUT.names.items()
  },
)


def published(name: str) -> files.Published:
  """The file of an encoder, as 'dinov2_vitb14_reg4_pretrain.pth' for 'dinov2reg-vit-b'."""
  kind, _, size = name.rpartition('-vit-')
  folder = f'dinov2_vit{size}14'
  file = f'{folder}{"_reg4" if kind == "dinov2reg" else ""}_pretrain.pth'
  return files.Published(file=file, url=f'{URL}/{folder}/{file}')


FAMILY = family.Family(
  configs=CONFIGS,
  layout=lambda config: _SWIGLU if config.mlp == 'swiglu' else _LAYOUT,
  published=published,
)
FAMILY.register()
