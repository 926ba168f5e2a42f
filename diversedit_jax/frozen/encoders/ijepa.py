"""I-JEPA (arXiv 2301.08243), ViT-H/14 trained on ImageNet-1K.

The weights file is a checkpoint of the training; its part `encoder` is read, as in REPA, not
`target_encoder`. There is no class token, hence no summary: features are all tokens after the last
norm. The fixed position table is used as it is: 256 x 256 pixels only.
"""

from diversedit_jax.frozen.encoders import family, files, vit

FILE = 'IN1K-vit.h.14-300e.pth.tar'
URL = f'https://dl.fbaipublicfiles.com/ijepa/{FILE}'

CONFIGS = {'ijepa-vit-h': vit.plain(1280, 32, 16, table=16, class_token=False)}

FAMILY = family.Family(
  configs=CONFIGS,
  layout=lambda config: files.Layout(names=files.TIMM, parts=('encoder',)),
  published=lambda name: files.Published(
    file=FILE, url=URL, others=('ijepa_vith',), size=10.36e9, training=True
  ),
  resampled=False,
)
FAMILY.register()
