"""SiT's flow: what is random, what each prediction is scored by, and the velocity that it says."""

from helpers import tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import interpolants, rng, types
from diversedit_jax.interpolants import times
from diversedit_jax.models import taps
from diversedit_jax.sampling import trajectory

PREDICTIONS = ('velocity', 'noise', 'score', 'data')
T_N = np.array([0.05, 0.31, 0.5, 0.77, 0.97])

# (alpha, sigma) and the weights of SiT's losses on either path, worked out by hand from
# lambda = sigma sigma' - (alpha'/alpha) sigma^2: t / (1 - t) and (pi/2) tan(pi t / 2).
HALF_PI = np.pi / 2
BY_HAND = {
  'linear': {
    'path': lambda t: (1 - t, t),
    'none': lambda t: np.ones_like(t),
    'velocity': lambda t: 1 / (1 - t) ** 2,
    'likelihood': lambda t: 1 / (t * (1 - t)),
  },
  'cosine': {
    'path': lambda t: (np.cos(HALF_PI * t), np.sin(HALF_PI * t)),
    'none': lambda t: np.ones_like(t),
    'velocity': lambda t: (HALF_PI / np.cos(HALF_PI * t)) ** 2,
    'likelihood': lambda t: HALF_PI / (np.sin(HALF_PI * t) * np.cos(HALF_PI * t)),
  },
}


@pytest.fixture
def _float64():
  with jax.enable_x64(True):
    yield


def arrays(count, seed=0):
  """That many arrays for the five times, float64."""
  return [jnp.asarray(x) for x in np.random.default_rng(seed).normal(size=(count, 5, 2, 2, 3))]


def made_draw(flow, images, noise, t_N=T_N):
  labels = jnp.asarray([0, 1, tiny.CLASSES, 2, 3])
  draw = tiny.noisy_of(images, noise, labels, jnp.zeros(5), extras={'term': jnp.arange(5)})
  return flow.at(draw, jnp.asarray(t_N))


