"""Gradients of whole objectives against central differences, in float64.

Two things of the network are rounded to float32 even there, the softmax and the sinusoids of time,
which would drown the differences; both are replaced by the same formula in float64.

MeanFlow's loss holds parts of itself constant, so its differences are those of the loss with these
parts taken from the undisturbed network: that is the gradient that it is meant to have.
"""

from flax import nnx
from helpers import tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import interpolants
from diversedit_jax.interpolants import times
from diversedit_jax.methods import batches, dispersive, diverse, meanflow, reg
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.models import config as model_config
from diversedit_jax.models import embed

LAW = times.Uniform(epsilon=0.1)
# Ranges in which the weight of the loss has a gradient itself.
DIVERSE = diverse.Diverse(lo=0.0, hi=2.0)
DISPERSIVE = dispersive.Dispersive(block=2, groups=2, weight=0.5)
REPA, TOKEN, SRA, HASTE = tiny.REPA, tiny.TOKEN, tiny.SRA, tiny.HASTE
REG = tiny.reg_flow(path=interpolants.cosine(), time_law=LAW)
SCORE = tiny.interpolant(time_law=LAW, prediction='score', weighting='likelihood')

METHODS = {
  'flow': (tiny.interpolant(time_law=LAW), ()),
  'score': (SCORE, ()),
  'diverse': (tiny.interpolant(time_law=LAW), (DIVERSE,)),
  'repa': (tiny.interpolant(time_law=LAW), (REPA,)),
  'haste': (tiny.interpolant(time_law=LAW), (HASTE,)),
  'dispersive': (tiny.interpolant(time_law=LAW), (DISPERSIVE,)),
  'sra': (tiny.interpolant(time_law=LAW), (SRA,)),
  'reg': (REG, (TOKEN,)),
  'repa+dispersive+sra+diverse': (
    tiny.interpolant(time_law=LAW, path=interpolants.vp()),
    (REPA, DISPERSIVE, SRA, DIVERSE),
  ),
  'reg+haste+dispersive+sra+diverse': (REG, (TOKEN, HASTE, DISPERSIVE, SRA, DIVERSE)),
}


@pytest.fixture(autouse=True)
def _float64(monkeypatch):
  """All of the network in float64."""

  def time_features(t_N):
    frequencies = 10_000 ** (-np.arange(128) / 128)
    angles = t_N.astype(jnp.float64)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)

  with jax.enable_x64(True):
    t_N = jnp.asarray([0.1, 0.9])
    np.testing.assert_allclose(embed.time_features(t_N), time_features(t_N), atol=1e-6)
    monkeypatch.setattr(embed, 'time_features', time_features)
    yield


def setting(flow, terms, **fields):
  """(objective, params, draw, value_and_grad) of a network of two blocks, without zeros."""
  objective = objective_lib.Objective(flow=flow, terms=terms)
  architecture = tiny.architecture(
    interval=isinstance(flow, meanflow.MeanFlow),
    class_token=tiny.WIDTHS['enc'] if isinstance(flow, reg.Reg) else 0,
    **fields,
  )
  graphdef, params = tiny.parameters(architecture, terms, np.float64)
  _, averaged = tiny.parameters(architecture, terms, np.float64, seed=2)
  draw = objective.draw(tiny.batch(4, np.float64), jax.random.key(1))
  exact = lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x  # Times are float32.
  draw = jax.tree.map(exact, draw)

  def loss(params):
    return objective.loss(
      nnx.merge(graphdef, params),
      draw,
      key=jax.random.key(2),
      step=jnp.int32(0),
      teacher=nnx.merge(graphdef, averaged),
    )

  return graphdef, params, draw, jax.jit(jax.value_and_grad(loss, has_aux=True))


def direction_of(params, seed=5):
  generator = np.random.default_rng(seed)
  return jax.tree.map(lambda x: jnp.asarray(generator.standard_normal(x.shape)), params)


def moved(params, direction, s):
  return jax.tree.map(lambda x, d: x + s * d, params, direction)


def slope(grads, direction):
  parts = jax.tree.map(lambda g, d: jnp.vdot(g, d), grads, direction)
  return sum(jax.tree.leaves(parts))


H = 1e-6  # Absolute values have kinks, from which the differences should keep away.
TOLERANCE = 1e-7  # Roundings of a loss of order 10, over H.


@pytest.mark.parametrize('method', METHODS)
def test_gradient_is_the_central_difference(method):
  flow, terms = METHODS[method]
  fields = dict(skip=model_config.Skip(enabled=method == 'diverse'))
  _, params, _, run = setting(flow, terms, **fields)
  direction = direction_of(params)
  (loss, metrics), grads = run(params)
  (up, _), (down, _) = (run(moved(params, direction, s))[0] for s in (H, -H))
  assert loss.dtype == jnp.float64 and np.isfinite(loss)
  wanted = (up - down) / (2 * H)
  assert abs(wanted) > 1e-2
  np.testing.assert_allclose(slope(grads, direction), wanted, rtol=1e-6, atol=TOLERANCE)
  for term in terms:
    assert f'{term.name}/loss' in metrics
    heads = jax.tree.leaves(grads.get('heads', {}).get(term.name, {}))
    assert all(np.abs(g).max() > 0 for g in heads)
    assert len(heads) == {'repa': 6 * len(getattr(term, 'aligned', ())), 'sra': 4}.get(term.name, 0)


