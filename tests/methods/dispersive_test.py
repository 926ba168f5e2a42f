"""Dispersive Loss: reference values, plain loops, finite differences; its term and presets."""

from helpers import tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.methods import dispersive
from diversedit_jax.methods import objective as objective_lib

KEY = jax.random.key(0)


EXACT = {'rtol': 1e-12, 'atol': 1e-13}


def normal(*shape, seed=0, shift=0.0):
  return np.random.default_rng(seed).normal(size=shape) + shift


def by_loops(f_NTD, kind, temperature, margin):
  """The definitions at the head of the module, entry by entry."""
  z = f_NTD.reshape(len(f_NTD), -1)
  batch, size = z.shape
  units = [row / np.sqrt(np.sum(row**2)) for row in z]
  if kind == 'covariance':
    total = 0.0
    means = sum(units) / batch
    for k in range(size):
      for l in range(size):
        if k != l:
          covariance = sum((u[k] - means[k]) * (u[l] - means[l]) for u in units) / (batch - 1)
          total += covariance**2
    return total
  values = []
  for i in range(batch):
    for j in range(batch):
      distance = np.sum((z[i] - z[j]) ** 2) / size
      if kind == 'infonce_l2':
        values.append(np.exp(-distance / temperature))
      elif kind == 'infonce_cosine':
        values.append(np.exp(np.sum(units[i] * units[j]) / temperature))
      else:
        values.append(max(0.0, margin - distance) ** 2)
  return np.mean(values) if kind == 'hinge' else np.log(np.mean(values))


def test_infonce_l2_matches_reference(golden):
  g = golden('disp')
  with jax.enable_x64(True):
    z = jnp.asarray(g['z'], jnp.float64)
    np.testing.assert_allclose(
      dispersive.squared_distances(z.reshape(8, -1)), g['sqdist_per_dim'], **EXACT
    )
    for k, tau in enumerate(g['tau']):
      loss = dispersive.dispersive_loss(z, temperature=tau)
      np.testing.assert_allclose(loss, g['full_matrix_per_dim'][k], **EXACT)
      # Distances that are not divided by the number of features.
      raw = dispersive.dispersive_loss(z, temperature=tau / (16 * 12))
      np.testing.assert_allclose(raw, g['full_matrix_raw'][k], **EXACT)
    for tau, name, value in (
      (1.0, 'official_release', g['official_release']),
      (0.5, 'full_matrix_per_dim_tau05', g['full_matrix_per_dim'][1]),
    ):
      both = jax.value_and_grad(lambda f, t=tau: dispersive.dispersive_loss(f, temperature=t))
      loss, gradient = jax.jit(both)(z)
      wanted = g[f'grad_{name}']
      np.testing.assert_allclose(loss, value, **EXACT)
      np.testing.assert_allclose(gradient, wanted, rtol=1e-12, atol=1e-12 * np.abs(wanted).max())
  loss = dispersive.dispersive_loss(jnp.asarray(g['z']), temperature=1.0)
  assert loss.dtype == jnp.float32 and loss.shape == ()
  np.testing.assert_allclose(loss, g['official_release_f32'], rtol=0, atol=1e-6)


@pytest.mark.parametrize('kind', dispersive.KINDS)
def test_equals_plain_loops(kind):
  f_NTD = normal(5, 2, 4, seed=1, shift=0.4)
  distances = [np.mean((a - b) ** 2) for a in f_NTD for b in f_NTD]
  assert min(d for d in distances if d > 0) < 1.7 < max(distances), 'the hinge is on and off'
  with jax.enable_x64(True):
    for temperature in (0.3, 2.0):
      options = {'kind': kind, 'temperature': temperature, 'margin': 1.7}
      loss = dispersive.dispersive_loss(jnp.asarray(f_NTD), **options)
      np.testing.assert_allclose(loss, by_loops(f_NTD, **options), rtol=1e-12)


@pytest.mark.parametrize('kind', dispersive.KINDS)
def test_groups_average_the_losses_of_the_parts(kind):
  options = {'kind': kind, 'temperature': 0.7, 'margin': 1.7}
  f_NTD = normal(6, 2, 4, seed=2)
  with jax.enable_x64(True):
    loss = dispersive.dispersive_loss(jnp.asarray(f_NTD), groups=3, **options)
    parts = [by_loops(f_NTD[n : n + 2], **options) for n in (0, 2, 4)]
    np.testing.assert_allclose(loss, np.mean(parts), rtol=1e-12)
    whole = dispersive.dispersive_loss(jnp.asarray(f_NTD), **options)
    assert abs(loss - whole) > 1e-3


