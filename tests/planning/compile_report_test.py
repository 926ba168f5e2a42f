"""Programs compiled for a target: the numbers of the report, and plans that compile.

The targets consist of CPU devices of this machine: one here, eight in a process of their own.
"""

import json
import os
import pathlib
import subprocess
import sys

from helpers import planned_runs
import jax
import jax.numpy as jnp
import pytest

from configs import imagenet
from diversedit_jax import experiment as experiment_lib
from diversedit_jax import modes, types
from diversedit_jax.models import attention
from diversedit_jax.planning import compile_report, devices
from diversedit_jax.planning import plan as plan_lib

ROOT = pathlib.Path(__file__).parents[2]


def lowered(donate=()):
  """A program with 2048 numbers in and 1025 out, of which 1024 may take the place of arguments."""
  function = lambda x, y: (x + y, jnp.sum(x @ x.T))
  shape = jax.ShapeDtypeStruct((32, 32), 'float32')
  return jax.jit(function, donate_argnums=donate).lower(shape, shape)


def test_parts_of_memory_add_up_and_donation_takes_a_place():
  kept, donated = (
    compile_report.compile_for(planned_runs.here(), lowered(donate)) for donate in ((), (0,))
  )
  assert kept.arguments == donated.arguments == 2 * 4096
  assert kept.results - donated.results == 4096 and donated.results >= 4
  for report in (kept, donated):
    assert report.peak == report.arguments + report.temporaries + report.results
    assert report.collectives == {} and report.devices == 1 and report.kind == 'cpu'


def test_what_fits_is_decided_by_the_last_byte():
  peak = compile_report.compile_for(planned_runs.here(), lowered()).peak
  for fields, beside, fits in (
    (dict(memory=peak), 0, True),
    (dict(memory=peak - 1), 0, False),
    (dict(memory=2 * peak, share=0.5), 0, True),
    (dict(memory=2 * peak, share=0.49), 0, False),
    (dict(memory=peak + 100), 100, True),
    (dict(memory=peak + 100), 101, False),
  ):
    report = compile_report.compile_for(planned_runs.here(**fields), lowered(), beside=beside)
    assert report.fits == fits and report.needed == peak + beside
    assert dict(compile_report.rows(report))['fits'].startswith('yes: ' if fits else 'NO: ')


class Refused:
  """A lowered program that a compiler refuses."""

  def __init__(self, message):
    self.message = message

  def compile(self, compiler_options):
    assert compiler_options == {}
    raise jax.errors.JaxRuntimeError(self.message)


def test_too_large_for_a_tpu_is_an_answer():
  target = planned_runs.here(memory=15.75 * 2**30)
  report = compile_report.compile_for(target, Refused(planned_runs.REFUSED), beside=2**30)
  assert not report.fits and report.needed == 27.25 * 2**30 and report.arguments is None
  rows = dict(compile_report.rows(report))
  assert rows['fits'] == 'NO: 27.25 GiB of 15.75 GiB'
  assert '1.00 GiB resident data' in rows['compiled memory']
  assert 'gave up' in rows['compiled memory']
  # Even where the numbers alone would let it pass.
  assert not compile_report.compile_for(
    planned_runs.here(memory=2.0**40), Refused(planned_runs.REFUSED)
  ).fits


def test_another_refusal_is_told_in_one_line_and_a_fault_is_raised_as_it_is():
  told = '^here cannot run this program: UNIMPLEMENTED: no kernel$'
  with pytest.raises(types.UserError, match=told):
    compile_report.compile_for(
      planned_runs.here(), Refused('UNIMPLEMENTED: no kernel\nand a stack')
    )
  with pytest.raises(jax.errors.JaxRuntimeError, match='^INTERNAL: broken\nand a stack$'):
    compile_report.compile_for(planned_runs.here(), Refused('INTERNAL: broken\nand a stack'))


def planned(monkeypatch, **changes):
  monkeypatch.setattr(devices, 'find', lambda name: planned_runs.here(name=name))
  text = modes.plan.run(experiment_lib.build(planned_runs.config(**changes), planned=True))
  return {line[:16].strip(): line[17:].strip() for line in text.splitlines() if line}


def test_a_plan_says_what_the_compiler_says(monkeypatch):
  lines = planned(monkeypatch)
  assert lines['compiled for'].startswith('h200: 1 x cpu, in ')
  assert lines['fits'].startswith('yes: ') and lines['fits'].endswith(' of 1.00 GiB')
  assert ' resident data + ' in lines['compiled memory'] and lines['collectives'] == 'none'
  assert lines['attention'].startswith('xla, the first that may run there')
  assert 'GiB, ' in lines['estimate above']


def test_a_plan_without_a_target_compiles_nothing(monkeypatch):
  refuse = lambda *unused, **more: pytest.fail('compiled')
  monkeypatch.setattr(compile_report, 'compile_for', refuse)
  assert 'compiled for' not in planned(monkeypatch, compile_for='')


def test_a_plan_refuses_another_number_of_devices(monkeypatch):
  with pytest.raises(types.UserError, match="plan.devices=3, but plan.compile_for='h200' has 1"):
    planned(monkeypatch, devices=3)
  with pytest.raises(types.UserError, match="plan.devices=4, but plan.compile_for='h200:8' has 8"):
    experiment_lib.build(planned_runs.config(devices=4, compile_for='h200:8'))  # No compiler asked.


