"""Whole trajectories: reference runs, evaluation counts, independence of the batch, one program."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import interpolants, rng, sampling, types
from diversedit_jax.sampling import steppers, trajectory

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / 'golden' / 'samplers.npz')
RUNS = {run['name']: run for run in json.loads(str(GOLDEN['runs']))}
KINDS = {'euler': 'euler', 'heun': 'heun', 'em': 'euler_maruyama'}


def nhwc(a):
  return np.moveaxis(a, -3, -1)


def analytic_velocity(path, dtype):
  """Velocity of the mixture whose class k is N(mu_k, std_k^2 I); labels >= K are the null class.

  The state may have another type: it is rounded to `dtype` at every call.
  """
  mu_KHWC = jnp.asarray(nhwc(GOLDEN['mu']), dtype)
  std_K = jnp.asarray(GOLDEN['std'], dtype)

  def predict(x_NHWC, t_N, y_N):
    x_NHWC = x_NHWC.astype(dtype)
    t = t_N.astype(dtype)[:, None, None, None]
    row_N = jnp.minimum(y_N, len(std_K) - 1)
    m, s = mu_KHWC[row_N], std_K[row_N][:, None, None, None]
    alpha, sigma, d_alpha, d_sigma = (
      f(t) for f in (path.alpha, path.sigma, path.d_alpha, path.d_sigma)
    )
    variance = alpha**2 * s**2 + sigma**2
    r = x_NHWC - alpha * m
    return d_alpha * (m + alpha * s**2 * r / variance) + d_sigma * sigma * r / variance

  return predict


def config_of(name, dtype='float64'):
  run = RUNS[name]
  return sampling.SamplerConfig(
    kind=KINDS[name.split('/')[1]],
    steps=int(GOLDEN['num_steps']),
    path=run['path'],
    guidance_scale=run['cfg_scale'],
    guidance_low=run['guidance_low'],
    guidance_high=run['guidance_high'],
    dtype=dtype,
  )


def integrate(predict, config):
  noise_SNHWC = jnp.asarray(nhwc(GOLDEN['sde_noise']), config.dtype)
  unused = jnp.full_like(noise_SNHWC[:1], jnp.nan)  # The last step has no noise.
  noise_SNHWC = jnp.concatenate([noise_SNHWC, unused])
  return trajectory.integrate(
    predict,
    jnp.asarray(nhwc(GOLDEN['latents'])),
    jnp.asarray(GOLDEN['y'], jnp.int32),
    config,
    noise=lambda step: noise_SNHWC[step],
    null_label=int(GOLDEN['null_label']),
  )


@pytest.mark.parametrize('name', RUNS)
def test_final_state_matches_reference(name):
  run = RUNS[name]
  path = interpolants.PATHS[run['path']]
  wanted = nhwc(GOLDEN[f'{name}/final'])
  rounded = name.endswith('_f32latents')
  with jax.enable_x64(True):
    predict = analytic_velocity(path, jnp.float32 if rounded else jnp.float64)
    found = jax.jit(lambda: integrate(predict, config_of(name)))()
    assert found.dtype == jnp.float64
  # Rounded to float32, a velocity of up to 5 is wrong by a few times 3e-7; over a total time of 1
  # that adds up to about as much, nearly doubled by the guidance.
  np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 if rounded else 1e-10)


@pytest.mark.parametrize('name', [n for n in RUNS if 'cfg1.8_high0.7' in n and 'f32' not in n])
def test_float32_state_follows_the_float64_one(name):
  predict = analytic_velocity(interpolants.PATHS[RUNS[name]['path']], jnp.float32)
  found = jax.jit(lambda: integrate(predict, config_of(name, 'float32')))()
  assert found.dtype == jnp.float32
  # As above, and the state of up to 5 is rounded 20 times, by up to 2.4e-7.
  np.testing.assert_allclose(found, nhwc(GOLDEN[f'{name}/final']), rtol=0, atol=7e-6)


@pytest.mark.parametrize('name', [n for n in RUNS if 'f32' not in n])
def test_evaluations_match_reference(name):
  """Run step by step, recording every call of the network."""
  calls = []
  with jax.enable_x64(True):
    analytic = analytic_velocity(interpolants.PATHS[RUNS[name]['path']], jnp.float64)
    analytic = jax.jit(analytic)

    def predict(x_NHWC, t_N, y_N):
      calls.append((np.asarray(x_NHWC), np.asarray(t_N)))
      with jax.disable_jit(False):
        return analytic(x_NHWC, t_N, y_N)

    with jax.disable_jit():
      integrate(predict, config_of(name))
  assert len(calls) == GOLDEN[f'{name}/n_evals']
  np.testing.assert_array_equal([len(x) for x, _ in calls], GOLDEN[f'{name}/eval_batch'])
  assert all((t_N == t_N[0]).all() for _, t_N in calls)
  # Two ways to round a grid.
  np.testing.assert_allclose([t_N[0] for _, t_N in calls], GOLDEN[f'{name}/eval_t'], atol=2e-16)
  if f'{name}/eval_x' in GOLDEN:
    x = [x[: len(GOLDEN['y'])] for x, _ in calls]
    np.testing.assert_allclose(x, nhwc(GOLDEN[f'{name}/eval_x']), rtol=0, atol=1e-10)
  counted = sampling.evaluations(config_of(name))
  assert counted.calls == len(calls)
  assert counted.per_sample == sum(GOLDEN[f'{name}/eval_batch']) / len(GOLDEN['y'])


def test_evaluations_inside_a_step_are_guided_by_their_own_time(monkeypatch):
  monkeypatch.setitem(steppers.KINDS, 'middle', steppers.Kind(step=steppers.heun, at=(0.0, 0.5)))
  options = {'kind': 'middle', 'steps': 1, 'guidance_scale': 2.0}
  options |= {'guidance_low': 0.4, 'guidance_high': 0.6}
  idle = sampling.SamplerConfig(**options).without_effect()
  assert idle == ['sampler.guidance_scale=2.0 has no effect: no step starts in [0.4, 0.6]']
  found = sampling.SamplerConfig(**options, guidance_rule='evaluation')
  assert not found.without_effect() and sampling.evaluations(found) == (3, 2)
  assert not dataclasses.replace(found, autoguidance='runs/worse').without_effect()


@pytest.mark.parametrize('at', [(0.0,), (0.0, 0.5, 1.0)])
def test_a_step_that_evaluates_elsewhere_than_it_says_is_refused(monkeypatch, at):
  kind = dataclasses.replace(steppers.KINDS['heun'], at=at, last='')
  monkeypatch.setitem(steppers.KINDS, 'heun', kind)
  config = sampling.SamplerConfig(kind='heun', steps=2)
  with pytest.raises(ValueError, match=f'evaluates the velocity 2 times; .* has {len(at)}'):
    trajectory.integrate(lambda x, t, y: x, jnp.ones((1, 2, 2, 1)), None, config, null_label=None)


BETWEEN = [
  # (options, null velocity's share of the image, velocities for each step)
  ({'guidance_scale': 0.0}, 1.0, ['null']),
  ({'guidance_scale': 0.25}, 0.75, ['class', 'null']),
  ({'guidance_scale': 1.0}, 0.0, ['class']),
  ({'guidance_scale': 3.0}, -2.0, ['class', 'null']),
  ({'guidance_scale': 0.0, 'guidance_channels': 1}, 1.0, ['class', 'null']),
]


@pytest.mark.parametrize('kind', ['euler', 'heun', 'euler_maruyama'])
@pytest.mark.parametrize(('options', 'share', 'velocities'), BETWEEN)
def test_scales_follow_the_formula_in_every_sampler(kind, options, share, velocities):
  """Scale 0 asks for the null label alone, 1 for the class alone; both cost one evaluation."""
  config = sampling.SamplerConfig(kind=kind, steps=2, **options)
  rows, asked = jnp.asarray([3.0, 7.0]), []

  def constant(x, t_N, y_N):
    asked.append(len(y_N))
    return jnp.broadcast_to(rows[y_N][:, None, None, None], x.shape)

  def run(predict, labels, config, null_label):
    noise = lambda step: jnp.zeros((1, 2, 2, 1))
    start = jnp.ones((1, 2, 2, 1))
    return trajectory.integrate(predict, start, labels, config, noise=noise, null_label=null_label)

  labels = jnp.zeros(1, jnp.int32)
  x = run(constant, labels, config, 1)
  assert set(asked) == {len(velocities)}
  plain = dataclasses.replace(config, guidance_scale=1.0, guidance_channels=None)
  mixed = (1 - share) * rows[0] + share * rows[1]
  expected = run(lambda x, t, y: jnp.full_like(x, mixed), labels, plain, None)
  np.testing.assert_allclose(x, expected, rtol=1e-6)
  once = trajectory.evaluations(plain).per_sample
  assert trajectory.evaluations(config).per_sample == once * len(velocities)


def test_the_class_token_is_guided_where_the_image_is_not():
  config = sampling.SamplerConfig(kind='euler', steps=4, class_token_scale=2.3, guidance_high=0.5)
  assert trajectory.evaluations(config).per_sample == 4 + 2  # The steps from 0.5 and 0.25.
  for scale in (0.0, 1.0):  # Both leave the token with its class, as in REG.
    one = dataclasses.replace(config, class_token_scale=scale)
    assert trajectory.evaluations(one).per_sample == 4


@pytest.fixture(scope='module')
def network():
  return analytic_velocity(interpolants.linear(), jnp.float32)


SDE = sampling.SamplerConfig(steps=6, guidance_scale=1.5, guidance_high=0.7)


@pytest.fixture(scope='module')
def compiled(network):
  return jax.jit(
    lambda keys_N, labels_N: sampling.sample(
      network, (4, 4, 4), keys_N, labels_N, SDE, null_label=1000
    )
  )


def test_a_sample_depends_on_its_own_key_only(compiled):
  labels_N = jnp.arange(8, dtype=jnp.int32) % 3
  keys_N = rng.per_example(jax.random.key(0), jnp.arange(8))
  together = compiled(keys_N, labels_N)
  apart = [compiled(keys_N[part], labels_N[part]) for part in (slice(3), slice(3, 6), slice(6, 8))]
  # The same numbers; only fused multiply-adds may differ between programs.
  np.testing.assert_allclose(together, np.concatenate(apart), rtol=1e-5, atol=1e-5)
  assert np.std(together, axis=0).min() > 1e-3, 'samples must differ from each other'
  other = compiled(keys_N.at[0].set(jax.random.key(9)), labels_N)
  assert np.abs(other[0] - together[0]).max() > 1e-2
  np.testing.assert_array_equal(other[1:], together[1:])


def test_noise_differs_between_steps_and_is_normal():
  """With zero velocity and the drift undone, a step adds its noise alone."""
  config = sampling.SamplerConfig(steps=3)
  grid = trajectory.time_grid(config)
  seen = {}

  def predict(x_NHWC, t_N, y_N):
    keep = lambda x, t: seen.__setitem__(round(float(t[0]), 4), np.array(x))
    jax.debug.callback(keep, x_NHWC, t_N)
    return jnp.zeros_like(x_NHWC)

  keys_N = jax.random.split(jax.random.key(1), 4)
  end = sampling.sample(predict, (16, 16, 4), keys_N, None, config, null_label=None)
  jax.effects_barrier()
  x_0, x_1, x_2 = (seen[round(float(t), 4)] for t in grid[:3])
  dt = np.diff(grid)
  z_0 = (x_1 - x_0 * (1 + dt[0])) / np.sqrt(2 * grid[0] * -dt[0])
  z_1 = (x_2 - x_1 * (1 + dt[1])) / np.sqrt(2 * grid[1] * -dt[1])
  np.testing.assert_allclose(end, x_2 * (1 + dt[2]), rtol=1e-5)  # Deterministic.
  for z in (x_0, z_0, z_1):
    # 4096 draws: five standard deviations of the mean and of the variance.
    assert abs(z.mean()) < 5 / 64 and abs(z.var() - 1) < 5 * np.sqrt(2) / 64
  for a, b in ((x_0, z_0), (z_0, z_1), (z_0[0], z_0[1])):
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


def test_the_network_is_traced_once_per_stretch(network):
  traced = []

  def predict(x_NHWC, t_N, y_N):
    traced.append(len(x_NHWC))
    return network(x_NHWC, t_N, y_N)

  run = lambda config: jax.make_jaxpr(
    lambda keys_N, labels_N: sampling.sample(
      predict, (2, 4, 4, 4), keys_N, labels_N, config, null_label=1000
    )
  )(jax.random.split(jax.random.key(0), 2), jnp.zeros(2, jnp.int32))
  for options, wanted in (
    ({}, [2]),
    ({'kind': 'euler'}, [2]),
    ({'guidance_scale': 1.8, 'guidance_high': 0.7}, [2, 4]),
    ({'kind': 'heun'}, [2, 2, 2]),
  ):
    traced.clear()
    run(sampling.SamplerConfig(steps=100, **options))
    assert traced == wanted, options


def test_euler_of_a_point_mass_is_exact():
  """All data at m: the velocity x - m over t is constant along a path, so one step suffices."""
  m = 0.75
  predict = lambda x_NHWC, t_N, y_N: (x_NHWC - m) / t_N[:, None, None, None]
  config = sampling.SamplerConfig(kind='euler', steps=7)
  keys_N = jax.random.split(jax.random.key(2), 3)
  x = sampling.sample(predict, (4, 4, 2), keys_N, None, config, null_label=None)
  assert x.shape == (3, 4, 4, 2) and x.dtype == jnp.float32
  np.testing.assert_allclose(x, m, atol=1e-6)  # Seven float32 steps from numbers up to four.


def test_state_stays_float32_over_a_bfloat16_network():
  def predict(x_NHWC, t_N, y_N):
    assert x_NHWC.dtype == t_N.dtype == jnp.float32
    return jnp.full(x_NHWC.shape, 2.0**-9, jnp.bfloat16)

  config = sampling.SamplerConfig(kind='euler', steps=4)
  start = jnp.ones((1, 2, 2, 1))
  x = trajectory.integrate(predict, start, None, config, null_label=None)
  assert x.dtype == jnp.float32
  np.testing.assert_array_equal(x, np.float32(1 - 2.0**-9))  # 1 in bfloat16.


def test_refuses_guidance_without_classes_before_the_network_is_called():
  keys_N = jax.random.split(jax.random.key(0), 2)
  config = sampling.SamplerConfig(steps=4, guidance_scale=1.5)
  for labels_N, null_label in ((None, None), (None, 10), (jnp.zeros(2, jnp.int32), None)):
    with pytest.raises(types.UserError, match='guidance_scale=1.5 needs a network with classes'):
      sampling.sample(None, (2, 2, 1), keys_N, labels_N, config, null_label=null_label)
  trajectory.check_guidance(dataclasses.replace(config, guidance_scale=1.0), None)


def test_refuses_wrong_counts_and_types():
  keys_N = jax.random.split(jax.random.key(0), 2)
  config = sampling.SamplerConfig(steps=4)
  with pytest.raises(ValueError, match='asks for 3 samples, but there are 2 keys'):
    sampling.sample(None, (3, 2, 2, 1), keys_N, None, config, null_label=None)
  with pytest.raises(ValueError, match='needs noise'):
    trajectory.integrate(None, jnp.zeros((1, 2, 2, 1)), None, config, null_label=None)
  with pytest.raises(types.UserError, match='JAX_ENABLE_X64'):
    double = dataclasses.replace(config, dtype='float64')
    sampling.sample(None, (2, 2, 1), keys_N, None, double, null_label=None)


# Times of one's own, and a later start.


@pytest.mark.parametrize('kind', ['euler', 'heun'])
def test_given_times_are_walked(kind):
  """Against a loop of single steps; guided by the time at which a step begins."""
  times = (0.95, 0.7, 0.65, 0.2, 0.0)
  config = sampling.SamplerConfig(
    kind=kind,
    steps=4,
    times=times,
    start=0.95,
    guidance_scale=2.0,
    guidance_low=0.3,
    guidance_high=0.7,
    dtype='float64',
  )
  with jax.enable_x64(True):
    predict = analytic_velocity(interpolants.linear(), jnp.float64)
    x, y = jnp.asarray(nhwc(GOLDEN['latents']), jnp.float64), jnp.asarray(GOLDEN['y'], jnp.int32)
    found = jax.jit(lambda x: trajectory.integrate(predict, x, y, config, null_label=1000))(x)
    for i, (t, t_next) in enumerate(zip(times[:-1], times[1:], strict=True)):

      def velocity(x, at, t=t):
        v, null = (predict(x, jnp.full(4, at), y) for y in (y, jnp.full(4, 1000)))
        return null + 2 * (v - null) if 0.3 <= t <= 0.7 else v

      v = velocity(x, t)
      if kind == 'heun' and i < 3:
        v = (v + velocity(x + (t_next - t) * v, t_next)) / 2
      x = x + (t_next - t) * v
    np.testing.assert_allclose(found, x, rtol=1e-12, atol=1e-12)
  assert sampling.evaluations(config).calls == (4 if kind == 'euler' else 7)
  assert sampling.evaluations(config).per_sample == (6 if kind == 'euler' else 11)


# States of several arrays.


def test_arrays_of_a_state_have_noise_of_their_own():
  shapes = {'image': (3, 3, 2), 'token': (18,)}
  keys_N = rng.per_example(jax.random.key(1), jnp.arange(200))
  state = trajectory.normal(keys_N, shapes, 'sampling_step', jnp.float32, jnp.int32(3))
  assert {k: v.shape for k, v in state.items()} == {'image': (200, 3, 3, 2), 'token': (200, 18)}
  image, token = (np.asarray(state[k]).reshape(-1) for k in shapes)
  for a in (image, token):  # 3,600 draws: four standard deviations.
    assert abs(a.mean()) < 4 / 60 and abs(a.var() - 1) < 4 * np.sqrt(2) / 60
  assert abs(np.corrcoef(image, token)[0, 1]) < 4 / 60
  later = trajectory.normal(keys_N[5:6], shapes, 'sampling_step', jnp.float32, jnp.int32(4))
  again = trajectory.normal(keys_N[5:6], shapes, 'sampling_step', jnp.float32, jnp.int32(3))
  for name in shapes:
    np.testing.assert_array_equal(again[name][0], state[name][5])  # A function of its key alone.
    assert np.abs(later[name] - again[name]).max() > 0.1


@pytest.mark.parametrize('kind', sorted({*steppers.KINDS} - {'average_velocity'}))
def test_independent_arrays_of_a_state_move_as_if_alone(kind):
  """Two networks side by side, with guidance that combines each array by itself."""
  config = sampling.SamplerConfig(kind=kind, steps=5, guidance_scale=1.8, guidance_high=0.7)
  network = analytic_velocity(interpolants.linear(), jnp.float32)
  keys_N, y = rng.per_example(jax.random.key(0), jnp.arange(3)), jnp.asarray([0, 1, 2])
  start = {
    name: jnp.asarray(np.random.default_rng(i).normal(size=(3, 4, 4, 4)), jnp.float32)
    for i, name in enumerate('ab')
  }
  noise = lambda step: trajectory.normal(
    keys_N, {name: (4, 4, 4) for name in 'ab'}, 'sampling_step', jnp.float32, step
  )

  def together(start):
    predict = lambda x, t_N, y_N: {name: network(x[name], t_N, y_N) for name in x}
    combine = lambda v, null: jax.tree.map(config.guidance.combine, v, null)
    return trajectory.integrate(
      predict, start, y, config, noise=noise, null_label=1000, combine=combine
    )

  def alone(name):
    return trajectory.integrate(
      network, start[name], y, config, noise=lambda step: noise(step)[name], null_label=1000
    )

  found, wanted = jax.jit(lambda: (together(start), {name: alone(name) for name in 'ab'}))()
  for name in 'ab':
    np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=1e-5, err_msg=name)
  assert np.abs(found['a'] - found['b']).max() > 0.1


def test_average_velocities_are_not_integrated_as_velocities():
  config = sampling.SamplerConfig(kind='average_velocity', steps=1)
  with pytest.raises(ValueError, match='average velocities are not integrated'):
    trajectory.integrate(None, jnp.zeros((1, 2, 2, 1)), None, config, null_label=None)
  assert sampling.evaluations(config) == (1, 1)
  four = sampling.SamplerConfig(kind='average_velocity', steps=4)
  assert sampling.evaluations(four) == (4, 4)