@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('kind', dispersive.KINDS)
def test_gradient_is_the_finite_difference(kind, groups):
  with jax.enable_x64(True):
    f_NTD, direction = jnp.asarray(normal(4, 2, 3, seed=3)), jnp.asarray(normal(4, 2, 3, seed=4))
    along = jax.jit(
      jax.value_and_grad(
        lambda s: dispersive.dispersive_loss(
          f_NTD + s * direction, kind=kind, temperature=0.7, margin=2.5, groups=groups
        )
      )
    )
    h = 1e-5
    wanted = (along(h)[0] - along(-h)[0]) / (2 * h)
    np.testing.assert_allclose(along(0.0)[1], wanted, rtol=1e-6, atol=1e-9)
    assert abs(wanted) > 1e-4, 'the direction must change the loss for the test to mean anything'


@pytest.mark.parametrize('kind', dispersive.KINDS)
def test_identical_and_zero_examples_have_finite_gradients(kind):
  loss = jax.jit(
    jax.value_and_grad(lambda f: dispersive.dispersive_loss(f, kind=kind, temperature=0.5))
  )
  same = jnp.broadcast_to(jnp.asarray(normal(1, 2, 3, seed=5), jnp.float32), (4, 2, 3))
  mixed = jnp.asarray(normal(4, 2, 3, seed=6), jnp.float32).at[:2].set(0)
  # All at one place: distance 0, cosine 1, covariance 0, hinge 1; nothing tells them apart.
  at_one_place = {'infonce_l2': 0, 'infonce_cosine': 2, 'hinge': 1, 'covariance': 0}
  value, gradient = loss(same)
  np.testing.assert_allclose(value, at_one_place[kind], atol=1e-6)
  np.testing.assert_allclose(gradient, 0, atol=1e-6)
  for f_NTD in (mixed, jnp.zeros((4, 2, 3), jnp.float32)):
    value, gradient = loss(f_NTD)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))
  assert np.any(loss(mixed)[1] != 0)


def test_far_apart_is_the_floor():
  f_NTD = jnp.asarray(1e4 * normal(8, 2, 3, seed=7), jnp.float32)
  value, gradient = jax.value_and_grad(dispersive.dispersive_loss)(f_NTD)
  np.testing.assert_allclose(value, -np.log(8), rtol=1e-6)
  np.testing.assert_array_equal(gradient, 0)  # Not the rounding of the diagonal.


def test_a_shared_offset_does_not_cost_digits():
  f_NTD = normal(6, 2, 8, seed=8).astype(np.float32).round(3)
  shifted = f_NTD + np.float32(100)
  exact = by_loops(shifted.astype(np.float64), 'infonce_l2', 0.5, 1.0)
  loss = dispersive.dispersive_loss(jnp.asarray(shifted))
  # Without the mean taken off, |a|^2 is 1e4 times the distance, and four digits go.
  np.testing.assert_allclose(loss, exact, rtol=0, atol=2e-6)


def test_squared_distances_are_never_negative():
  rows = np.repeat(normal(4, 1, 300, seed=10), 8, axis=1) * (1 + 1e-7 * normal(4, 8, 300, seed=11))
  rows = rows.reshape(32, 300).astype(np.float32)
  d_BB = np.asarray(dispersive.squared_distances(jnp.asarray(rows)))
  exact = np.mean((rows[:, None].astype(np.float64) - rows[None]) ** 2, axis=2)
  np.testing.assert_allclose(d_BB, exact, rtol=1e-5, atol=1e-6)
  assert np.all(d_BB >= 0)  # Rounding makes a third of the small ones negative.
  np.testing.assert_array_equal(np.diagonal(d_BB), 0)


def test_bfloat16_features_are_measured_in_float32():
  f_NTD = jnp.asarray(normal(4, 2, 8, seed=9), jnp.bfloat16)
  loss = dispersive.dispersive_loss(f_NTD)
  assert loss.dtype == jnp.float32
  exact = by_loops(np.asarray(f_NTD, np.float64), 'infonce_l2', 0.5, 1.0)
  np.testing.assert_allclose(loss, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'kind': 'l2'}, "unknown kind 'l2'"),
    ({'temperature': float('nan')}, 'temperature must be positive, got nan'),
    ({'margin': 0.0}, 'margin must be positive, got 0.0'),
    ({'groups': 4}, 'groups=4 must be positive and divide the batch of 6'),
    ({'groups': 6}, 'groups=6 of a batch of 6 hold one example each'),
  ],
)
def test_loss_refuses(options, message):
  with pytest.raises(types.UserError, match=message):
    dispersive.dispersive_loss(jnp.ones((6, 2, 3)), **options)
  with pytest.raises(ValueError, match='f_NTD has shape'):
    dispersive.dispersive_loss(jnp.ones((6, 3)))


