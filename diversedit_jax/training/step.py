"""The training step: a pure function of (state, batch), compiled once."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from diversedit_jax import rng, sharding, trees, types
from diversedit_jax.methods import base, batches
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.models import tuning
from diversedit_jax.training import average
from diversedit_jax.training import state as state_lib

Frozen = Mapping[str, Any]
"""Weights of the frozen encoders by name; empty without any."""

Step = Callable[
  [state_lib.TrainState, types.Batch, Frozen], tuple[state_lib.TrainState, base.Metrics]
]


def make_gradients(
  objective: objective_lib.Objective,
  graphdef: nnx.GraphDef,
  *,
  key: jax.Array,
  accumulate: int = 1,
  fixed: Collection[str] = (),
) -> Callable[
  [state_lib.TrainState, types.Batch, Frozen],
  tuple[state_lib.Params, base.Metrics, base.NoisyBatch],
]:
  """Makes the first half of a step: gradients of what is trained, metrics, and what was drawn.

  All randomness of a step is drawn for the whole batch from (key, step), before it is cut into
  `accumulate` microbatches. A loss that is a mean over examples does not depend on that number; a
  loss that couples the batch (diversity) is computed per microbatch and averaged.
  """

  def gradients(state, draw, step_key):
    params, terms_key = trees.without(state.params, fixed), rng.stream(step_key, 'terms')
    merged = lambda params: tuning.cast_products(nnx.merge(graphdef, params))
    teacher = merged(state.ema)

    def loss_fn(params, draw):
      network = merged(trees.joined(params, state.params))
      return objective.loss(network, draw, key=terms_key, step=state.step, teacher=teacher)

    grad_fn = jax.grad(loss_fn, has_aux=True)
    if accumulate == 1:
      return grad_fn(params, draw)

    def body(total, part):
      grads, metrics = grad_fn(params, part)
      return jax.tree.map(jnp.add, total, grads), metrics

    zeros = jax.tree.map(jnp.zeros_like, params)
    grads, metrics = jax.lax.scan(body, zeros, batches.microbatches(draw, accumulate))
    return jax.tree.map(lambda g: g / accumulate, grads), batches.mean_metrics(metrics)

  def run(state, batch, frozen):
    step_key = rng.stream(key, 'step', state.step)
    draw = objective.draw(objective.encode(frozen, batch, accumulate), step_key)
    return *gradients(state, draw, step_key), draw

  return run


def make_step(
  objective: objective_lib.Objective,
  graphdef: nnx.GraphDef,
  tx: optax.GradientTransformation,
  *,
  key: jax.Array,
  ema_decay: float,
  ema_warmup: bool = False,
  learning_rate: optax.Schedule,
  accumulate: int = 1,
  fixed: Collection[str] = (),
  averages: Mapping[str, average.Average] | None = None,
  skip: bool = False,
) -> Step:
  """Makes the step, a pure function; see `make_gradients`.

  Parameters whose paths are in `fixed` stay as they are, in all averages too, and have no gradient.
  averages: those beside the main one, see `state.Trainable`.

  skip: where loss or gradient are not finite, the state stays as it was and only counts on, and the
  metric 'skipped' is 1. What is known before the update decides, so that nothing waits for the new
  parameters; that these are finite, their norm says.
  """
  gradients = make_gradients(objective, graphdef, key=key, accumulate=accumulate, fixed=fixed)

  def step(state, batch, frozen):
    grads, metrics, _ = gradients(state, batch, frozen)
    kept = lambda new, old: new
    if skip:
      fine = trees.all_finite(metrics | {'grad_norm': trees.global_norm(grads)})
      kept = lambda new, old: jax.tree.map(lambda n, o: jnp.where(fine, n, o), new, old)
      metrics['skipped'] = 1 - fine.astype(jnp.int32)
    trained = trees.without(state.params, fixed)
    with jax.named_scope('optimizer'):
      updates, opt_state = tx.update(grads, state.opt_state, trained)
      trained = kept(optax.apply_updates(trained, updates), trained)
    params = trees.joined(trained, state.params)
    metrics |= {
      'grad_norm': trees.global_norm(grads),  # Before clipping.
      'param_norm': trees.global_norm(params),
      'learning_rate': jnp.asarray(learning_rate(state.step), jnp.float32),
    }

    def follow(of, ema):
      free = average.updated(of, trees.without(ema, fixed), trained, ema_warmup, state.step)
      return kept(trees.joined(free, ema), ema)

    return state_lib.TrainState(
      step=state.step + 1,
      params=params,
      ema=follow(average.Decay(ema_decay), state.ema),
      opt_state=kept(opt_state, state.opt_state),
      averages={name: follow(of, state.averages[name]) for name, of in (averages or {}).items()},
    ), metrics

  return step


def compile_step(step: Step, shardings: state_lib.TrainState, mesh: jax.sharding.Mesh) -> Step:
  """Jits the step over the mesh; the state that goes in is donated."""
  return jax.jit(
    step,
    donate_argnums=0,
    in_shardings=(shardings, sharding.batch_sharding(mesh), sharding.replicated(mesh)),
    out_shardings=(shardings, sharding.replicated(mesh)),
  )
