"""REPA's term: the reference's totals, several pairs, the class token, its text form."""

from helpers import tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import interpolants, types
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.methods import reg, repa

KEY = jax.random.key(0)
TWO = (repa.Pair(encoder='a', block=1, width=24), repa.Pair(encoder='b', block=2, width=40))


EXACT = {'rtol': 1e-12, 'atol': 1e-13}


def test_alignment_and_its_gradient_match_reference(golden):
  g = golden('repa_loss')
  with jax.enable_x64(True):

    def loss(projected):
      losses = [jnp.mean(repa.alignment(p, targets[k])) for k, p in enumerate(projected)]
      return sum(losses) / len(losses), losses

    targets = [jnp.asarray(g[f'zs_{k}'], jnp.float64) for k in (0, 1)]
    projected = [jnp.asarray(g[f'zs_tilde_{k}'], jnp.float64) for k in (0, 1)]
    (mean, losses), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(projected)
    np.testing.assert_allclose(losses, g['proj_loss_per_encoder_f64'], **EXACT)
    np.testing.assert_allclose(mean, g['proj_loss_f64'], **EXACT)
    for k, gradient in enumerate(gradients):
      np.testing.assert_allclose(gradient, g[f'grad_proj_loss_zs_tilde_{k}_f64'], **EXACT)
  for k in (0, 1):
    loss_N = repa.alignment(jnp.asarray(g[f'zs_tilde_{k}']), jnp.asarray(g[f'zs_{k}']))
    assert loss_N.shape == (6,) and loss_N.dtype == jnp.float32
    # Cosines of about 0.3, whose float32 sums differ in their order.
    np.testing.assert_allclose(np.mean(loss_N), g['proj_loss_per_encoder'][k], atol=1e-6)


def test_alignment_of_special_features():
  """Equal directions have the least loss; a zero token leaves the others their gradient."""
  x = random(2, 3, 4, seed=0)
  np.testing.assert_allclose(repa.alignment(x, 3 * x), [-1, -1], rtol=1e-6)
  target = random(2, 3, 4, seed=1)
  total = lambda x, target: jnp.sum(repa.alignment(x, target))
  of_x, of_target = jax.grad(total, argnums=(0, 1))(x.at[0, 1].set(0), target)
  assert np.isfinite(of_x).all() and (of_x[0, 1] == 0).all() and (of_x[0, 0] != 0).all()
  np.testing.assert_array_equal(of_target, 0)
  half = jnp.asarray(x, jnp.bfloat16), jnp.asarray(target, jnp.bfloat16)
  found = repa.alignment(*half)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(np.mean(found), -cosine(*half), atol=1e-6)


def loss_of(term, noisy, blocks, heads, pred=0.0, flow=None):
  """The objective of a network that puts out `blocks` and predicts `pred`."""
  network = tiny.Network(tiny.Model(jnp.broadcast_to(pred, noisy.noise.shape), blocks), heads)
  flow = flow or tiny.interpolant()
  objective = objective_lib.Objective(flow=flow, terms=(term,))
  noisy = flow.at(noisy, noisy.t)
  return objective.loss(network, noisy, key=KEY, step=jnp.int32(0))


@pytest.mark.parametrize('path', ['linear', 'cosine'])
@pytest.mark.parametrize(('x64', 'suffix', 'tolerance'), [(True, '_f64', 1e-12), (False, '', 2e-6)])
def test_totals_match_reference(golden, path, x64, suffix, tolerance):
  g = golden('repa_loss')
  with jax.enable_x64(x64):
    array = lambda x: jnp.asarray(x, jnp.float64 if x64 else jnp.float32)
    image = lambda name: array(tiny.nhwc(g[name]))
    noisy = tiny.noisy_of(
      image('images'),
      image('noises'),
      jnp.zeros(6, jnp.int32),
      array(g['t']),
      **{'a/tokens': array(g['zs_0']), 'b/tokens': array(g['zs_1'])},
    )
    term = repa.Repa(aligned=TWO, weight=float(g['proj_coeff']))
    # The projectors stand for what the reference's gave, each at its own block.
    blocks = [jnp.full((6, 16, 8), 1.0), jnp.full((6, 16, 8), 2.0)]

    def projector(k):
      return lambda f_NTD: jnp.where(jnp.all(f_NTD == k + 1), array(g[f'zs_tilde_{k}']), jnp.nan)

    loss, metrics = loss_of(
      term,
      noisy,
      blocks,
      {'repa': {'0': projector(0), '1': projector(1)}},
      image('model_output'),
      tiny.interpolant(path=interpolants.PATHS[path]),
    )
    close = lambda found, name: np.testing.assert_allclose(
      found, g[f'{name}{suffix}'], rtol=tolerance, atol=tolerance
    )
    close(loss, f'{path}/total')
    close(metrics['repa/loss'], 'proj_loss')
    close([metrics['repa/loss/a@1'], metrics['repa/loss/b@2']], 'proj_loss_per_encoder')
    denoising = g[f'{path}/denoising_loss{suffix}'].mean()
    np.testing.assert_allclose(metrics['velocity'], denoising, rtol=tolerance)


