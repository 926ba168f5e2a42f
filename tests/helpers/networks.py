"""Configs of small networks: from the fields of both, and those of the reference arrays."""

from collections.abc import Callable
import dataclasses
import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax.models import config

SKIP = config.Skip(enabled=True)
SKIP_BEFORE = config.Skip(enabled=True, placement='before')
NO_SKIP = config.Skip()


def parts(**fields):
  """(Architecture, Execution) of fields of both."""
  how = {field.name for field in dataclasses.fields(config.Execution)}
  return (
    config.Architecture(**{k: v for k, v in fields.items() if k not in how}),
    config.Execution(**{k: v for k, v in fields.items() if k in how}),
  )


def of_golden(arrays, **fields):
  """The Architecture of a file of reference arrays, by its config; fields: what that lacks."""
  spec = json.loads(str(arrays['config']))
  return config.Architecture(
    input_size=(spec['input_size'],) * 2,
    depth=spec['depth'],
    width=spec['hidden_size'],
    heads=spec['num_heads'],
    patch_size=spec['patch_size'],
    channels=spec['in_channels'],
    num_classes=spec['num_classes'],
    learn_sigma=spec.get('learn_sigma', False),
    qk_norm=spec.get('qk_norm', False),
    **fields,
  )


def randomised(make: Callable[[nnx.Rngs], nnx.Module], *, scale: float, dtype=None, seed=0):
  """A module whose parameters are N(0, scale^2), drawn by numpy, in their own dtype or another.

  Fresh blocks are the identity: their zeros and ones would hide mistakes.
  """
  graphdef, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
  draw = np.random.default_rng(seed).normal
  filled = lambda x: jnp.asarray(scale * draw(size=x.shape), dtype or x.dtype)
  return nnx.merge(graphdef, jax.tree.map(filled, state))
