"""REG: the reference's training loss, and a class token that moves with the image in sampling."""

import dataclasses
import json

from flax import nnx
from helpers import networks, tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import convert, interpolants, rng, types
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.methods import repa
from diversedit_jax.models import taps
from diversedit_jax.sampling import trajectory

KEY = jax.random.key(0)
Z = tiny.WIDTHS['enc']
ARCHITECTURE = tiny.architecture(class_token=Z)


# Training.


@pytest.fixture(scope='module')
def reference(golden):
  """(arrays, network): REG's weights in our network."""
  arrays = golden('reg')
  spec = json.loads(str(arrays['config']))
  architecture = networks.of_golden(arrays, class_token=spec['z_dims'][0])
  # The reference aligns with other features than those that it noises.
  pair = repa.Pair(encoder='other', block=spec['encoder_depth'], width=spec['z_dims'][0])
  term = repa.Repa(aligned=(pair,), hidden=spec['projector_dim'], class_token=True)
  state = {k.removeprefix('params/'): v for k, v in arrays.items() if k.startswith('params/')}
  graphdef, _ = tiny.parameters(architecture, (term,))
  return arrays, nnx.merge(graphdef, convert.to_ours(state, 'reg')), term


@pytest.mark.parametrize('path', ['linear', 'cosine'])
def test_training_loss_matches_reference(reference, path):
  """On the cosine path with the intended values: the released code mixes examples there."""
  g, network, term = reference
  image = lambda name: jnp.asarray(tiny.nhwc(g[f'loss/{name}']))
  array = lambda name: jnp.asarray(g[f'loss/{name}'])
  flow = tiny.reg_flow(path=interpolants.PATHS[path], null_label=10)
  noisy = tiny.noisy_of(
    image('images'),
    image('noises'),
    array('y').astype(jnp.int32),
    array('t'),
    {'class_noise': array('cls_noises')},
    **{
      'enc/summary': array('cls_clean'),
      'other/summary': array('zs_0')[:, 0],
      'other/tokens': array('zs_0')[:, 1:],
    },
  )
  noisy = flow.at(noisy, noisy.t)

  @jax.jit
  def run(network, noisy):
    objective = objective_lib.Objective(flow=flow, terms=(term,))
    output = flow.run(network, noisy, taps.nothing())
    errors = (
      flow.loss(output.pred, noisy.target, noisy.t),
      flow.loss(output.class_token, noisy.extras['class_target'], noisy.t),
    )
    return *errors, objective.loss(network, noisy, key=KEY, step=jnp.int32(0))

  denoising_N, class_N, (loss, metrics) = run(network, noisy)
  stored = lambda name: g[f'loss/{path}/{name}']
  np.testing.assert_allclose(noisy.x_t.transpose(0, 3, 1, 2), stored('x_t'), atol=1e-6)
  np.testing.assert_allclose(noisy.extras['class_token'], stored('cls_t'), atol=1e-6)
  # Errors of up to 3, squared, of predictions that agree to 2e-5.
  np.testing.assert_allclose(denoising_N, stored('denoising'), rtol=2e-5)
  np.testing.assert_allclose(class_N, stored('denoising_cls'), rtol=2e-5)
  np.testing.assert_allclose(metrics['repa/loss'], stored('proj'), atol=2e-5)
  np.testing.assert_allclose(loss, stored('total'), rtol=2e-5)
  np.testing.assert_allclose(metrics['velocity'], stored('denoising').mean(), rtol=2e-5)
  np.testing.assert_allclose(metrics['class_token'], stored('denoising_cls').mean(), rtol=2e-5)


