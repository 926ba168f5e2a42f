"""The O(L) forms equal the plain pair loop, in value and gradient, also for hostile features."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.methods import diverse
from diversedit_jax.methods.diverse import definition, streaming
from diversedit_jax.methods.diverse import layers as layers_lib

GOLDEN = np.load(pathlib.Path(__file__).parents[2] / 'golden' / 'diversity.npz')
Config = diverse.Diverse
L, N, T, D = 4, 4, 3, 12


def fast(config, f_LNTD, key=None):
  """Loss (mean over groups, not weighted) and terms of the O(L) form."""
  selection = config.select(len(f_LNTD), key)
  loss_G, terms_G = streaming.from_features(f_LNTD, selection, config)
  return jnp.mean(loss_G), {name: jnp.mean(term_G) for name, term_G in terms_G.items()}


def slow(config, f_LNTD):
  """The same by the pair loop."""
  options = {}
  if config.layers == 'authors':
    options['pairs'] = layers_lib.authors_pairs(len(f_LNTD), config.encoder_depth)
  elif config.layers != 'all':
    options['layers'] = [int(block) - 1 for block in config.layers.split(',')]
  if config.dispersion_layers == 'all':
    options['dispersion_layers'] = range(len(f_LNTD))
  for name in ('mi', 'dispersion', 'usage', 'weights', 'groups'):
    options[name] = getattr(config, name)
  return definition.diversity_loss(f_LNTD, **options)


@functools.cache
def compiled(form, config):
  """((loss, terms), gradient) of a form as a function of the features."""
  function = jax.jit(jax.value_and_grad(functools.partial(form, config), has_aux=True))
  return lambda f_LNTD: jax.device_get(function(f_LNTD))


def authors(encoder_depth, **options):
  """The options of the authors' code."""
  return Config(
    layers='authors',
    encoder_depth=encoder_depth,
    mi='absolute',
    dispersion='code',
    weights=definition.THIRDS,
    **options,
  )


CONFIGS = {
  'paper': Config(),
  'thirds, code, signed, groups': Config(
    weights=definition.THIRDS, dispersion='code', usage='signed', groups=2
  ),
  'given': Config(layers='1,3,4'),
  'given, dispersion over all': Config(layers='2,4', dispersion_layers='all'),
  'absolute, given': Config(mi='absolute', layers='1,2,4'),
  # These pairs wrap around: one pair occurs twice, and one block is paired with itself.
  'authors, groups': authors(9, groups=2),
  'authors, no pair': authors(1),
}


def hostile(kind):
  """Features [L, N, T, D] in float64 that stress one weakness."""
  rng = np.random.default_rng(5)
  f_LNTD = rng.normal(size=(L, N, T, D)) + 0.2
  if kind == 'parallel':
    f_LNTD = f_LNTD[:1] + 1e-3 * rng.normal(size=f_LNTD.shape)
  elif kind == 'zeros':
    f_LNTD[2] = 0  # A block,
    f_LNTD[3, 1, 2] = 0  # a token,
    f_LNTD[1, ..., 3] = 0  # a channel of one block,
    f_LNTD[..., 7] = 0  # and a channel of all.
  elif kind == 'scales':
    f_LNTD *= 10.0 ** np.array([-8, 8, 0, -3])[:, None, None, None]
  return f_LNTD


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.parametrize('kind', ['plain', 'parallel', 'zeros', 'scales'])
def test_equals_the_pair_loop_in_float64_and_float32(name, kind):
  config = CONFIGS[name]
  with jax.enable_x64(True):
    f_LNTD = jnp.asarray(hostile(kind))
    # The gradient of a block of scale s has scale 1/s: compare in units of the block.
    scale_L111 = np.maximum(np.abs(hostile(kind)).max(axis=(1, 2, 3), keepdims=True), 1e-8)
    (wanted, wanted_terms), wanted_gradient = compiled(slow, config)(f_LNTD)
    (loss, terms), gradient = compiled(fast, config)(f_LNTD)
    (loss_32, terms_32), gradient_32 = compiled(fast, config)(f_LNTD.astype(jnp.float32))

  assert loss.dtype == jnp.float64 and loss_32.dtype == gradient_32.dtype == jnp.float32
  assert np.isfinite(wanted) and np.isfinite(loss) and np.isfinite(loss_32)
  assert np.isfinite(gradient).all() and np.isfinite(gradient_32).all()
  # Terms are means of cosines, so errors are absolute: a few roundings of numbers up to one.
  # The signed usage is divided by a maximum that may be small; its digits are lost in both forms.
  slack = 100 if config.usage == 'signed' else 1
  np.testing.assert_allclose(loss, wanted, rtol=slack * 1e-12, atol=1e-13)
  np.testing.assert_allclose(loss_32, wanted, rtol=slack * 1e-5, atol=1e-6)
  for term in wanted_terms:
    np.testing.assert_allclose(terms[term], wanted_terms[term], rtol=slack * 1e-12, atol=1e-13)
    np.testing.assert_allclose(terms_32[term], wanted_terms[term], rtol=slack * 1e-5, atol=1e-6)
  size = np.abs(wanted_gradient * scale_L111).max()
  for found, tolerance in ((gradient, 1e-12), (gradient_32, 1e-5)):
    # Nearly parallel features: the gradient is the small part of S orthogonal to u (here 1e-3 of
    # it), which costs three digits.
    tolerance *= slack * (1000 if kind == 'parallel' else 1)
    error = np.abs((found - wanted_gradient) * scale_L111).max()
    assert error <= tolerance * size, (error / size, tolerance)


