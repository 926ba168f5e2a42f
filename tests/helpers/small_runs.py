"""The shrunken digits run that the tests of `modes` share."""

import contextlib
import sys
import types

from helpers import config_changes
import jax
import numpy as np
import pytest

from diversedit_jax import checkpoint, options, trees
from diversedit_jax import experiment as experiment_lib
from diversedit_jax.evaluation import card
from diversedit_jax.experiment import run_dir
from diversedit_jax.modes import restoring, run_context

STEPS, WIDTH, DEPTH = 30, 16, 2
SMALL = {
  'model.depth': DEPTH,
  'model.width': WIDTH,
  'model.heads': 2,
  'interpolant.time_law': 'logit_normal',
  'train.steps': STEPS,
  'train.batch_size': 32,
  'train.ema_decay': 0.9,
  # High, so that labels and guidance come to matter in a few steps.
  'optimizer.learning_rate': 1e-2,
  'optimizer.warmup_steps': 5,
  'log.every': 10,
  'log.telemetry_every': 15,
  'checkpoint.every': 15,
  'preview.every': 15,
  'preview.rows': 10,
  'preview.columns': 2,
  'sampler.steps': 4,
  'sample.number': 20,
  'sample.batch_size': 8,
  'eval.number': 40,
  'analysis.examples': 33,
}


def make_config(**changes):
  """The small config, with values by key, 'model__depth' for model.depth."""
  flat = {key.replace('__', '.'): value for key, value in changes.items()}
  return config_changes.changed({**SMALL, **flat})


def make(**changes):
  return experiment_lib.build(make_config(**changes))


# Where every field of a dataclass is looked at, and none is used.
_NOT_USING = {
  '__post_init__',
  '__eq__',
  '__hash__',
  '__repr__',
  'replace',
  '_asdict_inner',
  'without_effect',
}


@contextlib.contextmanager
def keys_read():
  """The set of config keys that are read within, as 'section.key'; checks do not count."""
  seen = set()
  jax.clear_caches()  # What was traced before would not be read again.

  def read(self, name):
    if sys._getframe(1).f_code.co_name not in _NOT_USING:
      seen.add(f'{type(self).section}.{name}')
    return object.__getattribute__(self, name)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(options.Section, '__getattribute__', read, raising=False)
    yield seen


def arrays(path):
  with np.load(path) as file:
    return dict(file)


def begin(workdir, experiment):
  """Makes the directory of a run as its first start does, without checkpoints."""
  run_dir.open_for_training(
    str(workdir),
    experiment.config,
    card.versions(),
    data=run_context.data_facts(experiment.source),
    write=True,
  )


def untrained(workdir, step=30, **changes):
  """A run that looks as if it had been trained: random weights, and scores of them.

  Returns:
    workdir, experiment, and `items`: arrays by name of 'params' and 'ema'.
  """
  experiment = make(**changes)
  mesh = run_context.make_mesh(experiment)
  trainable = run_context.make_trainable(experiment, mesh)
  rng = np.random.default_rng(0)
  random = lambda x: (0.2 * rng.normal(size=x.shape)).astype(x.dtype)
  trees_by_item = {item: jax.tree.map(random, trainable.params) for item in ('params', 'ema')}
  begin(workdir, experiment)
  with contextlib.closing(checkpoint.Checkpoints(str(workdir / 'checkpoints'))) as checkpoints:
    checkpoints.save(step, trees_by_item | {'opt': {'count': np.int32(step)}}, {})
  weights = restoring.Weights(
    graphdef=trainable.graphdef,
    params=trees_by_item['ema'],
    mesh=mesh,
    step=step,
    origin=f'checkpoints/{step}',
    kind='ema',
    attention='xla',
  )
  protocol = run_context.protocol(
    experiment, weights, np.arange(20), label_policy='balanced', seconds=1.0
  )
  scores = {'class_consistency': 0.5, 'frechet_distance': 12.0}
  card.write_json(workdir / 'eval' / 'digits.json', {'scores': scores, 'protocol': protocol})
  items = {item: trees.named_leaves(tree) for item, tree in trees_by_item.items()}
  return types.SimpleNamespace(workdir=workdir, experiment=experiment, items=items)
