"""The weights that `sample.weights` names, in every mode: stored ones, and averages of these."""

import contextlib
import json
import re
import types as python_types

from helpers import logs, small_runs
import jax
import numpy as np
import pytest

from diversedit_jax import checkpoint, convert, modes, trees, types
from diversedit_jax.evaluation import card
from diversedit_jax.modes import (
  averages,
  evaluate,
  export,
  inspect,
  restoring,
  run_context,
  sweep,
)
from diversedit_jax.sampling import generate
from diversedit_jax.training import average

EVERY, COUNT = 12, 4
TRACKED = ('0.5', 'std=0.05', 'std=0.10')


def power_average(walk, std, step):
  """The average of the first parameters of a walk, in double precision, by integrals of t^gamma."""
  power = average.PowerFunction(std).gamma + 1
  return np.tensordot(np.diff((np.arange(step + 1) / step) ** power), walk[:step], 1)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run whose parameters walked at random, with `walks` by name, and its newest checkpoint."""
  workdir = tmp_path_factory.mktemp('averages') / 'run'
  experiment = small_runs.make(train__averages=TRACKED)
  trainable = run_context.make_trainable(experiment, run_context.make_mesh(experiment))
  rng, steps = np.random.default_rng(0), EVERY * COUNT
  walk = lambda x: np.cumsum(rng.normal(size=(steps, *x.shape)), axis=0) / 100
  walks = jax.tree.map(walk, trainable.params)
  small_runs.begin(workdir, experiment)
  saved = {}
  further = ('ema@0.5', 'ema@std=0.05', 'ema@std=0.1')
  opened = checkpoint.Checkpoints(str(workdir / 'checkpoints'), more=further, keep=COUNT)
  with contextlib.closing(opened) as checkpoints:
    for step in range(EVERY, steps + 1, EVERY):
      of = {
        'params': lambda w, n=step: w[n - 1],
        'ema': lambda w, n=step: w[:n].mean(axis=0),
        'ema@0.5': lambda w, n=step: w[:n].max(axis=0),
        'ema@std=0.05': lambda w, n=step: power_average(w, 0.05, n),
        'ema@std=0.1': lambda w, n=step: power_average(w, 0.10, n),
      }
      saved = {
        item: jax.tree.map(lambda w, make=make: np.float32(make(w)), walks)
        for item, make in of.items()
      }
      began = {'averages': dict.fromkeys(('0.5', 'std=0.05', 'std=0.1'), 0)}
      checkpoints.save(step, saved | {'opt': {'count': np.int32(step)}}, began)
  return python_types.SimpleNamespace(
    workdir=workdir,
    newest=workdir / 'checkpoints' / str(steps),
    walks=trees.named_leaves(walks),
    saved={item: trees.named_leaves(tree) for item, tree in saved.items()},
  )


def opened(run, weights, origin=None):
  made = small_runs.make(sample__weights=weights)
  return restoring.open_weights(made, str(run.workdir), origin and str(origin))[1]


@pytest.mark.parametrize(
  ('weights', 'item'),
  [
    ('params', 'params'),
    ('ema', 'ema'),
    ('ema@0.9', 'ema'),  # The run's train.ema_decay.
    ('ema@0.50', 'ema@0.5'),
    ('ema@std=0.10', 'ema@std=0.1'),
    ('ema@std=0.05', 'ema@std=0.05'),
  ],
)
def test_what_is_stored_is_taken_as_it_is(run, weights, item):
  found = opened(run, weights)
  assert (found.kind, found.step, dict(found.made_of)) == (item, EVERY * COUNT, {})
  for name, x in trees.named_leaves(found.params).items():
    np.testing.assert_array_equal(x, run.saved[item][name], err_msg=name)
  assert found.named('{step}-{weights}') == f'48-{item}'


def test_another_width_is_made_of_those_of_all_checkpoints_so_far(run, std=0.075):
  """It comes to the average of the whole history; more of it is known at a later checkpoint."""
  errors = []
  for count in (1, COUNT):
    step = count * EVERY
    found = opened(run, f'ema@std={std}', run.newest.with_name(str(step)))
    assert found.kind == f'ema@std={std}'
    assert found.made_of['of'] == ['ema@std=0.05', 'ema@std=0.1']
    assert found.made_of['at_steps'] == list(range(EVERY, step + 1, EVERY))
    missed, moved = 0.0, 0.0
    for name, x in trees.named_leaves(found.params).items():
      walk = run.walks[name]
      expected = power_average(walk, std, step)
      missed += np.sum((x - expected) ** 2)
      moved += np.sum((walk[step - 1] - expected) ** 2)
    errors.append(np.sqrt(missed / moved))
  assert errors[1] < errors[0] / 3 and errors[1] < 0.05


@pytest.mark.parametrize(
  ('weights', 'message'),
  [
    ('ema@0.99', 'holds params, ema, ema@0.5, ema@std=0.05, ema@std=0.1; an average of this decay'),
    ('ema@std=0.25', 'what 4 checkpoints of steps 12 to 48 have .* expected 10% at most'),
    ('ema@std=0.01', 'an error of [0-9]+% of its profile'),
  ],
)
def test_what_is_not_there_and_cannot_be_made_is_refused(run, weights, message):
  with pytest.raises(types.UserError, match=f'sample.weights={weights}: .*{message}'):
    opened(run, weights)


def test_a_run_without_such_averages_says_how_they_come(tmp_path):
  other = small_runs.untrained(tmp_path / 'run')
  with pytest.raises(types.UserError, match='holds params, ema; .*train.averages=std=0.1 is given'):
    opened(python_types.SimpleNamespace(workdir=other.workdir), 'ema@std=0.1')


def test_an_average_that_began_on_the_way_is_no_part_of_others(run, tmp_path):
  """Until the network that it began with is forgotten."""
  with contextlib.closing(
    checkpoint.Checkpoints(str(tmp_path), more=['ema@std=0.1'], keep=9)
  ) as checkpoints:
    for step in (100, 120, 400, 500):
      tree = {'w': np.float32([step])}
      checkpoints.save(step, {'ema@std=0.1': tree}, {'averages': {'std=0.1': 100}})
  choice = averages.find(tmp_path / '500', 'ema@std=0.09', None)
  assert choice.facts['at_steps'] == [400, 500]
  with pytest.raises(types.UserError, match='this average is kept where'):
    averages.find(tmp_path / '120', 'ema@std=0.09', None)


def test_a_folder_to_publish_says_which_average_it_has(run, tmp_path):
  made = small_runs.make(sample__weights='ema@std=0.08')
  export.run(made, str(tmp_path / 'out'), str(run.newest))
  facts = json.loads((tmp_path / 'out' / 'config.json').read_text())['weights']
  assert (facts['kind'], facts['step']) == ('ema@std=0.08', 48)
  assert 'averaged weights of step 48 (std=0.08)' in (tmp_path / 'out' / 'README.md').read_text()
  expected = trees.named_leaves(opened(run, 'ema@std=0.08').params)
  for name, x in convert.load(tmp_path / 'out' / 'model.safetensors').items():
    np.testing.assert_allclose(x, expected[name], rtol=1e-5, atol=1e-6)
  for weights in ('ema', 'ema@std=0.080'):
    found = opened(run, weights, tmp_path / 'out')
    assert (found.kind, found.step) == ('ema@std=0.08', 48)
  with pytest.raises(types.UserError, match='give sample.weights=ema@std=0.08'):
    opened(run, 'ema@std=0.1', tmp_path / 'out')


def test_inspect_shows_each_average(run):
  page = inspect.run(str(run.workdir), None)
  for item in ('ema', 'params', 'ema@0.5', 'ema@std=0.05', 'ema@std=0.1', 'opt'):
    assert re.search(rf'^{item} of checkpoints/48: \d+ arrays.* all finite$', page, re.MULTILINE)


def test_a_sweep_compares_weights(run, tmp_path, monkeypatch):
  """By evaluations of each; those that are not there are refused before any."""
  scored = []

  def score(self, **_):
    scored.append(self.result.stem)
    found = {'scores': {'frechet_distance': float(len(scored))}, 'warnings': []}
    card.write_json(self.result, found)

  stub = python_types.SimpleNamespace(
    names=['frechet_distance'], facts=dict, compared=dict, image_shape=(8, 8, 1)
  )
  monkeypatch.setattr(sweep.opening, 'open_all', lambda *_: stub)
  monkeypatch.setattr(evaluate.Evaluation, 'run', score)

  def swept(*weights):
    made = small_runs.make(
      sweep__weights=weights,
      sweep__guidance_scales=(2.0, 3.0),
      sweep__guidance_highs=(1.0,),
      sweep__score='frechet_distance',
    )
    return sweep.run(made, str(tmp_path), str(run.newest))

  with pytest.raises(types.UserError, match='sweep.weights=ema@std=0.25: .* holds params, ema'):
    swept('params', 'ema@std=0.25')
  assert not scored
  table, _ = swept('params', 'ema@std=0.10')
  rows = json.loads(table.read_text())['rows']
  assert [(row['weights'], row['scale'], row['frechet_distance']) for row in rows] == [
    ('params', 2, 1),
    ('params', 3, 2),
    ('ema@std=0.1', 2, 3),
    ('ema@std=0.1', 3, 4),
  ]
  assert scored[1:3] == ['w3-t0-1-params', 'w2-t0-1-ema@std=0.1']
  text = sweep.as_text(rows, 'frechet_distance', rows[0]).splitlines()
  assert text[0].split()[:2] == ['weights', 'scale'] and text[3].split()[:2] == ['ema@std=0.1', '2']
  assert sweep._plotted(rows, 'frechet_distance') == {
    'curves': {'params [0, 1]': {2: 1, 3: 2}, 'ema@std=0.1 [0, 1]': {2: 3, 3: 4}}
  }


def test_a_sweep_over_widths_alone_is_plotted_over_the_width():
  row = lambda std: {'weights': f'ema@std={std}', 'scale': 2, 'interval': [0, 1], 'fid': 9 * std}
  plotted = sweep._plotted([row(0.1), row(0.2)], 'fid')
  assert plotted['curves'] == {'scale 2': {0.1: 0.9, 0.2: 1.8}} and 'std' in plotted['against']


def test_training_shows_only_what_it_keeps():
  kept = lambda **changes: restoring.kept(small_runs.make(train__averages=TRACKED, **changes))
  assert kept() == kept(sample__weights='ema@0.9') == 'ema'
  assert kept(sample__weights='ema@std=0.1') == 'ema@std=0.1'
  with pytest.raises(types.UserError, match='ema@std=0.2 is not kept while training'):
    kept(sample__weights='ema@std=0.2')


@pytest.mark.slow
def test_a_run_takes_up_averages_on_the_way(tmp_path):
  """Only where it is asked to; they begin as its parameters, and previews may be of them."""
  small = dict(train__steps=10, checkpoint__every=10, optimizer__schedule='constant')
  workdir, shown = str(tmp_path / 'run'), []
  modes.train.run(small_runs.make(**small), workdir)
  more = small_runs.make(
    **small | dict(train__steps=15, checkpoint__every=5),
    train__averages=('std=0.10', '0.5'),
    sample__weights='ema@std=0.1',
  )
  with pytest.raises(types.UserError, match='--continue_with=train.averages'):
    modes.train.run(more, workdir)
  call = generate.Generator.__call__

  def noted(self, params, *rest):
    shown.append(jax.tree.map(np.asarray, params))
    return call(self, params, *rest)

  with pytest.MonkeyPatch.context() as patch, logs.noted() as told:
    patch.setattr(generate.Generator, '__call__', noted)
    modes.train.run(more, workdir, continue_with=['train.averages'])
  folder = tmp_path / 'run' / 'checkpoints' / '15'
  assert checkpoint.read_meta(folder)['averages'] == {'std=0.1': 10, '0.5': 10}
  began, now = (checkpoint.read(folder.with_name(n), 'params') for n in ('10', '15'))
  for name, x in checkpoint.read(folder, 'ema@0.5').items():
    # Between where it began and where the parameters are: 1/32 is of the beginning.
    assert np.linalg.norm(x - now[name]) < np.linalg.norm(x - began[name])
  power = checkpoint.read(folder, 'ema@std=0.1')
  jax.tree.map(np.testing.assert_array_equal, trees.named_leaves(shown[-1]), dict(power))
  assert any('the average std=0.1 begins at step 10, as a copy' in line for line in told)
  (remark,) = opened(python_types.SimpleNamespace(workdir=workdir), 'ema@0.5').remarks
  assert 'the average 0.5 began at step 10: 3% of it at step 15' in remark
