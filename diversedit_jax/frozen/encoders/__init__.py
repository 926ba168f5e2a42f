"""Frozen encoders of images by name: `open_encoder('dinov2-vit-b', Request(...))`; see `base`."""

from diversedit_jax.frozen.encoders import (
  clip,
  convnext,
  dinov2,
  ijepa,
  mae,
  mocov3,
  pca,
  siglip2,
)
from diversedit_jax.frozen.encoders.base import Encoder, Features, Request, open_encoder, register

# An encoder's module registers its names when it is imported.
__all__ = [
  'Encoder',
  'Features',
  'Request',
  'clip',
  'convnext',
  'dinov2',
  'ijepa',
  'mae',
  'mocov3',
  'open_encoder',
  'pca',
  'register',
  'siglip2',
]
