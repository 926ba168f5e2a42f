"""SigLIP 2 (arXiv 2502.14786), the image encoders for 256 x 256 pixels.

Features are the patch tokens after the last norm; there is no class token, and the summary is what
the pooling head makes of them. Pixels are given in [-1, 1]. Files are read by timm's names and by
those of transformers, which the authors publish, texts and all.
"""

import re

import jax
import numpy as np

from diversedit_jax.frozen.encoders import family, files, preprocess, vit

HUB = 'https://huggingface.co'
_PARTS = {'class_token': False, 'pooling': True, 'mlp': 'gelu_tanh'}
_PATCHES = {'patch_size': 16, 'table': 16}

CONFIGS = {
  'siglip2-vit-b': vit.plain(768, 12, 12, **_PATCHES, **_PARTS),
  'siglip2-vit-l': vit.plain(1024, 24, 16, **_PATCHES, **_PARTS),
  'siglip2-vit-so400m': vit.ViTConfig(
    width=1152, depth=27, heads=16, hidden=4304, layer_scale=False, **_PATCHES, **_PARTS
  ),
}
# name -> timm's, Google's
_PLACES = {
  'siglip2-vit-b': ('vit_base_patch16_siglip_256', 'siglip2-base-patch16-256'),
  'siglip2-vit-l': ('vit_large_patch16_siglip_256', 'siglip2-large-patch16-256'),
  'siglip2-vit-so400m': ('vit_so400m_patch16_siglip_256', 'siglip2-so400m-patch16-256'),
}
_LAYER = r'encoder\.layers\.(\d+)\.'
# Names of transformers, as patterns, and timm's.
_TRANSFORMERS = (
  (r'embeddings\.patch_embedding\.', 'patch_embed.proj.'),
  (r'embeddings\.position_embedding\.weight', 'pos_embed'),
  (_LAYER + r'layer_norm(\d)\.', r'blocks.\1.norm\2.'),
  (_LAYER + r'self_attn\.out_proj\.', r'blocks.\1.attn.proj.'),
  (_LAYER + r'self_attn\.', r'blocks.\1.attn.'),
  (_LAYER, r'blocks.\1.'),
  (r'post_layernorm\.', 'norm.'),
  (r'head\.probe', 'attn_pool.latent'),
  (r'head\.attention\.out_proj\.', 'attn_pool.proj.'),
  (r'head\.attention\.in_proj_', 'attn_pool.qkv.'),
  (r'head\.layernorm\.', 'attn_pool.norm.'),
  (r'head\.', 'attn_pool.'),
)


def from_transformers(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Arrays by timm's names; those of transformers are renamed, joined and cut as timm has them."""
  if 'pos_embed' in arrays:
    return arrays
  found = {}
  for name, array in arrays.items():
    for pattern, theirs in _TRANSFORMERS:
      if match := re.match(pattern, name):
        name = match.expand(theirs) + name[match.end() :]
        break
    found[name] = array
  if 'pos_embed' in found:
    found['pos_embed'] = found['pos_embed'][None]
  for name in [name for name in found if '.attn.q_proj.' in name]:
    parts = [found.pop(name.replace('.q_proj.', f'.{its}_proj.'), None) for its in 'qkv']
    if all(part is not None for part in parts):
      found[name.replace('.q_proj.', '.qkv.')] = np.concatenate(parts)
  for kind in ('weight', 'bias'):
    if (joined := found.pop(f'attn_pool.qkv.{kind}', None)) is not None:
      width = len(joined) // 3
      found |= {f'attn_pool.q.{kind}': joined[:width], f'attn_pool.kv.{kind}': joined[width:]}
  return found


LAYOUT = files.Layout(
  names={
    **{ours: theirs for ours, theirs in files.TIMM.items() if ours != 'class_token'},
    'pool/query': 'attn_pool.latent',
    **{
      f'pool/{ours}/{kind}': f'attn_pool.{theirs}.{its}'
      for ours, theirs in (('q', 'q'), ('kv', 'kv'), ('proj', 'proj'), ('norm', 'norm'))
      + (('fc1', 'mlp.fc1'), ('fc2', 'mlp.fc2'))
      for kind, its in (('scale' if ours == 'norm' else 'kernel', 'weight'), ('bias', 'bias'))
    },
  },
  prefix='vision_model.',
  translate=from_transformers,
)


def published(name: str) -> files.Published:
  """The file of an encoder, as timm publishes it; the authors' will do too."""
  timm, google = _PLACES[name]
  stem = f'{timm}.v2_webli'
  return files.Published(
    file=f'{stem}/model.safetensors',
    url=f'{HUB}/timm/{stem} (and, with the text encoder, at {HUB}/google/{google})',
    by='timm publishes it',
    others=(stem, f'{google}/model', google, 'model'),
  )


def pixels(x_NHWC: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Pixels in [-1, 1], resized and not normalised."""
  return preprocess.resize(x_NHWC, *size)


FAMILY = family.Family(
  configs=CONFIGS, layout=lambda config: LAYOUT, published=published, pixels=pixels
)
FAMILY.register()