def random(*shape, seed):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def cosine(a, b):
  """Mean over examples and tokens of the cosine of the last axis, in float64."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
  return np.mean(np.sum(a * b, axis=-1) / norms)


def test_pairs_may_share_a_block_or_an_encoder():
  pairs = [('a', 3), ('b', 1), ('a', 1)]
  term = repa.Repa(
    aligned=tuple(repa.Pair(encoder=e, block=b, width=8) for e, b in pairs), weight=2
  )
  tokens = {'a': random(2, 4, 8, seed=0), 'b': random(2, 4, 8, seed=1)}
  blocks = [random(2, 4, 8, seed=2 + i) for i in range(3)]
  factors = [random(8, seed=5 + i) for i in range(3)]  # A projector of its own for each pair.
  heads = {str(i): lambda f, i=i: f * factors[i][None, None] for i in range(3)}
  noisy = tiny.noisy_of(
    random(2, 2, 2, 1, seed=8),
    random(2, 2, 2, 1, seed=9),
    jnp.zeros(2, jnp.int32),
    jnp.asarray([0.2, 0.6]),
    **{f'{e}/tokens': t for e, t in tokens.items()},
  )
  loss, metrics = loss_of(term, noisy, blocks, {'repa': heads})
  wanted = [-cosine(heads[str(i)](blocks[b - 1]), tokens[e]) for i, (e, b) in enumerate(pairs)]
  for (e, b), value in zip(pairs, wanted, strict=True):
    np.testing.assert_allclose(metrics[f'repa/loss/{e}@{b}'], value, atol=1e-6)
  np.testing.assert_allclose(metrics['repa/loss'], np.mean(wanted), atol=1e-6)
  np.testing.assert_allclose(loss - metrics['velocity'], 2 * np.mean(wanted), atol=2e-6)


def test_the_class_token_is_aligned_with_the_summary():
  tokens, summary = random(2, 4, 8, seed=0), random(2, 8, seed=1)
  f_NTD = random(2, 5, 8, seed=2)  # The class token and four patches.
  term = repa.Repa(aligned=(repa.Pair(encoder='a', block=1, width=8),), class_token=True)
  noisy = tiny.noisy_of(
    random(2, 2, 2, 1, seed=8),
    random(2, 2, 2, 1, seed=9),
    jnp.zeros(2, jnp.int32),
    jnp.asarray([0.2, 0.6]),
    **{'a/tokens': tokens, 'a/summary': summary},
  )
  loss, metrics = loss_of(term, noisy, [f_NTD], {'repa': {'0': lambda f: f}})
  wanted = -(cosine(f_NTD[:, 0], summary) + 4 * cosine(f_NTD[:, 1:], tokens)) / 5
  np.testing.assert_allclose(metrics['repa/loss'], wanted, atol=1e-6)
  assert set(metrics) == {'loss', 'velocity', 'repa/loss'}  # One pair needs no names.
  np.testing.assert_allclose(loss - metrics['velocity'], 0.5 * wanted, atol=1e-6)


def test_projectors_have_the_widths_of_their_encoders():
  architecture, term = tiny.architecture(), repa.Repa(aligned=TWO, hidden=12)
  _, params = tiny.parameters(architecture, (term,))
  shapes = jax.tree.map(lambda x: x.shape, params['heads']['repa'])
  for name, width in (('0', 24), ('1', 40)):
    assert [shapes[name][fc]['kernel'] for fc in ('fc1', 'fc2', 'fc3')] == [
      (16, 12),
      (12, 12),
      (12, width),
    ]
  # 2 FLOPs per multiply-add, forward and twice that backward, for each of the 4 tokens.
  macs = sum(16 * 12 + 12 * 12 + 12 * width for width in (24, 40))
  assert term.flops(architecture, 32) == 6 * 4 * macs


def test_pairs_are_read_from_text():
  assert repa.parse_pairs('dinov2-vit-b@8', 28) == (('dinov2-vit-b', 8),)
  assert repa.parse_pairs('a@1, b@3,a@3', 4) == (('a', 1), ('b', 3), ('a', 3))
  # DiverseDiT's recipe: block 5 of 12, 8 of 24 and of 28.
  assert [repa.parse_pairs('a', depth) for depth in (12, 24, 28)] == [
    (('a', 5),),
    (('a', 8),),
    (('a', 8),),
  ]
  assert repa.parse_pairs('a', 12, reg.BLOCKS) == (('a', 4),)


@pytest.mark.parametrize(
  ('text', 'depth', 'message'),
  [
    ('', 12, 'is not a list of ENCODER@BLOCK'),
    ('a@1,', 12, 'is not a list of ENCODER@BLOCK'),
    ('a@²', 12, 'is not a list of ENCODER@BLOCK'),
    ('a@1@2', 12, 'is not a list of ENCODER@BLOCK'),
    ('a,a@5', 12, 'names a pair twice'),
    ('a', 16, 'needs a block for depth 16: a@BLOCK'),
  ],
)
def test_refuses_text_that_is_no_list_of_pairs(text, depth, message):
  with pytest.raises(types.UserError, match=message):
    repa.parse_pairs(text, depth)


def test_refuses_a_block_that_the_model_does_not_have():
  term = repa.Repa(aligned=(repa.Pair(encoder='a', block=3, width=8),))
  with pytest.raises(types.UserError, match='block 3 is not one of 1 to 2'):
    term.check(tiny.architecture(), 4)
  repa.Repa(aligned=TWO).check(tiny.architecture(), 4)
