"""The other processes of a run: joined, or told in one line why they cannot be."""

from collections.abc import Mapping
import os
import re
import socket
import time

from absl import logging
import jax

from diversedit_jax import meeting, types

ADDRESS, COUNT, INDEX = 'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'
_TASKS = 'SLURM_STEP_TASKS_PER_NODE'
_VISIBLE = ('CUDA_VISIBLE_DEVICES', 'ROCR_VISIBLE_DEVICES')
_TIMEOUT = 300.0  # Seconds, as JAX waits.
_WAY = (
  f'outside TPU slices, SLURM, Open MPI and Kubernetes set {ADDRESS}=HOST:PORT (the first '
  f'process), {COUNT} and {INDEX} (0, 1, ...) for every process, or leave out --distributed'
)


def join(timeout: float = _TIMEOUT) -> None:
  """Joins the other processes of a run.

  JAX itself recognises TPU slices, SLURM, Open MPI and Kubernetes; elsewhere the environment
  gives JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID. Of the GPUs of
  a node each task of SLURM takes its share, see `slurm_gpus`.

  Raises:
    UserError: they are missing or malformed, or the first process does not answer in `timeout`
      seconds.
  """
  address, count, index = os.environ.get(ADDRESS), _whole(COUNT), _whole(INDEX)
  if count is not None and count < 1:
    raise types.UserError(f'--distributed: {COUNT}={count}, expected at least 1')
  if None not in (count, index) and not 0 <= index < count:
    raise types.UserError(f'--distributed: {INDEX}={index} with {COUNT}={count}, expected less')
  if address is not None:
    host, port = _host_and_port(address)
    if index:
      _wait_for(host, port, address, timeout)
    logging.info('%s processes meet at %s, within %d s', count or 'the', address, timeout)
  given = {} if None in (count, index) else {'num_processes': count, 'process_id': index}
  given |= {'local_device_ids': slurm_gpus(os.environ)}
  if meeting.loopback() is not None:  # Else JAX listens on all interfaces.
    given |= {'coordinator_bind_address': address}
  try:
    jax.distributed.initialize(**given, initialization_timeout=int(timeout))
  except (ValueError, TypeError, LookupError, RuntimeError, OSError) as error:
    said = ' '.join(str(error).split()).rstrip('.')
    raise types.UserError(f'--distributed: {said}; {_WAY}') from error


def slurm_gpus(environment: Mapping[str, str]) -> list[int] | None:
  """GPUs that are a SLURM task's own, among those that it sees: [] for all, None for JAX's choice.

  JAX gives each task one GPU, by the number of the task on its node. With one task a node all
  others would idle, and a task that SLURM bound to its own GPU (number 0 for each) would find none.
  """
  tasks, local = environment.get(_TASKS), environment.get('SLURM_LOCALID')
  if tasks is None or local is None or 'JAX_LOCAL_DEVICE_IDS' in environment:
    return None
  counts = []
  for part in tasks.split(','):  # '8(x2),4': eight tasks on two nodes each, four on the third.
    found = re.fullmatch(r'(\d+)(?:\(x(\d+)\))?', part)
    if found is None:
      return None
    counts += [int(found[1])] * int(found[2] or 1)
  node, on_node = int(environment.get('SLURM_NODEID', 0)), environment.get('SLURM_GPUS_ON_NODE')
  here = counts[node] if node < len(counts) else 1
  if here == 1:
    return []
  if on_node is None or not on_node.isdecimal():
    return None
  visible = next((environment[name] for name in _VISIBLE if environment.get(name)), None)
  if visible is not None and len(visible.split(',')) < int(on_node):
    return []
  share, rest = divmod(int(on_node), here)
  return None if rest or not share else list(range(int(local) * share, (int(local) + 1) * share))


def _whole(name):
  text = os.environ.get(name)
  if text is None:
    return None
  if not text.strip().isdecimal():
    raise types.UserError(f'--distributed: {name}={text!r} is no whole number; {_WAY}')
  return int(text)


def _host_and_port(address):
  host, colon, port = address.rpartition(':')
  if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
    raise types.UserError(f'--distributed: {ADDRESS}={address!r} is not HOST:PORT; {_WAY}')
  return host.strip('[]'), int(port)


def _wait_for(host, port, address, timeout):
  """Waits until the first process listens: XLA would end the program with a stack trace."""
  end = time.monotonic() + timeout
  while True:
    try:
      socket.create_connection((host, port), timeout=max(1.0, end - time.monotonic())).close()
      return
    except OSError as error:
      if time.monotonic() + 1 > end:
        raise types.UserError(
          f'--distributed: nothing answers at {ADDRESS}={address} within {timeout:g} s '
          f'({error.strerror or error}); is the first process up, and its port open?'
        ) from error
    time.sleep(1)