def mean_flow(**fields):
  return meanflow.MeanFlow(
    time_law=LAW, null_label=tiny.CLASSES, equal_fraction=0.5, label_dropout=0.5, **fields
  )


PLAIN, GUIDED = dict(omega=1.0, kappa=0.0), dict(omega=1.5, kappa=0.25, start=0.3, end=0.9)
MEANFLOWS = {
  'meanflow': (mean_flow(**PLAIN), ()),
  'guided': (mean_flow(**GUIDED, power=0.75), ()),
  'improved': (mean_flow(**GUIDED, variant='improved'), ()),
  'meanflow+repa+haste+dispersive+diverse': (
    mean_flow(**PLAIN),
    (REPA, HASTE, DISPERSIVE, DIVERSE),
  ),
}


@pytest.mark.parametrize('method', MEANFLOWS)
def test_gradient_of_meanflow_is_that_of_a_square_with_target_and_weight_held(method):
  flow, terms = MEANFLOWS[method]
  graphdef, params, draw, run = setting(flow, terms)
  z, v, t, y = draw.x_t, np.asarray(draw.target), np.asarray(draw.t), draw.y
  h, dropped = (np.asarray(draw.extras[name]) for name in ('h', 'dropped'))
  assert (h[:2] == 0).all() and (h[2:] > 1e-3).all()

  u = jax.jit(lambda params, z, t, h, y: nnx.merge(graphdef, params).model(z, t, y, h_N=h).pred)
  expand = lambda x_N: x_N[:, None, None, None]
  v_class, v_null = (np.asarray(u(params, z, t, 0 * h, y)) for y in (y, jnp.full_like(y, 5)))
  v_g = v
  if flow.guided:
    mixed = flow.omega * v + (1 - flow.omega - flow.kappa) * v_null + flow.kappa * v_class
    v_g = np.where(expand((t >= 0.3) & (t <= 0.9) & ~dropped), mixed, v)
  # Along (v, 1, 0) for (z, t, r), so that h = t - r moves with t.
  along, d = v_class if flow.variant == 'improved' else v_g, 1e-5
  after, before = (u(params, z + s * along, t + s, h + s, y) for s in (d, -d))
  target = v_g - expand(h) * np.asarray(after - before) / (2 * d)

  errors = lambda params: np.sum((np.asarray(u(params, z, t, h, y)) - target) ** 2, axis=(1, 2, 3))
  weight = 1 / (errors(params) + 0.01) ** flow.power
  (loss, metrics), grads = run(params)
  np.testing.assert_allclose(metrics['error'], np.mean(errors(params)) / 16, rtol=1e-7)
  np.testing.assert_allclose(
    metrics['average_velocity'], np.mean(weight * errors(params)), rtol=1e-9
  )

  def held(params):
    (loss, metrics), _ = run(params)
    terms_alone = loss - metrics['average_velocity']
    return np.mean(weight * errors(params)) + terms_alone

  direction = direction_of(params)
  wanted = (held(moved(params, direction, H)) - held(moved(params, direction, -H))) / (2 * H)
  assert abs(wanted) > 1e-2
  np.testing.assert_allclose(slope(grads, direction), wanted, rtol=1e-6, atol=TOLERANCE)
  if not terms:
    assert loss == metrics['average_velocity']
  # What is held matters: the loss itself has another slope, nearly none where p = 1.
  free = run(moved(params, direction, H))[0][0] - run(moved(params, direction, -H))[0][0]
  assert abs(free / (2 * H) - wanted) > 1e-3 * abs(wanted)


@pytest.mark.parametrize(
  ('flow', 'terms'),
  [
    (SCORE, (REPA, HASTE, SRA)),
    (MEANFLOWS['meanflow'][0], ()),
    (METHODS['flow'][0], (DIVERSE,)),
    (METHODS['flow'][0], (dispersive.Dispersive(block=2, groups=1, weight=0.5),)),
  ],
)
def test_losses_that_say_that_they_are_means_over_examples_are(flow, terms):
  """Microbatches change no other, so that a run may change their number."""
  graphdef, params, draw, _ = setting(flow, terms)
  objective, network = objective_lib.Objective(flow=flow, terms=terms), nnx.merge(graphdef, params)

  def loss(draw):
    more = dict(key=jax.random.key(2), step=jnp.int32(0), teacher=network)
    return objective.loss(network, draw, **more)[0]

  halves = jax.jit(lambda: jax.lax.map(loss, batches.microbatches(draw, 2)))()
  coupled = any(part.couples_examples for part in (flow, *terms))
  assert coupled == (abs(halves.mean() / jax.jit(loss)(draw) - 1) > 1e-12)
