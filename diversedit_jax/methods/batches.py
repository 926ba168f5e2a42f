"""What batches hold: the data to learn, pixels beside them; and how a batch is cut.

A batch is a dict of arrays: 'images' [N, H, W, C] (uint8, or float in [-1, 1]), or 'latents'
[N, h, w, c], or their 'moments' [N, h, w, 2c]; 'labels' [N]; and 'pixels' beside latents, which
encoders look at.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diversedit_jax import rng, types
from diversedit_jax.data import images
from diversedit_jax.data import latents as latents_lib


def clean(batch: types.Batch) -> jax.Array:
  """What the model learns to make, [N, H, W, C] float32: images, or latents."""
  return _floating(batch['images' if 'images' in batch else 'latents'])


def sample_latents(
  batch: types.Batch, key: jax.Array, scaling: latents_lib.Scaling | None
) -> types.Batch:
  """The batch with latents drawn from its moments, if it has any; a new draw at every key."""
  if 'moments' not in batch:
    return batch
  rest = {name: x for name, x in batch.items() if name != 'moments'}
  *shape, channels = batch['moments'].shape
  eps_NHWC = rng.normal(key, (*shape, channels // 2))
  return {**rest, 'latents': latents_lib.sample(batch['moments'], eps_NHWC, scaling)}


def pixels(batch: types.Batch) -> jax.Array:
  """Pixels in [-1, 1], float32, whether they are the data or lie beside latents."""
  return _floating(batch['pixels'] if 'pixels' in batch else batch['images'])


def _floating(x_NHWC: jax.Array) -> jax.Array:
  if x_NHWC.dtype == jnp.uint8:
    return images.from_uint8(x_NHWC)
  return x_NHWC.astype(jnp.promote_types(x_NHWC.dtype, jnp.float32))


def microbatches(noisy: Any, n: int) -> Any:
  """[N, ...] -> [n, N/n, ...] by strided rows, so that each part stays spread over the devices."""

  def split(x):
    return jnp.swapaxes(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 0, 1)

  return jax.tree.map(split, noisy)


def mean_metrics(stacked: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """The mean over a leading axis of microbatches."""
  return {k: jnp.mean(v, axis=0) for k, v in stacked.items()}
