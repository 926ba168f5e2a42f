"""Similarity of blocks while training: the right matrices, one file and one row, one writer."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diversedit_jax import interpolants, rng, sharding
from diversedit_jax.interpolants import times
from diversedit_jax.methods import base, flow
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.methods.diverse import definition
from diversedit_jax.models import config, taps
from diversedit_jax.training import state as state_lib
from diversedit_jax.training import telemetry, writers

CONFIG = config.Architecture(
  input_size=(4, 4),
  channels=1,
  num_classes=5,
  depth=4,
  width=16,
  heads=2,
  patch_size=2,
  skip=config.Skip(enabled=True),
)
KEY = jax.random.key(11)
EXAMPLES = 3


@pytest.fixture(scope='module')
def parts():
  """Objective, trainable, parameters without zeros, a batch, and the compiled similarity."""
  objective = objective_lib.Objective(
    flow=flow.StochasticInterpolant(
      path=interpolants.linear(), time_law=times.Uniform(), label_dropout=0.5, null_label=5
    )
  )
  trainable = state_lib.Trainable(
    lambda rngs: base.Network(CONFIG, rngs=rngs), optax.sgd(0.1), sharding.make_mesh()
  )
  generator = np.random.default_rng(0)
  draw = lambda x: jnp.asarray(0.3 * generator.standard_normal(x.shape), x.dtype)
  params = jax.tree.map(draw, trainable.params)
  batch = {
    'images': jnp.asarray(generator.uniform(-1, 1, (8, 4, 4, 1)), jnp.float32),
    'labels': jnp.arange(8, dtype=jnp.int32) % 5,
  }
  similarity = telemetry.make_similarity(objective, trainable, {}, key=KEY, examples=EXAMPLES)
  return objective, trainable, params, batch, similarity


def test_matrices_are_those_of_all_features(parts):
  objective, trainable, params, batch, similarity = parts
  found = similarity(params, batch, jnp.asarray(40))
  draw = objective.draw(
    {k: x[:EXAMPLES] for k, x in batch.items()}, rng.stream(KEY, 'telemetry', 40)
  )
  model = nnx.merge(trainable.graphdef, params).model
  features = jax.jit(lambda d: model(d.x_t, d.t, d.y, tap=taps.every()).features)(draw)
  expected = definition.similarity_matrices(features)
  assert found.keys() == expected.keys() == {'token', 'mean'}
  # And by numpy, in the words of the definition.
  f = np.asarray(features, np.float64)
  u = f / np.linalg.norm(f, axis=-1, keepdims=True)
  mu = f.mean(axis=(1, 2))
  mu /= np.linalg.norm(mu, axis=-1, keepdims=True)
  by_numpy = {'token': np.einsum('intd,jntd->ij', u, u) / u[0, ..., 0].size, 'mean': mu @ mu.T}
  for name, matrix in found.items():
    assert matrix.shape == (4, 4) and matrix.dtype == jnp.float32
    # Cosines in float32, in another compilation.
    np.testing.assert_allclose(matrix, expected[name], rtol=0, atol=2e-6)
    np.testing.assert_allclose(matrix, by_numpy[name], rtol=0, atol=2e-6)
    np.testing.assert_allclose(np.diag(matrix), 1.0, rtol=0, atol=1e-6)
    np.testing.assert_allclose(matrix, matrix.T, rtol=0, atol=1e-6)
    assert np.abs(matrix - np.eye(4)).max() > 0.05  # Blocks are neither equal nor unrelated.


def test_only_the_first_examples_and_the_step_count(parts):
  _, _, params, batch, similarity = parts
  found = similarity(params, batch, jnp.asarray(40))
  later = {k: x.at[EXAMPLES:].set(0) for k, x in batch.items()}
  jax.tree.map(np.testing.assert_array_equal, similarity(params, later, jnp.asarray(40)), found)
  other = similarity(params, batch, jnp.asarray(41))
  assert np.abs(np.asarray(other['token'] - found['token'])).max() > 1e-3


def test_sizes_of_blocks_are_those_of_their_outputs_and_gradients(parts):
  """Long skips: the second half is stored mirrored, `second[k]` and `fuse[k]` being block 3 - k."""
  objective, trainable, params, batch, _ = parts
  sizes = telemetry.make_sizes(objective, trainable, {}, key=KEY, examples=EXAMPLES)
  found = sizes(params, batch, jnp.asarray(40))
  draw = objective.draw(
    {k: x[:EXAMPLES] for k, x in batch.items()}, rng.stream(KEY, 'telemetry', 40)
  )

  @jax.jit
  def direct(params):
    def loss(params):
      output = nnx.merge(trainable.graphdef, params).model(
        draw.x_t, draw.t, draw.y, tap=taps.every()
      )
      return jnp.mean(jnp.square(output.pred - draw.target)), output.features

    return jax.grad(loss, has_aux=True)(params)

  grads, features = direct(params)
  rms = np.sqrt(np.mean(np.square(np.asarray(features, np.float64)), axis=(1, 2, 3)))
  np.testing.assert_allclose(found['activation_rms'], rms, rtol=1e-5)
  squares = np.zeros(4)
  places = {'first': [(0, 0), (1, 1)], 'second': [(0, 3), (1, 2)], 'fuse': [(0, 3), (1, 2)]}
  for part, tree in grads['model']['blocks'].items():
    for k, block in places[part]:
      for x in jax.tree.leaves(tree):
        squares[block] += np.sum(np.square(np.asarray(x[k], np.float64)))
  np.testing.assert_allclose(found['gradient_norm'], np.sqrt(squares), rtol=1e-4)
  assert len(set(np.round(squares, 6))) == 4 and found['gradient_norm'].dtype == jnp.float32


def test_hook_of_sizes_writes_a_file_and_a_number_for_each_block(tmp_path):
  found = {
    'activation_rms': np.array([1.5, 2.5], np.float32),
    'gradient_norm': np.array([0.25, np.inf], np.float32),
  }
  state = state_lib.TrainState(step=jnp.asarray(5), params={}, ema={}, opt_state=())
  writer = Pictures(tmp_path, start_step=0, tensorboard=False, active=True)
  for folder, active in ((tmp_path, True), (tmp_path / 'no', False)):
    hook = telemetry.hook('blocks', 5, lambda *_: found, folder, writer, active=active)
    hook.run(5, state, {})
  writer.close()
  assert not (tmp_path / 'no').exists()
  with np.load(tmp_path / 'blocks-00000005.npz') as file:
    assert int(file['step']) == 5
    for name, value in found.items():
      np.testing.assert_array_equal(file[name], value)
  assert writers.read_jsonl(tmp_path / 'metrics.jsonl') == [
    {
      'step': 5,
      'activation_rms/block_01': 1.5,
      'activation_rms/block_02': 2.5,
      'gradient_norm/block_01': 0.25,
      'gradient_norm/block_02': float('inf'),
    }
  ]


class Pictures(writers.Writer):
  """A writer that also remembers the images."""

  def images(self, step, images):
    self.seen = (step, images)


def run_hook(folder, parts, *, active):
  _, trainable, params, batch, similarity = parts
  state = state_lib.TrainState(step=jnp.asarray(40), params=params, ema=params, opt_state=())
  writer = Pictures(folder, start_step=0, tensorboard=False, active=active)
  hook = telemetry.hook('similarity', 20, similarity, folder / 'telemetry', writer, active=active)
  hook.run(40, state, batch)
  writer.close()
  assert hook.every == 20
  return writer, similarity(params, batch, state.step)


def test_hook_writes_a_file_a_row_and_a_picture(parts, tmp_path):
  writer, expected = run_hook(tmp_path, parts, active=True)
  assert [p.name for p in (tmp_path / 'telemetry').iterdir()] == ['similarity-00000040.npz']
  with np.load(tmp_path / 'telemetry' / 'similarity-00000040.npz') as file:
    assert set(file) == {'step', 'token', 'mean'} and int(file['step']) == 40
    for name, matrix in expected.items():
      np.testing.assert_array_equal(file[name], matrix)
  (row,) = writers.read_jsonl(tmp_path / 'metrics.jsonl')
  assert set(row) == {'step', 'similarity/token', 'similarity/mean'} and row['step'] == 40
  for name, matrix in expected.items():
    off_diagonal = (np.sum(matrix) - np.trace(matrix)) / 12
    np.testing.assert_allclose(row[f'similarity/{name}'], off_diagonal, rtol=0, atol=1e-6)
  step, images = writer.seen
  (image,) = images.values()
  assert step == 40 and image.shape == (1, 4, 4, 1) and 0 <= image.min() <= image.max() <= 1


def test_another_process_computes_but_writes_nothing(parts, tmp_path):
  writer, _ = run_hook(tmp_path, parts, active=False)
  assert not list(tmp_path.iterdir()) and not hasattr(writer, 'seen')


def test_one_block_has_no_mean_of_pairs(tmp_path):
  one = {'token': np.ones((1, 1), np.float32), 'mean': np.ones((1, 1), np.float32)}
  state = state_lib.TrainState(step=jnp.asarray(5), params={}, ema={}, opt_state=())
  writer = Pictures(tmp_path, start_step=0, tensorboard=False, active=True)
  telemetry.hook('similarity', 5, lambda *_: one, tmp_path, writer, active=True).run(5, state, {})
  writer.close()
  assert (tmp_path / 'similarity-00000005.npz').exists()
  assert 'NaN' not in (tmp_path / 'metrics.jsonl').read_text()