@pytest.mark.usefixtures('_float64')
@pytest.mark.parametrize('weighting', ['none', 'velocity', 'likelihood'])
@pytest.mark.parametrize('path', BY_HAND)
def test_losses_of_noise_and_score_are_those_of_sit(path, weighting):
  images, noise, said = arrays(3)
  weight_N = BY_HAND[path][weighting](T_N)
  sigma = BY_HAND[path]['path'](T_N)[1][:, None, None, None]
  errors = {'noise': said - noise, 'score': sigma * said + noise}
  for prediction, error in errors.items():
    flow = tiny.interpolant(
      path=interpolants.PATHS[path], prediction=prediction, weighting=weighting
    )
    network = tiny.Network(tiny.Model(said))
    _, loss_N, metrics = flow.forward(network, made_draw(flow, images, noise), taps.nothing())
    wanted = weight_N * np.mean(np.asarray(error) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(loss_N, wanted, rtol=1e-12)
    assert set(metrics) == {prediction}
    np.testing.assert_allclose(metrics[prediction], wanted.mean(), rtol=1e-12)


@pytest.mark.usefixtures('_float64')
@pytest.mark.parametrize('path', interpolants.PATHS)
@pytest.mark.parametrize('prediction', ['noise', 'score'])
def test_the_weight_velocity_makes_the_loss_that_of_the_velocity_said(path, prediction):
  images, noise, said = arrays(3)
  path = interpolants.PATHS[path]
  flow = tiny.interpolant(path=path, prediction=prediction, weighting='velocity')
  network = tiny.Network(tiny.Model(said))
  draw = made_draw(flow, images, noise)
  loss_N = flow.forward(network, draw, taps.nothing())[1]
  velocity = flow.velocity(network)(draw.x_t, draw.t, draw.y)
  truth = interpolants.velocity_target(path, images, noise, draw.t)
  np.testing.assert_allclose(loss_N, jnp.mean((velocity - truth) ** 2, axis=(1, 2, 3)), rtol=1e-9)


@pytest.mark.usefixtures('_float64')
@pytest.mark.parametrize('path', interpolants.PATHS)
@pytest.mark.parametrize('prediction', PREDICTIONS)
def test_an_exact_prediction_says_the_true_velocity_and_costs_nothing(path, prediction):
  images, noise = arrays(2)
  path = interpolants.PATHS[path]
  flow = tiny.interpolant(path=path, prediction=prediction)
  draw = made_draw(flow, images, noise)
  truth = interpolants.velocity_target(path, images, noise, draw.t)
  sigma = path.sigma(draw.t)[:, None, None, None]
  exact = {'velocity': truth, 'noise': noise, 'score': -noise / sigma, 'data': images}[prediction]
  model = tiny.Model(exact)
  network = tiny.Network(model)
  found = flow.velocity(network)(draw.x_t, draw.t, draw.y)
  # Near the ends noise and data are told apart by differences of a hundredth of their size.
  np.testing.assert_allclose(found, truth, rtol=1e-10, atol=1e-10)
  np.testing.assert_array_equal(model.calls[0].y, draw.y)
  np.testing.assert_allclose(flow.forward(network, draw, taps.nothing())[1], 0, atol=1e-28)


@pytest.mark.usefixtures('_float64')
@pytest.mark.parametrize('path', BY_HAND)
@pytest.mark.parametrize('prediction', PREDICTIONS)
def test_at_changes_the_time_alone(path, prediction):
  images, noise = arrays(2)
  flow = tiny.interpolant(path=interpolants.PATHS[path], prediction=prediction)
  draw = made_draw(flow, images, noise)
  moved = flow.at(draw, jnp.asarray(T_N[::-1] / 2))
  np.testing.assert_array_equal(moved.t, T_N[::-1] / 2)
  expand = lambda x_N: np.asarray(x_N)[:, None, None, None]
  alpha, sigma = map(expand, BY_HAND[path]['path'](T_N[::-1] / 2))
  np.testing.assert_allclose(moved.x_t, alpha * images + sigma * noise, rtol=1e-13)
  if prediction == 'noise':
    np.testing.assert_array_equal(moved.target, noise)
  for name in ('noise', 'y', 'batch', 'extras'):
    jax.tree.map(np.testing.assert_array_equal, getattr(moved, name), getattr(draw, name))
  back = flow.at(moved, draw.t)
  jax.tree.map(np.testing.assert_array_equal, back, draw)


@pytest.mark.usefixtures('_float64')
@pytest.mark.parametrize('kind', ['euler', 'euler_maruyama'])
def test_samples_do_not_depend_on_what_the_network_predicts(kind):
  """Networks that know a Gaussian of mean 0.3 and deviation 0.5 exactly, each in its own words."""
  path = interpolants.cosine()
  keys_N, labels_N = jax.random.split(jax.random.key(0), 3), jnp.asarray([0, 1, 2])
  config = trajectory.SamplerConfig(
    kind=kind,
    steps=4,
    start=0.98,
    path='cosine',
    guidance_scale=1.5,
    guidance_high=0.6,
    dtype='float64',
  )

  def says(prediction):
    def pred(x, t_N, y_N):
      t = t_N[:, None, None, None]
      mean = 0.3 + 0.1 * y_N[:, None, None, None]
      alpha, sigma = path.alpha(t), path.sigma(t)
      r = (x - alpha * mean) / (alpha**2 * 0.25 + sigma**2)
      noise, clean = sigma * r, mean + alpha * 0.25 * r  # Means given x.
      velocity = path.d_alpha(t) * clean + path.d_sigma(t) * noise
      return {'velocity': velocity, 'noise': noise, 'score': -r, 'data': clean}[prediction]

    model = tiny.Model(pred, shape=(2, 2, 1), null_label=tiny.CLASSES)
    return tiny.interpolant(path=path, prediction=prediction).sample(
      tiny.Network(model), keys_N, labels_N, config
    )

  made = jax.jit(lambda: {prediction: says(prediction) for prediction in PREDICTIONS})()
  assert np.std(made['velocity']) > 0.1
  for prediction in PREDICTIONS[1:]:
    np.testing.assert_allclose(made[prediction], made['velocity'], rtol=1e-9, atol=1e-9)


# What is random.


@pytest.fixture(scope='module')
def many():
  """20,000 one-pixel examples and their draw, label dropout 0.1."""
  batch = tiny.batch(20_000, shape=(1, 1, 1))
  return batch, tiny.interpolant().draw(batch, jax.random.key(5))


def noise_of(batch, draw):
  """The noise of a draw on the linear path: x_t + (1 - t) v."""
  t = draw.t.reshape(-1, 1, 1, 1)
  return np.asarray(draw.x_t + (1 - t) * draw.target)


def test_labels_are_dropped_with_their_probability(many):
  batch, draw = many
  dropped = np.asarray(draw.y) == tiny.CLASSES
  n, p = len(dropped), 0.1
  # Four standard deviations of a binomial share.
  assert abs(dropped.mean() - p) < 4 * np.sqrt(p * (1 - p) / n)
  np.testing.assert_array_equal(draw.y[~dropped], batch['labels'][~dropped])
  for label in range(tiny.CLASSES):  # Each class as often as any other.
    share = dropped[np.asarray(batch['labels']) == label].mean()
    assert abs(share - p) < 4 * np.sqrt(p * (1 - p) * tiny.CLASSES / n)


def test_no_dropout_and_no_classes():
  batch = tiny.batch(50)
  kept = tiny.interpolant(label_dropout=0.0).draw(batch, jax.random.key(0))
  np.testing.assert_array_equal(kept.y, batch['labels'])
  unconditional = tiny.interpolant(null_label=None).draw(batch, jax.random.key(0))
  np.testing.assert_array_equal(unconditional.y, np.zeros(50))
  assert unconditional.y.dtype == batch['labels'].dtype


@pytest.mark.parametrize('space', ['images', 'latents'])
def test_linear_path_gives_the_data_back(space):
  batch = tiny.batch(64)
  x_NHWC = batch.pop('images')
  draw = tiny.interpolant().draw(batch | {space: x_NHWC}, jax.random.key(0))
  t = draw.t.reshape(-1, 1, 1, 1)
  # x_t - t v = (1 - t) x + t e - t (e - x); float32 roundings of numbers up to 5.
  np.testing.assert_allclose(draw.x_t - t * draw.target, x_NHWC, rtol=0, atol=3e-6)


@pytest.mark.parametrize('path', ['cosine', 'vp'])
def test_other_paths_give_the_data_back(path):
  path, batch = interpolants.PATHS[path], tiny.batch(64)
  law = times.Uniform(epsilon=0.05)  # vp leaves e^-10 of the data at t = 1.
  draw = tiny.interpolant(path=path, time_law=law).draw(batch, jax.random.key(0))
  convert = lambda target: interpolants.convert.convert(
    draw.target, draw.x_t, draw.t, path, source='velocity', target=target
  )
  np.testing.assert_allclose(convert('x0'), batch['images'], rtol=0, atol=1e-3)
  # 1,024 standard normal values: four standard deviations of their mean square.
  assert abs(float(jnp.mean(jnp.square(convert('epsilon')))) - 1) < 4 * np.sqrt(2 / 1024)


def test_a_draw_is_a_function_of_the_key():
  batch = tiny.batch(8)
  draw = lambda seed: tiny.interpolant(label_dropout=0.5).draw(batch, jax.random.key(seed))
  jax.tree.map(np.testing.assert_array_equal, draw(0), draw(0))
  jitted = jax.jit(tiny.interpolant(label_dropout=0.5).draw)(batch, jax.random.key(0))
  # Compiled as one, products and sums may be contracted: one float32 rounding of numbers up to 5.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), jitted, draw(0))
  for name in ('x_t', 't', 'y', 'target'):
    assert not np.array_equal(getattr(draw(0), name), getattr(draw(1), name)), name


def test_time_noise_and_dropout_have_streams_of_their_own(many):
  batch, draw = many
  key, noise = jax.random.key(5), noise_of(batch, draw)
  # Changing one law leaves the other two draws as they were.
  no_dropout = tiny.interpolant(label_dropout=0.0).draw(batch, key)
  np.testing.assert_array_equal(no_dropout.t, draw.t)
  np.testing.assert_array_equal(no_dropout.x_t, draw.x_t)
  other_times = tiny.interpolant(time_law=times.LogitNormal()).draw(batch, key)
  assert not np.array_equal(other_times.t, draw.t)
  np.testing.assert_array_equal(other_times.y, draw.y)
  np.testing.assert_allclose(noise_of(batch, other_times), noise, rtol=0, atol=3e-6)
  # The streams are known by name, so that a resumed or repeated run draws the same.
  np.testing.assert_array_equal(draw.t, times.Uniform()(rng.stream(key, 'time'), len(noise)))
  by_name = jax.random.normal(rng.stream(key, 'noise'), noise.shape)
  np.testing.assert_allclose(noise, by_name, rtol=0, atol=3e-6)
  # The three are uncorrelated: four standard deviations, 1 / sqrt(n) each.
  three = np.stack([np.asarray(draw.t), noise.ravel(), np.asarray(draw.y) == tiny.CLASSES])
  correlation = np.corrcoef(three)[np.triu_indices(3, 1)]
  assert np.abs(correlation).max() < 4 / np.sqrt(three.shape[1]), correlation
  assert abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size)


# Refusals.


def check(architecture=None, sampler=None, **fields):
  sampler = trajectory.SamplerConfig(**(sampler or {}))
  tiny.check(tiny.interpolant(**fields), tiny.architecture(**(architecture or {})), sampler)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(sampler={'kind': 'average_velocity'}), 'set method=meanflow'),
    (dict(prediction='noise'), 'no velocity at t = 1 of the .linear. path; set sampler.start'),
    (dict(prediction='score', path=interpolants.cosine()), 'no velocity at t = 1 of the .cosine.'),
    (dict(architecture={'time_input': 'ddpm'}), "interpolant.path=vp, got 'linear'"),
  ],
)
def test_refuses(options, message):
  with pytest.raises(types.UserError, match=message):
    check(**options)


def test_accepts():
  check()
  check(prediction='noise', sampler={'start': 0.999})
  check(prediction='data')
  check(prediction='noise', path=interpolants.vp(), architecture={'time_input': 'ddpm'})
  law = times.Uniform(epsilon=1e-3)
  check(prediction='score', weighting='likelihood', time_law=law, sampler={'start': 0.99})
