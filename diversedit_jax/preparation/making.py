"""What a store keeps of a picture beside its pixels: moments, latents, or an encoder's tokens.

A VAE gives the mean and standard deviation of its latents, from which training draws. A DC-AE gives
the latents themselves, scaled for the model, and so does an encoder (`frozen.rae`).
"""

from collections.abc import Callable
import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp

from diversedit_jax.data import latents
from diversedit_jax.data.store import layout
from diversedit_jax.frozen import autoencoders, rae


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Making:
  """A column of a store, and what makes it.

  column: its name. shape: of one record. facts: for the plan, as JSON has them.
  params: weights on the host. apply: pure function (params, x_NHWC in [-1, 1]) -> [n, *shape].
  """

  column: layout.Column
  shape: tuple[int, int, int]
  facts: dict[str, Any]
  params: Any
  apply: Callable[[Any, jax.Array], jax.Array]


def encoded(autoencoder: autoencoders.Autoencoder, size: int) -> Making:
  """The moments of an autoencoder's latents, or the latents, for pictures of a side."""
  config, side = autoencoder.config, size // autoencoder.config.factor
  facts = {
    'file': autoencoder.file,
    'encoder_sha256': autoencoder.encoder_sha256,
    'scale': config.scale,
    'shift': config.shift,
    'dtype': autoencoder.dtype,
    'config': config.facts(),
  }

  def apply(params: Any, x_NHWC: jax.Array) -> jax.Array:
    found = autoencoder.encode(params, x_NHWC).astype(jnp.float32)
    return latents.mean_std(found) if config.drawn else config.scaling.apply(found)

  return Making(
    column='moments' if config.drawn else 'latents',
    shape=(side, side, config.latent_channels * (2 if config.drawn else 1)),
    facts=json.loads(json.dumps(facts)),  # As they will be read back, with lists for tuples.
    params=autoencoder.params,
    apply=apply,
  )


def tokens(of: rae.Latents) -> Making:
  """The normalised tokens of an encoder."""
  tokenizer, request = of.tokenizer(), of.encoder.request

  def apply(params: Any, x_NHWC: jax.Array) -> jax.Array:
    return tokenizer.apply(params, x_NHWC).tokens.reshape(-1, *of.shape)

  return Making(
    column='latents',
    shape=of.shape,
    facts={**of.facts(True), 'file': tokenizer.file(), 'dtype': request.dtype},
    params=tokenizer.load(),
    apply=apply,
  )
