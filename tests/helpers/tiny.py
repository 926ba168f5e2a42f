"""A tiny network, batches and stand-ins for networks, shared by the tests of the methods.

Weights and data come from numpy, so that they do not depend on the version of JAX.
"""

import types as python_types

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import interpolants, types
from diversedit_jax.interpolants import section, times
from diversedit_jax.methods import base, flow, haste, meanflow, reg, repa, selfflow, sra
from diversedit_jax.models import config, taps
from diversedit_jax.sampling import trajectory

CLASSES = 5
WIDTHS = {'enc': 6, 'other': 3}
"""Encoders of `batch` and the width of their features."""

# Terms and flows for two blocks.
REPA = repa.Repa(
  aligned=(
    repa.Pair(encoder='enc', block=2, width=WIDTHS['enc']),
    repa.Pair(encoder='other', block=1, width=WIDTHS['other']),
  ),
  hidden=8,
)
TOKEN = repa.Repa(aligned=REPA.aligned[:1], hidden=8, class_token=True)
HASTE = haste.Haste(pairs='1:2,2:1', encoder='enc', teacher=(4, 3, 5))
SRA = sra.Sra(student_block=1, teacher_block=2, steps_per_epoch=1)


def reg_flow(**fields):
  """REG on the linear path."""
  return reg.Reg(**({'null_label': CLASSES, 'encoder': 'enc'} | fields))


MEANFLOW_TIMES = times.LogitNormal(mean=-0.4)


def mean_flow(**fields):
  """MeanFlow with its defaults."""
  return meanflow.MeanFlow(**({'time_law': MEANFLOW_TIMES, 'null_label': CLASSES} | fields))


def self_flow(model=None, cls=selfflow.SelfFlow, **fields):
  """Self-Flow as a run would have it, on the linear path, for `architecture` or another."""
  setup = python_types.SimpleNamespace(
    architecture=model or architecture(), interpolant=section.Interpolant(), label_dropout=0.1
  )
  return cls(**fields).prepare(setup)


EXECUTION = config.Execution(attention='xla')


def architecture(**fields):
  """Two blocks of width 16 on four tokens."""
  defaults = dict(
    input_size=(4, 4),
    channels=1,
    num_classes=CLASSES,
    depth=2,
    width=16,
    heads=2,
    patch_size=2,
  )
  return config.Architecture(**(defaults | fields))


def interpolant(**fields):
  """Velocities on the linear path, uniform times."""
  defaults = dict(path=interpolants.linear(), time_law=times.Uniform(), null_label=CLASSES)
  return flow.StochasticInterpolant(**(defaults | fields))


def batch(n=4, dtype=np.float32, shape=(4, 4, 1), space='images'):
  """n examples with the features that two frozen encoders would give."""
  generator = np.random.default_rng(7)
  made = {
    space: jnp.asarray(generator.uniform(-1, 1, (n, *shape)), dtype),
    'labels': jnp.arange(n, dtype=jnp.int32) % CLASSES,
  }
  for name, width in WIDTHS.items():
    made[f'{name}/tokens'] = jnp.asarray(generator.standard_normal((n, 4, width)), dtype)
    made[f'{name}/summary'] = jnp.asarray(generator.standard_normal((n, width)), dtype)
  for name in ('queries/1', 'queries/2', 'keys/1', 'keys/2'):
    made[f'enc/{name}'] = jnp.asarray(generator.standard_normal((n, *HASTE.teacher)), dtype)
  return made


def parameters(architecture, terms=(), dtype=np.float32, seed=1):
  """(graphdef, params) of a network without zeros, which would hide mistakes.

  Kernels keep the size of what they multiply; all else is of order 0.3.
  """
  graphdef, state = nnx.split(
    nnx.eval_shape(lambda: base.Network(architecture, EXECUTION, tuple(terms), rngs=nnx.Rngs(0))),
    nnx.Param,
  )
  generator = np.random.default_rng(seed)

  def fill(path, shape):
    value, name = generator.standard_normal(shape.shape), path[-1].key
    if name == 'kernel':
      fan_in = shape.shape[-3 if path[-2].key == 'qkv' else -2]
      value = value / np.sqrt(fan_in)
    else:
      value = 0.3 * value + (name == 'scale')
    return jnp.asarray(value, dtype)

  return graphdef, jax.tree_util.tree_map_with_path(fill, nnx.to_pure_dict(state))


class Model:
  """A model that says what it is told, and remembers what it was asked."""

  def __init__(self, pred, blocks=(), class_token=None, **architecture):
    """pred: an array, or a function of (x, t, y). blocks: what they put out, [N, T, D] each."""
    self.pred, self.blocks, self.class_token, self.calls = pred, blocks, class_token, []
    self.architecture = python_types.SimpleNamespace(depth=len(blocks), **architecture)

  def __call__(self, x_NHWC, t_N, y_N, *, tap=None, **inputs):
    self.calls.append(python_types.SimpleNamespace(x=x_NHWC, t=t_N, y=y_N, **inputs))
    pred = self.pred(x_NHWC, t_N, y_N) if callable(self.pred) else self.pred
    return types.Output(pred, fold(tap, self.blocks), self.class_token)


class Network:
  """A stand-in for `base.Network`, around a `Model`; a tree without leaves."""

  def __init__(self, model, heads=None):
    self.model, self.heads = model, heads or {}


jax.tree_util.register_pytree_node(Network, lambda n: ((), n), lambda n, _: n)


def fold(tap, blocks):
  """Features of a tap over the given block outputs."""
  if tap is None or not len(blocks):
    tap, blocks = taps.nothing(), [jnp.zeros(1)]
  carry, ys = tap.init(blocks[0], len(blocks)), []
  for i, f_NTD in enumerate(blocks):
    carry, y = tap.step(carry, f_NTD, i)
    ys.append(y)
  return tap.finish(carry, jax.tree.map(lambda *y: jnp.stack(y), *ys))


def noisy_of(images, noise, labels, t_N, extras=None, drawn=None, **batch):
  """A noisy batch whose x_t and target are still to be made by a flow's `at`."""
  unknown = jnp.full_like(images, jnp.nan)
  return base.NoisyBatch(
    x_t=unknown,
    t=t_N,
    y=labels,
    target=unknown,
    noise=noise,
    batch={'latents': images, 'labels': labels, **batch},
    extras=extras or {},
    drawn=drawn or {},
  )


def check(flow, architecture, sampler=None):
  """Calls everything by which a flow refuses."""
  flow.check_model(architecture, EXECUTION)
  flow.check_sampler(sampler or trajectory.SamplerConfig())


def nhwc(x_NCHW):
  return np.moveaxis(x_NCHW, 1, -1)
