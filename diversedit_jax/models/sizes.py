"""The published sizes: depth, width and heads; the patch size is in the name.

S, B, L and XL are DiT's (arXiv 2212.09748), which SiT and all others keep; M is MeanFlow's
(2505.13447).
"""

import dataclasses
from typing import Any

from diversedit_jax import trees, types
from diversedit_jax.models import config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
  """Depth L, width D, attention heads, patch size in latent pixels."""

  depth: int
  width: int
  heads: int
  patch_size: int


_SHAPES = {
  'S': (12, 384, 6),
  'B': (12, 768, 12),
  'M': (16, 1024, 16),
  'L': (24, 1024, 16),
  'XL': (28, 1152, 16),
}

SIZES: dict[str, Size] = {
  f'{name}/{patch}': Size(depth=depth, width=width, heads=heads, patch_size=patch)
  for name, (depth, width, heads) in _SHAPES.items()
  for patch in (1, 2, 4, 8)
}


def size(name: str) -> Size:
  """Looks up a size by name, 'S/2' to 'XL/8'.

  Raises:
    UserError: naming the nearest size.
  """
  if name not in SIZES:
    raise types.UserError(f'unknown model size {name!r}{trees.did_you_mean(name, SIZES)}')
  return SIZES[name]


def architecture(name: str, **fields: Any) -> config.Architecture:
  """The architecture of a published size, such as 'XL/2'.

  Args:
    name: see `size`.
    **fields: the rest of the architecture, at least `input_size`.
  """
  return config.Architecture(**dataclasses.asdict(size(name)), **fields)