# The term.


def loss_of(term, blocks):
  """(what the term adds, its metrics) for a network that puts out `blocks`."""
  n = len(blocks[0])
  flow, zeros = tiny.interpolant(), jnp.zeros((n, 2, 2, 1), blocks[0].dtype)
  noisy = tiny.noisy_of(zeros, zeros, jnp.zeros(n, jnp.int32), jnp.full(n, 0.5))
  objective = objective_lib.Objective(flow=flow, terms=(term,))
  network = tiny.Network(tiny.Model(zeros, blocks))
  loss, metrics = objective.loss(network, flow.at(noisy, noisy.t), key=KEY, step=jnp.int32(0))
  assert metrics['velocity'] == 0 and set(metrics) == {'loss', 'velocity', 'dispersive/loss'}
  return loss, metrics['dispersive/loss']


def blocks_of(golden):
  """The reference's features as the output of the second of three blocks."""
  z_NTD = jnp.asarray(golden('disp')['z'], jnp.float64)
  return [0 * z_NTD, z_NTD, 2 * z_NTD]


def term_of(preset, **fields):
  options = {'weight': dispersive.PRESETS[preset].weight, 'block': 2, 'groups': 1}
  return dispersive.Dispersive(preset=preset, **(options | fields))


@pytest.mark.parametrize(('preset', 'weight'), [('paper', 0.5), ('release', 0.25)])
def test_presets_match_reference(golden, preset, weight):
  g = golden('disp')
  with jax.enable_x64(True):
    per_dim = dict(zip(g['tau'].tolist(), g['full_matrix_per_dim'], strict=True))
    wanted = {'paper': per_dim[0.5], 'release': g['official_release']}[preset]
    loss, plain = loss_of(term_of(preset), blocks_of(golden))
    np.testing.assert_allclose(plain, wanted, rtol=1e-12)
    np.testing.assert_allclose(loss, weight * wanted, rtol=1e-12)


def test_groups_and_blocks_of_the_presets():
  facts = {k: (v.group_size, v.block(12), v.block(28)) for k, v in dispersive.PRESETS.items()}
  assert facts == {'paper': (16, 3, 7), 'release': (32, 12, 28)}


def test_kind_temperature_margin_and_groups_reach_the_loss(golden):
  with jax.enable_x64(True):
    blocks = blocks_of(golden)
    for fields in (
      dict(kind='infonce_cosine', temperature=2.0),
      dict(kind='hinge', margin=3.0),
      dict(kind='covariance', groups=2),
    ):
      found = loss_of(term_of('paper', **fields), blocks)[1]
      wanted = dispersive.dispersive_loss(blocks[1], **fields)
      np.testing.assert_allclose(found, wanted, rtol=1e-10, err_msg=str(fields))


def test_flops_are_those_of_the_gram_matrices():
  # 8 examples in 2 groups: each has 4 products of 4 tokens of width 16; forward and backward.
  assert term_of('paper', groups=2).flops(tiny.architecture(), 8) == 3 * 2 * 4 * 4 * 16


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(block=3), 'dispersive.block: block 3 is not one of 1 to 2'),
    (dict(groups=4), 'groups=4 does not divide the 6 examples of a microbatch'),
    (dict(groups=6), 'leaves one example in each group'),
  ],
)
def test_term_refuses(fields, message):
  with pytest.raises(types.UserError, match=message):
    term_of('paper', **fields).check(tiny.architecture(), 6)
  term_of('paper', groups=3).check(tiny.architecture(), 6)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(kind='hinge', temperature=0.5), 'temperature=0.5 is for kind infonce_l2 and infonce_cos'),
    (dict(margin=0.5), "margin=0.5 is for kind hinge, got 'infonce_l2'"),
  ],
)
def test_an_option_of_another_kind_is_refused(fields, message):
  with pytest.raises(types.UserError, match=message):
    dispersive.Dispersive(**fields)
