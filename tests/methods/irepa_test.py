"""iREPA, a preset of REPA's term: the reference's normalisation, projectors, losses, gradients.

Tolerances are those of the reference arrays: 2e-5 of the largest entry in float32 (losses 1e-5), in
float64 1e-10 for losses and their gradients, 1e-6 for a network whose softmax and sinusoids are
float32 all the same.
"""

import contextlib
import json
import types as python_types

from flax import nnx
from helpers import tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import convert, types
from diversedit_jax.experiment import flat_config
from diversedit_jax.losses import spatial
from diversedit_jax.methods import base, repa
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.models import config, heads

CASES = ('square', 'plain', 'wide', 'two', 'pointwise', 'mlp')


def close(found, expected, tolerance):
  """Up to a share of the largest entry."""
  largest = np.abs(expected).max()
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * largest)


def values(g, case, dtype):
  """The case's numbers, its term, features, targets and parameters by projector."""
  spec = next(one for one in json.loads(str(g['config']))['cases'] if one['name'] == case)
  conv = spec['projector'] == 'conv'
  term = repa.Repa(
    aligned=tuple(
      repa.Pair(encoder=str(i), block=1, width=width) for i, width in enumerate(spec['z_dims'])
    ),
    hidden=spec['D'],
    projector=spec['projector'],
    kernel=spec['kernel'] if conv else None,
    spatial_norm=spec['alpha'] if spec['method'] == 'zscore' else None,
  )
  architecture = python_types.SimpleNamespace(width=spec['D'], grid=tuple(spec['grid']))
  prefix = f'{case}/params/'
  names = {n.removeprefix(prefix): n for n in g if n.startswith(prefix)}
  of = lambda where: {n: jnp.asarray(g[f'{case}/{where}/{n}'], dtype) for n in names}
  targets = [jnp.asarray(g[f'{case}/teacher_{i}'], dtype) for i in range(len(term.aligned))]
  return term, architecture, jnp.asarray(g[f'{case}/student'], dtype), targets, of


def ours(theirs):
  """Parameters of the projectors, or gradients of them, by our names."""
  found = {}
  for name, x in theirs.items():
    _, head, *layer, kind = name.split('.')
    layer = {'0': 'fc1', '2': 'fc2', '4': 'fc3'}.get(layer[-1], 'conv')
    if kind == 'weight':
      x = x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]) if x.ndim == 4 else x.T
    found.setdefault(head, {}).setdefault(layer, {})[{'weight': 'kernel'}.get(kind, kind)] = x
  return found


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('bits', [32, 64])
def test_projections_losses_and_gradients_match_reference(golden, case, bits):
  g, suffix = golden('irepa'), '_f64' if bits == 64 else ''
  tolerance, of_losses = (1e-10, 1e-10) if bits == 64 else (2e-5, 1e-5)
  with jax.enable_x64() if bits == 64 else contextlib.nullcontext():
    term, architecture, f_NTD, targets, of = values(g, case, f'float{bits}')
    make = lambda: term.heads(architecture, config.PLAIN, rngs=nnx.Rngs(0))
    graphdef, _ = nnx.split(nnx.eval_shape(make))
    batch = {f'{i}/tokens': z for i, z in enumerate(targets)}

    def loss(params, f_NTD):
      made = nnx.merge(graphdef, params)
      noisy = tiny.noisy_of(f_NTD, f_NTD, jnp.zeros(1), jnp.zeros(1), **batch)
      context = base.Context(noisy=noisy, drawn=(), heads=made, teacher=None, step=jnp.int32(0))
      _, metrics = term.loss([f_NTD], context)
      return metrics['loss'], (metrics, [made[str(i)](f_NTD) for i in range(len(targets))])

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, (metrics, projected)), (of_params, of_f) = run(ours(of('params')), f_NTD)
    assert value.dtype == projected[0].dtype == f_NTD.dtype
    np.testing.assert_allclose(value, g[f'{case}/loss{suffix}'], rtol=0, atol=of_losses)
    each = [metrics.get(f'loss/{i}@1', value) for i in range(len(targets))]
    wanted = g[f'{case}/loss_per_encoder{suffix}']
    np.testing.assert_allclose(each, wanted, rtol=0, atol=of_losses)
    for i, found in enumerate(projected):
      close(found, g[f'{case}/projected_{i}{suffix}'], tolerance)
      if term.spatial_norm is not None:
        normed = spatial.normalised(targets[i], term.spatial_norm)
        close(normed, g[f'{case}/teacher_normed_{i}{suffix}'], tolerance)
    close(of_f, g[f'{case}/grad_student_f64'], tolerance)
    jax.tree.map(lambda a, b: close(a, b, tolerance), of_params, ours(of('grad_params_f64')))