def test_zero_features_have_zero_loss_and_gradient():
  for name in ('paper', 'thirds, code, signed, groups', 'authors, groups'):
    for form in (fast, slow):
      with jax.enable_x64(True):
        (loss, _), gradient = compiled(form, CONFIGS[name])(jnp.zeros((L, N, T, D)))
      assert loss == 0 and not np.any(gradient)


@pytest.mark.parametrize('case', ['big', 'small'])
def test_matches_reference(case):
  with jax.enable_x64(True):
    f_LNTD = jnp.asarray(GOLDEN[f'{case}/feats'], jnp.float64)
    subset = ','.join(str(block + 1) for block in GOLDEN[f'{case}/subset'])
    for config, name in (
      (Config(), 'L_div_paper_033/all'),
      (Config(layers=subset, dispersion_layers='all'), 'L_div_paper_033/subset_disp_all'),
      (authors(None), 'official/first10/total'),
      (authors(10), 'official/proj_enc10/total'),
    ):
      loss, terms = jax.jit(functools.partial(fast, config))(f_LNTD)
      np.testing.assert_allclose(loss, GOLDEN[f'{case}/{name}'], rtol=1e-12, atol=1e-13)
      if name.startswith('official'):
        rule = name.split('/')[1]
        for term, value in terms.items():
          wanted = GOLDEN[f'{case}/official/{rule}/{term}']
          np.testing.assert_allclose(value, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
  ('config', 'name'),
  [(Config(), 'L_div_paper_033'), (authors(None), 'L_div_official_first10')],
)
def test_gradient_matches_reference(config, name):
  with jax.enable_x64(True):
    f_LNTD = jnp.asarray(GOLDEN['small/feats'], jnp.float64)
    _, gradient = compiled(fast, config)(f_LNTD)
    wanted = GOLDEN[f'small/grad/{name}']
    np.testing.assert_allclose(gradient, wanted, rtol=1e-12, atol=1e-12 * np.abs(wanted).max())
    _, gradient = compiled(fast, config)(f_LNTD.astype(jnp.float32))
    np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_one_block_at_a_time_in_a_scan_with_layers_drawn_inside_jit():
  config = Config(layers='random', num_layers=3)
  f_LNTD = jnp.asarray(hostile('plain'), jnp.float32)

  def loss(f_LNTD, key):
    selection = config.select(L, key)

    def block(state, f_and_selected):
      x_NTD, carry = state
      f_NTD, selected = f_and_selected
      x_NTD = x_NTD + f_NTD  # The block's output depends on the one before, as in a network.
      carry, sums = streaming.update(carry, x_NTD, selected, config)
      return (x_NTD, carry), sums

    start = (jnp.zeros((N, T, D)), streaming.init_statistics((N, T, D), jnp.float32))
    (_, carry), sums = jax.lax.scan(block, start, (f_LNTD, selection.selected_L))
    loss_G, _ = streaming.finish(carry, sums, selection, config)
    return loss_G[0], selection.selected_L

  chosen = set()
  loss = jax.jit(jax.value_and_grad(loss, has_aux=True))
  for seed in range(2):
    (value, mask_L), gradient = loss(f_LNTD, jax.random.key(seed))
    layers = np.flatnonzero(mask_L)
    chosen.add(tuple(layers.tolist()))
    by_loop = lambda f, layers=layers: definition.diversity_loss(jnp.cumsum(f, 0), layers=layers)[0]
    wanted, wanted_gradient = jax.jit(jax.value_and_grad(by_loop))(f_LNTD)
    np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)
    size = np.abs(wanted_gradient).max()
    np.testing.assert_allclose(gradient, wanted_gradient, rtol=0, atol=1e-5 * size)
  assert len(chosen) > 1


