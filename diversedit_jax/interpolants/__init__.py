"""Paths from data to noise, laws of the training time, conversions between predictions."""

from diversedit_jax.interpolants import convert  # The module: convert.convert(...).
from diversedit_jax.interpolants.paths import (
  PATHS,
  Path,
  cosine,
  interpolate,
  linear,
  velocity_target,
  vp,
)
from diversedit_jax.interpolants.times import TIME_LAWS

__all__ = [
  'PATHS',
  'TIME_LAWS',
  'Path',
  'convert',
  'cosine',
  'interpolate',
  'linear',
  'velocity_target',
  'vp',
]
