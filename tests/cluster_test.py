"""Processes that cannot be joined are told in one line."""

import socket

import jax
import pytest

from diversedit_jax import cluster, types

VARIABLES = (cluster.ADDRESS, cluster.COUNT, cluster.INDEX)


def refusal(monkeypatch, *values, timeout=0.0):
  for name, value in zip(VARIABLES, values, strict=True):
    monkeypatch.delenv(name, raising=False)
    if value is not None:
      monkeypatch.setenv(name, value)
  with pytest.raises(types.UserError) as error:
    cluster.join(timeout)
  return str(error.value)


@pytest.mark.parametrize(
  ('values', 'words'),
  [
    ((None, 'two', '0'), "JAX_NUM_PROCESSES='two' is no whole number"),
    ((None, '2', '-1'), "JAX_PROCESS_ID='-1' is no whole number"),
    (('here', '2', '0'), "JAX_COORDINATOR_ADDRESS='here' is not HOST:PORT"),
    (('here:99999', '2', '0'), "JAX_COORDINATOR_ADDRESS='here:99999' is not HOST:PORT"),
  ],
)
def test_malformed_variables_are_named_with_all_three(monkeypatch, values, words):
  told = refusal(monkeypatch, *values)
  assert told.startswith('--distributed: ') and words in told
  assert all(name in told for name in VARIABLES)


def test_without_variables_jax_says_what_it_misses(monkeypatch):
  told = refusal(monkeypatch, None, None, None)
  with pytest.raises((ValueError, RuntimeError)) as error:  # Another where JAX is in use already.
    jax.distributed.initialize()
  said, _, way = told.removeprefix('--distributed: ').partition('; ')
  assert said and said in ' '.join(str(error.value).split())
  assert all(name in way for name in VARIABLES)


def test_numbers_that_contradict_each_other(monkeypatch):
  assert 'JAX_PROCESS_ID=2 with JAX_NUM_PROCESSES=2' in refusal(monkeypatch, None, '2', '2')
  assert 'JAX_NUM_PROCESSES=0, expected at least 1' in refusal(monkeypatch, None, '0', '0')


def test_a_first_process_that_does_not_answer(monkeypatch):
  with socket.socket() as taken:  # A port that nobody listens at.
    taken.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{taken.getsockname()[1]}'
    told = refusal(monkeypatch, address, '2', '1')
  assert f'nothing answers at JAX_COORDINATOR_ADDRESS={address}' in told and 'refused' in told


def test_what_jax_says_is_passed_on(monkeypatch):
  def fail(**unused):
    raise RuntimeError('UNKNOWN: Failed to start RPC server: address in use.')

  monkeypatch.setattr(jax.distributed, 'initialize', fail)
  assert 'address in use; outside TPU slices' in refusal(monkeypatch, 'here:1', '2', '0')


@pytest.mark.parametrize(
  ('tasks', 'local', 'more', 'gpus'),
  [
    ('1(x2)', '0', {'SLURM_GPUS_ON_NODE': '8'}, []),  # One task a node takes all.
    ('8(x2)', '3', {'SLURM_GPUS_ON_NODE': '8', 'CUDA_VISIBLE_DEVICES': '0,1,2,3,4,5,6,7'}, [3]),
    ('8', '3', {'SLURM_GPUS_ON_NODE': '8', 'CUDA_VISIBLE_DEVICES': '0'}, []),  # Bound to its own.
    ('4(x2),2', '1', {'SLURM_GPUS_ON_NODE': '8', 'SLURM_NODEID': '2'}, [4, 5, 6, 7]),
    ('2', '1', {'SLURM_GPUS_ON_NODE': '8', 'JAX_LOCAL_DEVICE_IDS': '5'}, None),
    ('3', '1', {'SLURM_GPUS_ON_NODE': '8'}, None),
    ('2', '1', {}, None),
  ],
)
def test_a_task_of_slurm_takes_its_share_of_the_nodes_gpus(tasks, local, more, gpus):
  environment = {'SLURM_STEP_TASKS_PER_NODE': tasks, 'SLURM_LOCALID': local} | more
  assert cluster.slurm_gpus(environment) == gpus
  assert cluster.slurm_gpus(more) is None  # Elsewhere.