def test_every_share_of_the_mean_matches_reference(golden):
  g = golden('irepa')
  for i, share in enumerate(g['alpha/values']):
    close(spatial.normalised(g['square/teacher_0'], share), g['alpha/normed'][i], 2e-5)
    with jax.enable_x64():
      found = spatial.normalised(jnp.asarray(g['square/teacher_0'], jnp.float64), share)
      close(found, g['alpha/normed_f64'][i], 1e-10)


def test_a_constant_channel_is_as_published_told_and_bounded_on_request(golden):
  """The published epsilon lets it drown the others; a larger one does not."""
  g = golden('irepa')
  for dtype, tolerance in ((jnp.float32, 2e-5), (jnp.float64, 1e-10)):
    with jax.enable_x64(dtype == jnp.float64):
      z_NTZ = jnp.asarray(g['constant/teacher'], dtype)
      close(spatial.normalised(z_NTZ, 0.6), g['constant/normed_alpha06_f64'], tolerance)
      close(spatial.normalised(z_NTZ, 1.0), g['constant/normed_alpha1_f64'], tolerance)
      np.testing.assert_allclose(spatial.constant_share(z_NTZ), 1 / 24, rtol=1e-6)
      assert spatial.constant_share(jnp.asarray(g['square/teacher_0'], dtype)) == 0
  z_NTZ = g['constant/teacher']
  published, bounded = (spatial.normalised(z_NTZ, 0.6, epsilon) for epsilon in (1e-6, 0.1))
  assert np.abs(published[..., 0]).min() > 1e5 > 1e2 * np.abs(published[..., 1:]).max()
  np.testing.assert_allclose(bounded[..., 0], 0.4 * 0.75 / 0.1, rtol=1e-5)

  def loss(**fields):
    term = repa.Repa(aligned=(repa.Pair(encoder='a', block=1, width=24),), **fields)
    noisy = tiny.noisy_of(z_NTZ, z_NTZ, jnp.zeros(1), jnp.zeros(1), **{'a/tokens': z_NTZ})
    student = {'0': lambda f: bounded}
    context = base.Context(noisy=noisy, drawn=(), heads=student, teacher=None, step=jnp.int32(0))
    return term.loss([z_NTZ], context)[1]

  metrics = loss(preset='irepa', epsilon=0.1)
  np.testing.assert_allclose(metrics['loss'], -1, atol=1e-6)
  np.testing.assert_allclose(metrics['constant'], 1 / 24, rtol=1e-6)
  assert loss(preset='irepa')['loss'] > -0.9
  assert 'constant' not in loss(preset='repa')


@pytest.mark.parametrize('projector', ['conv', 'mlp'])
def test_a_model_and_its_gradients_match_reference(golden, projector):
  """Imported by its names; the total is the flow's loss and the term, and so are gradients.

  Of the model with an mlp the final layer, which is another, is not stored: only its term is seen.
  """
  g = golden('irepa')
  spec, prefix = json.loads(str(g['config']))['model'], f'model_{projector}'
  of = lambda prefix: {n.removeprefix(prefix): g[n] for n in g if n.startswith(prefix)}
  stored = of('model_conv/params/')
  if projector == 'mlp':
    stored = {n: x for n, x in stored.items() if 'projectors' not in n}
    mlp = of('model_mlp/params/')
    stored |= {name.replace('.projection_layer', ''): x for name, x in mlp.items()}
  architecture = config.Architecture(
    input_size=(spec['input_size'],) * 2,
    **dict(channels=4, num_classes=5, patch_size=2, mlp_ratio=2.0),
    depth=spec['depth'],
    width=spec['D'],
    heads=spec['heads'],
  )
  aligned = repa.Pair(encoder='a', block=spec['encoder_depth'], width=spec['z_dims'][0])
  term = repa.Repa(preset='irepa', projector=projector, aligned=(aligned,), hidden=16)
  objective = objective_lib.Objective(flow=tiny.interpolant(), terms=(term,))
  with jax.enable_x64():
    array = lambda x: jnp.asarray(x, jnp.float64)
    params = jax.tree.map(array, convert.to_ours(stored, 'sit'))
    make = lambda: base.Network(architecture, tiny.EXECUTION, (term,), rngs=nnx.Rngs(0))
    graphdef, _ = nnx.split(nnx.eval_shape(make))
    noisy = tiny.noisy_of(
      *(array(tiny.nhwc(g[f'model/{name}'])) for name in ('images', 'noises')),
      jnp.asarray(g['model/labels'], jnp.int32),
      array(g['model/t']),
      **{'a/tokens': array(g['model/teacher_0'])},
    )
    noisy = objective.flow.at(noisy, noisy.t)

    def loss(params):
      network = nnx.merge(graphdef, params)
      return objective.loss(network, noisy, key=jax.random.key(0), step=jnp.int32(0))

    (total, metrics), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  if projector == 'mlp':
    np.testing.assert_allclose(metrics['repa/loss'], g[f'{prefix}/proj_term'], rtol=0, atol=1e-5)
    return
  same = lambda found, name: np.testing.assert_allclose(found, g[f'{prefix}/{name}'], rtol=1e-6)
  same(total, 'total_f64')
  same(metrics['repa/loss'], 'proj_term_f64')
  np.testing.assert_allclose(metrics['velocity'], g[f'{prefix}/denoising_loss_f64'].mean(), 1e-6)
  theirs, expected = convert.to_torch(grads, 'sit', grid=(4, 4)), of(f'{prefix}/grad_params_f64/')
  assert len(expected) == 5
  for name, gradient in expected.items():
    close(theirs[name], gradient, 1e-6)