def test_kernels_of_a_planned_run_are_those_of_its_target():
  """A kernel of a GPU may be planned here and not trained with."""
  made = planned_runs.config()
  made.model.attention, made.model.dtype = 'cudnn', 'bfloat16'
  experiment = experiment_lib.build(made, planned=True)
  assert experiment.execution.platform == 'gpu'
  assert attention.implementation(experiment.architecture, experiment.execution) == 'cudnn'
  with pytest.raises(types.UserError, match='attention=cudnn cannot run here: it needs an NVIDIA'):
    experiment_lib.build(made)
  made.plan.compile_for = 'v5e:2x2'
  with pytest.raises(types.UserError, match='attention=cudnn cannot run there: it needs an NVIDIA'):
    experiment_lib.build(made, planned=True)


EIGHT = """
import json
import jax
from configs import imagenet
from helpers import planned_runs
from diversedit_jax import modes
from diversedit_jax import experiment as experiment_lib
from diversedit_jax.planning import devices
from diversedit_jax.planning import compile_report
reports, compile_for = [], compile_report.compile_for
compile_report.compile_for = lambda *a, **k: reports.append(compile_for(*a, **k)) or reports[-1]
target = planned_runs.here(name='h200:8', devices=tuple(jax.devices()))
devices.find = lambda name: target
found = {}
for name, fsdp, split in (('data', 1, False), ('zero', 1, True), ('fsdp', 8, False)):
  config = planned_runs.config('flow', compile_for='h200:8')
  config.mesh.fsdp, config.optimizer.shard_over_data = fsdp, split
  config.model.depth, config.model.skip.enabled, config.train.accumulate = 1, False, 1
  text = modes.plan.run(experiment_lib.build(config, planned=True))
  found[name] = dict(
    text=text, arguments=reports[-1].arguments, sent=dict(reports[-1].collectives),
  )
print(json.dumps(found))
"""


def test_eight_devices_and_the_layouts_of_their_state():
  done = subprocess.run(
    [sys.executable, '-c', EIGHT],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env=os.environ
    | {
      'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=8',
      'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}',
    },
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  parameters = int(found['data']['text'].split('parameters')[1].split()[0].replace(',', ''))
  assert all('h200:8: 8 x cpu' in made['text'] for made in found.values())
  assert all('8 devices of' in made['text'] for made in found.values())
  # Gradients are added once each; what else is added is small.
  sent = found['data']['sent']['all-reduce']['bytes']
  assert 4 * parameters <= sent < 1.1 * 4 * parameters
  whole, zero, fsdp = (found[name]['arguments'] for name in ('data', 'zero', 'fsdp'))
  # Parameters, two moments and the average; of these all, three or none are whole.
  assert whole > 16 * parameters > zero > 4 * parameters > fsdp > 2 * parameters


def test_a_run_compiles_for_tpus_that_are_not_here():
  pytest.importorskip('libtpu')
  script = '\n'.join(
    (
      'from helpers import planned_runs',
      'from diversedit_jax import experiment as experiment_lib',
      'from diversedit_jax import modes',
      'from diversedit_jax.planning import compile_report',
      'config = planned_runs.config("flow", compile_for="v5e:2x2")',
      'compile_for = compile_report.compile_for',
      'config.model.dtype, sent = "bfloat16", []',
      'compile_report.compile_for = lambda *a, **k: sent.append(compile_for(*a, **k)) or sent[-1]',
      'print(modes.plan.run(experiment_lib.build(config, planned=True)))',
      'print("float32", sent[0].collectives["all-reduce"]["bytes by dtype"]["f32"])',
      'print("bfloat16", sent[0].collectives["all-reduce"]["bytes by dtype"].get("bf16", 0))',
    )
  )
  done = subprocess.run(
    [sys.executable, '-c', script],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env=os.environ
    | {
      'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}',
      'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    },
  )
  assert done.returncode == 0, done.stderr
  assert 'v5e:2x2: 4 x TPU v5 lite' in done.stdout and 'of 15.75 GiB' in done.stdout
  assert 'yes: ' in done.stdout
  # Gradients of kernels are added in float32 there too.
  wide, narrow = (
    int(done.stdout.split(f'\n{name} ')[1].split()[0]) for name in ('float32', 'bfloat16')
  )
  assert narrow < 0.1 * wide


@pytest.mark.slow
@pytest.mark.parametrize(
  ('size', 'batch', 'target'),
  [*((size, 64, 'h200') for size in ('S/2', 'B/2', 'L/2', 'XL/2')), ('S/2', 256, 'h200:8')],
)
def test_a_plan_is_within_15_percent_of_the_compiler(size, batch, target):
  pytest.importorskip('jax_plugins')
  made = imagenet.get('method=flow', size=size, resolution=256)
  made.train.batch_size, made.plan.devices, made.plan.compile_for = batch, None, target
  experiment = experiment_lib.build(made, planned=True)
  found = devices.find(target)
  numbers = modes.plan.numbers(experiment, experiment.plan.count(found))
  needed = modes.plan.report(experiment, found).needed / devices.GIB
  assert 0.85 < plan_lib.memory_gib(numbers) / needed < 1.15