def test_the_class_token_has_noise_of_its_own_and_the_image_keeps_its():
  batch = tiny.batch(2000, shape=(1, 1, 1))
  noisy, plain = tiny.reg_flow().draw(batch, KEY), tiny.interpolant().draw(batch, KEY)
  for name in ('x_t', 't', 'y', 'target', 'noise'):
    np.testing.assert_array_equal(getattr(noisy, name), getattr(plain, name))
  noise_NZ, t = noisy.extras['class_noise'], noisy.t[:, None]
  clean_NZ = batch['enc/summary']
  np.testing.assert_array_equal(
    noise_NZ, jax.random.normal(rng.stream(KEY, 'class_token_noise'), (2000, Z))
  )
  np.testing.assert_allclose(
    noisy.extras['class_token'], (1 - t) * clean_NZ + t * noise_NZ, atol=1e-6
  )
  np.testing.assert_allclose(noisy.extras['class_target'], noise_NZ - clean_NZ, atol=1e-6)
  both = np.concatenate([noise_NZ, noisy.noise.reshape(2000, 1)], axis=1)
  correlation = np.corrcoef(both.T)[np.triu_indices(Z + 1, 1)]
  assert np.abs(correlation).max() < 5 / np.sqrt(2000)


def test_at_moves_the_class_token_too():
  flow = tiny.reg_flow(path=interpolants.cosine())
  noisy = flow.draw(tiny.batch(), KEY)
  t_N = jnp.asarray([0.0, 0.3, 0.6, 1.0])
  moved = flow.at(noisy, t_N)
  clean, noise = noisy.batch['enc/summary'], noisy.extras['class_noise']
  angle = np.pi / 2 * np.asarray(t_N)[:, None]
  wanted = np.cos(angle) * clean + np.sin(angle) * noise
  np.testing.assert_allclose(moved.extras['class_token'], wanted, atol=1e-6)
  np.testing.assert_array_equal(moved.extras['class_noise'], noise)
  jax.tree.map(np.testing.assert_array_equal, flow.at(moved, noisy.t), noisy)


def test_sra_gives_the_teacher_the_class_token_at_the_teachers_time():
  flow = tiny.reg_flow()
  objective = objective_lib.Objective(flow=flow, terms=(dataclasses.replace(tiny.SRA, t_max=1.0),))
  noisy = objective.draw(tiny.batch(), KEY)
  blocks = [jnp.zeros((4, 5, 8)), jnp.ones((4, 5, 8))]
  models = [tiny.Model(noisy.noise, blocks, class_token=jnp.zeros((4, Z))) for _ in range(2)]
  student, teacher = models
  objective.loss(
    tiny.Network(student, {'sra': lambda f: f}),
    noisy,
    key=KEY,
    step=jnp.int32(0),
    teacher=tiny.Network(teacher),
  )
  t_N = jnp.clip(noisy.t - noisy.drawn['sra'], 0, 1)
  assert len(student.calls) == len(teacher.calls) == 1
  np.testing.assert_array_equal(student.calls[0].class_token_NZ, noisy.extras['class_token'])
  given, wanted = teacher.calls[0], flow.at(noisy, t_N)
  np.testing.assert_array_equal(given.class_token_NZ, wanted.extras['class_token'])
  np.testing.assert_array_equal(given.x, wanted.x_t)
  assert np.abs(given.class_token_NZ - noisy.extras['class_token']).max() > 0.01


def test_predicted_data_are_those_of_image_and_class_token():
  flow = tiny.reg_flow(prediction='data')
  noisy = flow.at(flow.draw(tiny.batch(), KEY), jnp.asarray([0.1, 0.4, 0.7, 1.0]))
  summary = noisy.batch['enc/summary']
  network = tiny.Network(tiny.Model(noisy.clean, class_token=summary))
  _, loss_N, metrics = flow.forward(network, noisy, taps.nothing())
  np.testing.assert_array_equal(loss_N, 0)
  assert set(metrics) == {'velocity', 'class_token'}
  state = {'image': noisy.x_t, 'class_token': noisy.extras['class_token']}
  v = flow.velocity(network)(state, noisy.t, noisy.y)
  # Roundings of numbers up to 3, divided by 0.1.
  np.testing.assert_allclose(v['image'], noisy.noise - noisy.clean, atol=5e-6)
  np.testing.assert_allclose(v['class_token'], noisy.extras['class_noise'] - summary, atol=5e-6)


# Sampling.


LABELS = jnp.asarray([0, 2, 4])
KEYS = jax.random.split(jax.random.key(3), 3)


