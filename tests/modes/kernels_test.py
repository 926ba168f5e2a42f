"""A run keeps its kernel of attention, says it on cards, and tries none where no model runs.

There is no GPU where these run: XLA's attention plays the part of cuDNN's.
"""

import json
import types

from helpers import small_runs
import pytest

from diversedit_jax import experiment, modes
from diversedit_jax.experiment import kernels
from diversedit_jax.models import attention
from diversedit_jax.modes import export, inspect, model_card, restoring, run_context

QUICK = {'sample__number': 2, 'sampler__steps': 1, 'sampler__kind': 'euler'}


@pytest.fixture
def machine(monkeypatch):
  """Makes a machine where a GPU's kernels run in the given seconds; returns what is tried."""

  def make(seconds):
    tried = []
    attention._decided.cache_clear()
    monkeypatch.setattr(attention, 'candidates', lambda *unused: ['cudnn', 'cudnn@80'])
    monkeypatch.setattr(attention, 'mismatch', lambda *unused: None)
    monkeypatch.setattr(attention, '_fault', lambda name, shape: tried.append(name))
    monkeypatch.setattr(
      attention, '_seconds', lambda name, shape: tried.append(name) or seconds[name]
    )
    monkeypatch.setitem(attention._KERNELS, 'cudnn', attention._xla)
    return tried

  yield make
  attention._decided.cache_clear()


@pytest.fixture
def run(tmp_path):
  return small_runs.untrained(tmp_path / 'run', **QUICK)


FIRST = {'cudnn': 3.0, 'cudnn@80': 1.0, 'xla': 2.0}
LATER = {'cudnn': 1.0, 'cudnn@80': 2.0, 'xla': 3.0}


def test_a_run_goes_on_and_is_sampled_with_the_kernel_that_it_began_with(
  run, machine, tmp_path, monkeypatch
):
  done = types.SimpleNamespace(step=small_runs.STEPS)
  monkeypatch.setattr(modes.train.loop, 'train', lambda *unused, **unused_too: done)
  machine(FIRST)
  workdir = str(run.workdir)
  modes.train.run(run.experiment, workdir)
  assert kernels.read(run.workdir) == {'cpu': 'cudnn@80'}
  tried = machine(LATER)  # By another day's times.
  modes.train.run(run.experiment, workdir)
  assert kernels.read(run.workdir) == {'cpu': 'cudnn@80'} and set(tried) == {'cudnn@80'}
  _, known, *_ = modes.sample.run(run.experiment, workdir, None)
  assert json.loads(known.read_bytes())['attention'] == 'cudnn@80'
  assert '\nattention    cudnn@80 on a CPU\n' in inspect.run(workdir, None)
  folder = tmp_path / 'given'
  export.run(run.experiment, str(folder), f'{workdir}/checkpoints/30')
  assert '| attention | trained with cudnn@80 on a CPU |' in (folder / 'README.md').read_text()
  _, weights = restoring.open_weights(run.experiment, str(tmp_path / 'out'), str(folder))
  assert weights.attention == 'cudnn@80'
  named = small_runs.make(**QUICK, model__attention='cudnn')
  modes.train.run(named, workdir)  # Whoever names one gets it.
  assert kernels.read(run.workdir) == {'cpu': 'cudnn'}


def test_one_that_cannot_run_any_more_is_chosen_anew_with_a_warning(run, machine, caplog):
  machine(LATER)
  kernels.record(run.workdir, 'cpu', 'flash')
  chosen = run_context.with_attention(run.experiment, kernels.read(run.workdir))
  assert chosen.execution.attention == 'cudnn'
  assert 'attention: flash, which was used before, cannot run: it is not known here' in caplog.text
  assert run_context.with_attention(run.experiment, {'tpu': 'xla'}).execution.attention == 'cudnn'


def test_modes_that_run_no_model_try_no_kernel(run, machine, tmp_path, monkeypatch):
  tried = machine(LATER)
  modes.audit.run(run.experiment, str(tmp_path / 'audit'))
  modes.plan.run(experiment.build(small_runs.make_config(), planned=True))
  export.run(run.experiment, str(tmp_path / 'given'), f'{run.workdir}/checkpoints/30')
  inspect.run('', str(tmp_path / 'given' / 'model.safetensors'), small_runs.make_config(**QUICK))
  assert tried == []
  restoring.open_weights(run.experiment, str(run.workdir), None)
  assert tried


def test_the_scores_of_a_model_card_name_the_kernel():
  protocol = {'guidance': {'scale': 1.0}, 'sampler': 'heun', 'nfe': 1, 'num_samples': 2, 'seed': 0}
  assert 'attention' not in model_card._arguments(protocol)  # A card of an older version.
  assert model_card._arguments(protocol | {'attention': 'cudnn'})['attention'] == 'cudnn'
