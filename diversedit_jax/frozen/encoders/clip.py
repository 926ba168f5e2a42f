"""CLIP (arXiv 2103.00020), OpenAI's ViT-L/14: the image encoder.

The weights file is a TorchScript program; its tensors are read and its code is not. A state dict
with the same names will do too. Features are the patch tokens of the last block, without CLIP's
last norm and projection, as in REPA, and the summary is the class token there. The position table
is used as it is: 256 x 256 pixels only, and 384 x 384 for the encoder that was tuned at 336.
"""

import dataclasses

from diversedit_jax.frozen.encoders import family, files, preprocess, vit

URL = 'https://openaipublic.azureedge.net/clip/models'
# name -> folder at the publisher, file, bytes
_PLACES = {
  'clip-vit-l': (
    'b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836',
    'ViT-L-14.pt',
    932_768_134,
  ),
  'clip-vit-l-336': (
    '3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02',
    'ViT-L-14-336px.pt',
    932_768_134 + 2 * 1024 * (24**2 - 16**2),  # The same in half precision, with more positions.
  ),
}
_BASE = vit.plain(
  1024,
  24,
  16,
  table=16,
  mlp='quick_gelu',
  patch_bias=False,
  first_norm=True,
  last_norm=False,
  epsilon=1e-5,
)
CONFIGS = {'clip-vit-l': _BASE, 'clip-vit-l-336': dataclasses.replace(_BASE, table=24)}

LAYOUT = files.Layout(
  names={
    'patches/kernel': 'conv1.weight',
    'class_token': 'class_embedding',
    'positions': 'positional_embedding',
    'first_norm/scale': 'ln_pre.weight',
    'first_norm/bias': 'ln_pre.bias',
    'norm/scale': 'ln_post.weight',
    'norm/bias': 'ln_post.bias',
    'projection': 'proj',
    **{
      f'blocks/{ours}': f'transformer.resblocks.{{}}.{theirs}'
      for ours, theirs in {
        'norm1/scale': 'ln_1.weight',
        'norm1/bias': 'ln_1.bias',
        'qkv/kernel': 'attn.in_proj_weight',
        'qkv/bias': 'attn.in_proj_bias',
        'proj/kernel': 'attn.out_proj.weight',
        'proj/bias': 'attn.out_proj.bias',
        'norm2/scale': 'ln_2.weight',
        'norm2/bias': 'ln_2.bias',
        'fc1/kernel': 'mlp.c_fc.weight',
        'fc1/bias': 'mlp.c_fc.bias',
        'fc2/kernel': 'mlp.c_proj.weight',
        'fc2/bias': 'mlp.c_proj.bias',
      }.items()
    },
  },
  parts=('state_dict', 'model'),
  prefix='visual.',
  unused=('ln_post.', 'proj'),
  leading=False,
)


def published(name: str) -> files.Published:
  """The file of an encoder."""
  folder, file, size = _PLACES[name]
  url = f'{URL}/{folder}/{file}'
  return files.Published(file=file, url=url, by='OpenAI publishes it', size=size)


FAMILY = family.Family(
  configs=CONFIGS,
  layout=lambda config: LAYOUT,
  published=published,
  pixels=preprocess.clip,
  resampled=False,
)
FAMILY.register()