# What the reference does not have.


def test_a_class_token_has_its_own_projector_and_no_part_in_the_rest():
  """REG: normalisation and convolution see the patches alone; the token is aligned as in REPA."""
  f_NTD, z_NTZ, summary_NZ = (normal(*s) for s in ((2, 5, 16), (2, 4, 6), (2, 6)))
  architecture = tiny.architecture(class_token=6)
  term = repa.Repa(
    preset='irepa', aligned=tiny.TOKEN.aligned, hidden=8, class_token=True, weight=0.5
  )
  graphdef, params = tiny.parameters(architecture, (term,))
  head = nnx.merge(graphdef, params).heads['repa']['0']
  patches = heads.ConvProjector(16, 6, kernel=3, grid=(2, 2), rngs=nnx.Rngs(0))
  patches.conv = head.conv
  np.testing.assert_array_equal(head(f_NTD)[:, :1], head.class_token(f_NTD[:, :1]))
  np.testing.assert_array_equal(head(f_NTD)[:, 1:], patches(f_NTD[:, 1:]))
  batch = {'enc/tokens': z_NTZ, 'enc/summary': summary_NZ}
  context = base.Context(
    noisy=tiny.noisy_of(f_NTD, f_NTD, jnp.zeros(2), jnp.zeros(2), **batch),
    drawn=(),
    heads={'0': head},
    teacher=None,
    step=jnp.int32(0),
  )
  loss, _ = term.loss([f_NTD], context)
  target = np.concatenate([summary_NZ[:, None], spatial.normalised(z_NTZ, 0.6)], axis=1)
  np.testing.assert_allclose(loss, 0.5 * jnp.mean(repa.alignment(head(f_NTD), target)), rtol=1e-6)
  # A convolution of four patches, and three layers for one token.
  assert term.flops(architecture, 4) == 6 * (4 * 9 * 16 * 6 + 16 * 8 + 8 * 8 + 8 * 6)


def normal(*shape):
  return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def test_the_preset_is_what_was_published_and_keys_win():
  term = repa.Repa(preset='irepa')
  assert (term.weight, term.projector, term.spatial_norm) == (1.0, 'conv', 0.6)
  given = dict(weight=0.5, projector='mlp', spatial_norm=0.8)
  term = repa.Repa(preset='irepa', **given)
  assert {name: getattr(term, name) for name in given} == given
  assert repa.Repa(preset='irepa', kernel=1).kernel == 1
  plain = repa.Repa()
  assert (plain.weight, plain.projector, plain.spatial_norm) == (0.5, 'mlp', None)


def test_a_run_from_before_the_preset_goes_on():
  """Its config has the number, and a new one None."""
  before = flat_config.flatten({'method': 'repa', 'repa': {'weight': 0.5}})
  assert flat_config.complete(before) == flat_config.complete({'method': 'repa'})
  irepa = flat_config.complete({'method': 'repa', 'repa.preset': 'irepa'})
  assert irepa['repa.weight'] == 1.0


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'kernel': 3}, 'repa.kernel=3 is for repa.projector=conv'),
    ({'preset': 'irepa', 'kernel': 2}, 'repa.kernel must be odd, to have a middle, got 2'),
    ({'epsilon': 0.1}, 'repa.epsilon=0.1 is for repa.spatial_norm=NUMBER'),
    ({'preset': 'jit'}, "repa.preset 'jit'"),
  ],
)
def test_refuses_values_without_a_use(fields, message):
  with pytest.raises(types.UserError, match=message):
    repa.Repa(**fields)


def test_one_token_has_no_deviation():
  with pytest.raises(types.UserError, match='normalises over the patch tokens of an image'):
    repa.Repa(preset='irepa').check(tiny.architecture(patch_size=4), 4)
