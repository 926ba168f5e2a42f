"""MAE (arXiv 2111.06377), the encoder.

The weights are the authors' files with the encoder alone. Features are the patch tokens of the last
block *before* the last norm, as in REPA, and the summary is the class token there. REPA has only
'mae-vit-l'. The huge model has patches of 14 pixels and therefore sees resized images.
"""

from diversedit_jax.frozen.encoders import family, files, vit

URL = 'https://dl.fbaipublicfiles.com/mae/pretrain'


CONFIGS = {
  'mae-vit-b': vit.plain(768, 12, 12, patch_size=16, table=14, last_norm=False),
  'mae-vit-l': vit.plain(1024, 24, 16, patch_size=16, table=14, last_norm=False),
  'mae-vit-h': vit.plain(1280, 32, 16, patch_size=14, table=16, last_norm=False),
}
_WORDS = {'b': 'base', 'l': 'large', 'h': 'huge'}


def published(name: str) -> files.Published:
  """The file of an encoder, as 'mae_pretrain_vit_large.pth' (REPA: 'mae_vitl') for 'mae-vit-l'."""
  size = name[-1]
  file = f'mae_pretrain_vit_{_WORDS[size]}.pth'
  return files.Published(file=file, url=f'{URL}/{file}', others=(f'mae_vit{size}',))


FAMILY = family.Family(
  configs=CONFIGS,
  layout=lambda config: files.Layout(names=files.TIMM, unused=('norm.',)),
  published=published,
)
FAMILY.register()
