"""The dispersive term: the released setting's reference value, which block, groups, refusals."""

from helpers import tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.methods import base, dispersive

KEY = jax.random.key(0)


def loss_of(term, blocks):
  """(what the term adds, its metrics) for a network that puts out `blocks`."""
  n = len(blocks[0])
  flow, zeros = tiny.interpolant(), jnp.zeros((n, 2, 2, 1), blocks[0].dtype)
  draw = tiny.draw_of(zeros, zeros, jnp.zeros(n, jnp.int32), jnp.full(n, 0.5), {'dispersive': ()})
  objective = base.Objective(flow=flow, terms=(term,))
  network = tiny.Network(tiny.Model(zeros, blocks))
  loss, metrics = objective.loss(network, flow.at(draw, draw.t), key=KEY, step=jnp.int32(0))
  assert metrics['velocity'] == 0 and set(metrics) == {'loss', 'velocity', 'dispersive/loss'}
  return loss, metrics['dispersive/loss']


def blocks_of(golden):
  """The reference's features as the output of the second of three blocks."""
  z_NTD = jnp.asarray(golden('disp')['z'], jnp.float64)
  return [0 * z_NTD, z_NTD, 2 * z_NTD]


def term_of(preset, **fields):
  chosen = dispersive.PRESETS[preset]
  options = {'weight': chosen.weight, 'temperature': chosen.temperature}
  return dispersive.Dispersive(block=2, **(options | fields))


@pytest.mark.parametrize(('preset', 'weight'), [('paper', 0.5), ('release', 0.25)])
def test_presets_match_reference(golden, preset, weight):
  g = golden('disp')
  with jax.enable_x64(True):
    per_dim = dict(zip(g['tau'].tolist(), g['full_matrix_per_dim'], strict=True))
    wanted = {'paper': per_dim[0.5], 'release': g['official_release']}[preset]
    loss, plain = loss_of(term_of(preset), blocks_of(golden))
    np.testing.assert_allclose(plain, wanted, rtol=1e-12)
    np.testing.assert_allclose(loss, weight * wanted, rtol=1e-12)
    grad = jax.grad(lambda f: loss_of(term_of(preset), [0 * f, f, f])[0])(blocks_of(golden)[1])
    name = {'paper': 'full_matrix_per_dim_tau05', 'release': 'official_release'}[preset]
    np.testing.assert_allclose(grad, weight * g[f'grad_{name}'], rtol=1e-9, atol=1e-14)


def test_groups_and_blocks_of_the_presets():
  facts = {k: (v.group_size, v.block(12), v.block(28)) for k, v in dispersive.PRESETS.items()}
  assert facts == {'paper': (16, 3, 7), 'release': (32, 12, 28)}


def test_groups_are_consecutive_examples_with_a_loss_each(golden):
  with jax.enable_x64(True):
    blocks, term = blocks_of(golden), term_of('paper')
    whole = loss_of(term, blocks)[1]
    halves = [loss_of(term, [b[part] for b in blocks])[1] for part in (slice(4), slice(4, 8))]
    grouped = loss_of(term_of('paper', groups=2), blocks)[1]
    np.testing.assert_allclose(grouped, np.mean(halves), rtol=1e-13)
    assert abs(grouped - whole) > 0.1 and abs(halves[0] - halves[1]) > 1e-3


def test_kind_temperature_and_margin_reach_the_loss(golden):
  with jax.enable_x64(True):
    blocks = blocks_of(golden)
    f = np.asarray(blocks[1]).reshape(8, -1)
    unit = f / np.linalg.norm(f, axis=1, keepdims=True)
    d = golden('disp')['sqdist_per_dim']
    centred = unit - unit.mean(0)
    covariance = centred.T @ centred / 7
    for fields, wanted in (
      (dict(kind='infonce_cosine', temperature=2.0), np.log(np.mean(np.exp(unit @ unit.T / 2)))),
      (dict(kind='hinge', margin=3.0), np.mean(np.maximum(0, 3 - d) ** 2)),
      (dict(kind='covariance'), np.sum(covariance**2) - np.sum(np.diag(covariance) ** 2)),
    ):
      found = loss_of(dispersive.Dispersive(block=2, **fields), blocks)[1]
      np.testing.assert_allclose(found, wanted, rtol=1e-10, err_msg=str(fields))


def test_flops_are_those_of_the_gram_matrices():
  # 8 examples in 2 groups: each has 4 products of 4 tokens of width 16; forward and backward.
  assert dispersive.Dispersive(block=1, groups=2).flops(tiny.config(), 8) == 3 * 2 * 4 * 4 * 16


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(kind='infonce'), "'infonce'"),
    (dict(temperature=0.0), 'temperature'),
    (dict(margin=-1.0), 'margin'),
    (dict(block=0), 'dispersive.block: block 0 is not one of 1 to 2'),
    (dict(block=3), 'dispersive.block: block 3 is not one of 1 to 2'),
    (dict(groups=0), 'groups=0 does not divide the 6 examples'),
    (dict(groups=4), 'groups=4 does not divide the 6 examples of a microbatch'),
    (dict(groups=6), 'leaves one example in each group'),
  ],
)
def test_refuses(fields, message):
  with pytest.raises(types.UserError, match=message):
    dispersive.Dispersive(**({'block': 1} | fields)).check(tiny.config(), 6)


def test_accepts_groups_that_divide_a_microbatch():
  dispersive.Dispersive(block=2, groups=3).check(tiny.config(), 6)
