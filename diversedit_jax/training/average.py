"""The averaged network: its decay at each step, and how much of it still is the initial network.

  ema_(n+1) = d_n ema_n + (1 - d_n) params_(n+1)    ema_0 = params_0
  d_n = decay                                       so that decay^n of ema_n is params_0
  d_n = min(decay, (1 + n) / (10 + n))              with warm-up, as TensorFlow's
                                                    ExponentialMovingAverage by `num_updates`

A plain decay of 0.9999 averages over 10,000 steps, however few there were. With warm-up the
average reaches back over a ninth of the run so far, and nothing of params_0 is left after a few
dozen steps.
"""

import jax
import jax.numpy as jnp

_NOTED = 0.01  # Share of the initial network from which on it is worth a word.


def decay_at(decay: float, warmup: bool, step: jax.Array) -> float | jax.Array:
  """The decay d_n of the update after n = `step` others, a scalar."""
  if not warmup:
    return decay
  n = jnp.asarray(step, jnp.float32)
  return jnp.minimum(decay, (1 + n) / (10 + n))


def remark(decay: float, warmup: bool, steps: int) -> str:
  """A sentence if the average of so many steps still is the initial network in part; else ''."""
  share = 0.0 if warmup else decay**steps
  if share < _NOTED:
    return ''
  return (
    f'the average reaches back {1 / (1 - decay):,.0f} steps, the run has {steps:,}: {share:.0%} of '
    'it is the initial network; train.ema_warmup=True shortens the average of a short run, and '
    'sample.weights=params samples without it'
  )
