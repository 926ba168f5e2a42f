"""Every config in configs/ builds, and its training step traces; nothing compiles."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import pytest

from configs import common
from diversedit_jax import build, rng, sharding, types
from diversedit_jax.data import sources
from diversedit_jax.training import state, step

ROOT = pathlib.Path(__file__).parents[1]
NAMES = sorted(
  p.stem for p in (ROOT / 'configs').glob('*.py') if p.stem not in ('__init__', 'common')
)
VARIANTS = {
  'digits': ['', 'method=flow,skips=False'],
  'xl256': ['', 'method=flow,skips=False', 'size=S/2', 'size=B/4,guidance=1.35,steps=10'],
}


@pytest.mark.parametrize(('name', 'arg'), [(n, a) for n in NAMES for a in VARIANTS.get(n, [''])])
def test_config_builds_and_its_step_traces(name, arg):
  config = importlib.import_module(f'configs.{name}').get_config(arg)
  experiment = build.build(config)
  mesh = sharding.make_mesh()
  tx = experiment.transformation()
  trainable = state.Trainable(experiment.network, tx, mesh)
  key = jax.random.key(0)
  step_fn = step.make_step(
    experiment.objective, trainable.graphdef, tx, key=rng.stream(key, 'train'),
    ema_decay=experiment.train.ema_decay, learning_rate=experiment.schedule(),
    accumulate=experiment.train.accumulate,
  )  # fmt: skip
  n, shape = experiment.train.batch_size, experiment.source.shape
  batch = {
    sources.KEYS[experiment.source.space]: jax.ShapeDtypeStruct((n, *shape), jnp.float32),
    'labels': jax.ShapeDtypeStruct((n,), jnp.int32),
  }
  before = jax.eval_shape(trainable.init, key)
  after, metrics = jax.eval_shape(step_fn, before, batch)
  assert jax.tree.structure(after) == jax.tree.structure(before)
  jax.tree.map(
    lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail(), after, before
  )
  assert {'loss', 'velocity', 'grad_norm'} <= set(metrics)
  assert ('diverse/loss' in metrics) == ('diverse' in config.method)


def test_headers_carry_command_and_hardware():
  for name in NAMES:
    text = importlib.import_module(f'configs.{name}').__doc__
    assert f'--config=configs/{name}.py' in text and 'Hardware:' in text


def test_meta_arguments_are_typed_and_checked():
  args = common.parse_arg('size=B/2,steps=10,flip', size='XL/2', steps=1, flip=False, rate=1.0)
  assert (args.size, args.steps, args.flip, args.rate) == ('B/2', 10, True, 1.0)
  with pytest.raises(types.UserError, match="did you mean 'steps'"):
    common.parse_arg('stesp=3', steps=1)
  with pytest.raises(types.UserError, match="steps='ten' is not a int"):
    common.parse_arg('steps=ten', steps=1)