@pytest.fixture(scope='module')
def network():
  graphdef, params = tiny.parameters(ARCHITECTURE)
  return nnx.merge(graphdef, params)


@jax.jit
def call(network, x, c, t, y):
  return network.model(x, t, y, class_token_NZ=c)[::2]


def by_hand(network, config):
  """The released sampler in numpy: image and class token side by side, (image, class token)."""
  shapes = {'image': ARCHITECTURE.shape, 'class_token': (Z,)}
  draw = lambda name, step=None: trajectory.normal(KEYS, shapes, name, jnp.float32, step)
  x, c = (np.asarray(draw('sampling_start')[k], np.float64) for k in shapes)
  grid = trajectory.time_grid(config)
  scales = (
    config.guidance_scale,
    (config.guidance_scale if config.class_token_scale is None else config.class_token_scale),
  )

  def velocities(x, c, t, y):
    out = call(network, jnp.float32(x), jnp.float32(c), jnp.full(3, t, jnp.float32), y)
    return [np.asarray(o, np.float64) for o in out]

  for i, (t, t_next) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
    both = velocities(x, c, t, LABELS)
    if max(scales) > 1 and t <= config.guidance_high:
      null = velocities(x, c, t, jnp.full(3, tiny.CLASSES))
      both = [
        n + scale * (v - n) if scale > 0 else v
        for v, n, scale in zip(both, null, scales, strict=True)
      ]
    moved = []
    for state, v, name in zip((x, c), both, shapes, strict=True):
      if config.kind == 'euler':
        moved.append(state + (t_next - t) * v)
        continue
      state = state + (t_next - t) * (state + (2 - t) * v)  # The closed form of the linear path.
      if t_next > 0:
        noise = np.asarray(draw('sampling_step', i)[name], np.float64)
        state = state + np.sqrt(2 * t * (t - t_next)) * noise
      moved.append(state)
    x, c = moved
  return x, c


@pytest.mark.parametrize(
  ('kind', 'scale', 'class_token_scale'),
  [
    ('euler', 1.0, None),
    ('euler', 1.0, 2.3),
    ('euler', 2.0, 0.0),
    ('euler', 2.0, 0.5),
    ('euler_maruyama', 2.0, None),
    ('euler_maruyama', 2.0, 3.5),
  ],
)
def test_sampling_is_the_loop_over_the_steps(network, kind, scale, class_token_scale):
  config = trajectory.SamplerConfig(
    kind=kind, steps=4, guidance_scale=scale, guidance_high=0.7, class_token_scale=class_token_scale
  )
  x, _ = by_hand(network, config)
  found = jax.jit(lambda network: tiny.reg_flow().sample(network, KEYS, LABELS, config))(network)
  assert found.shape == (3, *ARCHITECTURE.shape) and np.abs(found).max() > 0.5
  # Pictures up to 10, by a network of float32 products in another order.
  np.testing.assert_allclose(found, x, rtol=0, atol=1e-4)


def test_class_token_matters_to_the_picture(network):
  """Guards the test above: other guidance of the class token alone gives another picture."""
  config = trajectory.SamplerConfig(kind='euler', steps=3, guidance_scale=2.0)
  own = [
    by_hand(network, dataclasses.replace(config, class_token_scale=s))[0] for s in (None, 0.0, 3.5)
  ]
  for i in range(3):
    assert np.abs(own[i] - own[i - 1]).max() > 5e-3
  np.testing.assert_allclose(
    own[0], by_hand(network, dataclasses.replace(config, class_token_scale=2.0))[0], atol=1e-9
  )


# Refusals.


def test_refuses():
  tiny.check(tiny.reg_flow(), ARCHITECTURE)
  assert tiny.reg_flow().encoders == ('enc',)
  with pytest.raises(types.UserError, match='needs a model with a class token'):
    tiny.check(tiny.reg_flow(), tiny.architecture())
  for options, message in ((dict(kind='average_velocity', steps=1), 'set method=meanflow'),):
    with pytest.raises(types.UserError, match=message):
      tiny.check(tiny.reg_flow(), ARCHITECTURE, trajectory.SamplerConfig(**options))
