"""MoCo v3 (arXiv 2104.02057), the encoder that was trained by gradients.

The weights are checkpoints of the training with two encoders; `base_encoder` is read. The authors
publish ViT-S and ViT-B. ViT-L comes from RCG (arXiv 2312.03701); some layers of two blocks have
wrong names in its file. Features are the patch tokens after the last norm, the summary is the class
token.
"""

from diversedit_jax.frozen.encoders import family, files, vit

URL = 'https://dl.fbaipublicfiles.com/moco-v3'
RCG_URL = 'https://drive.google.com/file/d/1Foa2-FqhwIFYjcAAbY9sXyO-1Vwwx-_9'


CONFIGS = {
  'mocov3-vit-s': vit.plain(384, 12, 12, patch_size=16, table=14),
  'mocov3-vit-b': vit.plain(768, 12, 12, patch_size=16, table=14),
  'mocov3-vit-l': vit.plain(1024, 24, 16, patch_size=16, table=14),
}

LAYOUT = files.Layout(
  names=files.TIMM,
  parts=('state_dict',),
  prefix='base_encoder.',
  unused=('head.',),
  misnamed={
    'blocks.13.norm13.': 'blocks.13.norm1.',
    'blocks.13.mlp.fc13.': 'blocks.13.mlp.fc1.',
    'blocks.14.norm14.': 'blocks.14.norm2.',
    'blocks.14.mlp.fc14.': 'blocks.14.mlp.fc2.',
  },
)


def published(name: str) -> files.Published:
  """The file of an encoder, as 'vit-b-300ep.pth.tar' (REPA: 'mocov3_vitb') for 'mocov3-vit-b'."""
  size = name[-1]
  others = (f'mocov3_vit{size}',)
  if size == 'l':
    by = 'RCG (github.com/LTH14/rcg) publishes it'
    return files.Published(file='vitl.pth.tar', url=RCG_URL, by=by, others=others, training=True)
  file = f'vit-{size}-300ep.pth.tar'
  url = f'{URL}/vit-{size}-300ep/{file}'
  return files.Published(file=file, url=url, others=(*others, f'vit{size}'), training=True)


FAMILY = family.Family(configs=CONFIGS, layout=lambda config: LAYOUT, published=published)
FAMILY.register()