def test_bfloat16_features_keep_a_float32_sum():
  f_LNTD = jnp.asarray(hostile('plain') + 1, jnp.bfloat16)
  assert streaming.init_statistics((N, T, D), jnp.bfloat16).unit_NTD.dtype == jnp.float32
  with jax.enable_x64(True):
    (wanted, wanted_terms), _ = compiled(slow, Config())(f_LNTD.astype(jnp.float64))
  (loss, terms), gradient = compiled(fast, Config())(f_LNTD)
  assert loss.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
  # A sum in bfloat16 is wrong by 1e-3 or more.
  np.testing.assert_allclose(loss, wanted, rtol=1e-5)
  np.testing.assert_allclose(terms['mi'], wanted_terms['mi'], rtol=1e-5)


def test_groups_follow_consecutive_examples():
  config = Config(groups=2)
  f_LNTD = jnp.asarray(hostile('plain'), jnp.float32)
  loss_G, _ = streaming.from_features(f_LNTD, config.select(L), config)
  part_loss = jax.jit(functools.partial(fast, Config()))
  parts = [part_loss(f_LNTD[:, part])[0] for part in (slice(0, 2), slice(2, 4))]
  np.testing.assert_allclose(loss_G, parts, rtol=1e-5)
  assert abs(parts[0] - parts[1]) > 1e-3
  with pytest.raises(types.UserError, match='groups=3 must be positive and divide the batch of 4'):
    fast(Config(groups=3), f_LNTD)


def test_running_sums_refuse_what_they_cannot_give():
  config = Config(mi='absolute')
  f_LNTD = jnp.ones((2, 1, 1, 4))
  carry, sums = streaming.update(
    streaming.init_statistics((1, 1, 4), jnp.float32), f_LNTD[0], 1, config
  )
  with pytest.raises(ValueError, match='use from_features'):
    streaming.finish(carry, sums, config.select(2), config)


def test_backward_keeps_the_features_only():
  """Residuals of the scan per block: f in its own type and its sums, not also u in float32."""
  depth, shape = 8, (4, 64, 64)
  config = Config()
  selection = config.select(depth)

  def loss(f_LNTD):
    loss_G, _ = streaming.from_features(f_LNTD, selection, config)
    return loss_G[0]

  f_LNTD = jnp.ones((depth, *shape), jnp.bfloat16)
  _, backward = jax.vjp(loss, f_LNTD)
  whole = [r for r in jax.tree.leaves(backward) if r.size >= f_LNTD.size]
  assert [r.dtype for r in whole] == [jnp.bfloat16], [(r.shape, r.dtype) for r in whole]
  total = sum(r.size * r.dtype.itemsize for r in jax.tree.leaves(backward))
  sum_bytes = 4 * np.prod(shape)  # S; the rest, sums of rows and columns, is small.
  assert total < f_LNTD.nbytes + 1.5 * sum_bytes, (total, f_LNTD.nbytes, sum_bytes)
