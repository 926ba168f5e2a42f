"""What schedulers do, rehearsed with two local processes: from a script to a run that goes on."""

import http.server
import os
import re
import signal
import socket
import subprocess
import sys
import threading

from helpers import killed_runs
import pytest
import yaml

ROOT = killed_runs.ROOT
STEPS = 150
TRAINING = ['--config.optimizer.schedule=constant', '--config.checkpoint.every=20']
TRAINING += [f'--config.train.steps={STEPS}', '--config.checkpoint.keep=2']
# srun starts the tasks of a step; their ids are noted for whoever sends them signals.
SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_TASKS_PER_NODE=2 SLURM_NODEID=0
for i in 0 1; do
  SLURM_PROCID=$i SLURM_LOCALID=$i "$@" &
  tasks+=($!)
done
echo "${tasks[@]}" > "$NOTES/tasks"
highest=0
for task in "${tasks[@]}"; do
  status=0
  wait "$task" || status=$?
  [ "$status" -le "$highest" ] || highest=$status
done
exit "$highest"
"""
# JAX's question whether this is a TPU's machine is answered by yes.
ON_A_TPU = """#!/usr/bin/env bash
exec "$REAL_PYTHON" -c '
import os, runpy, sys
from jax._src.clusters import cloud_tpu_cluster
cloud_tpu_cluster.running_in_cloud_tpu_vm = True
os.environ.pop("TPU_SKIP_MDS_QUERY")
del sys.argv[:2]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)' "$@"
"""


def script(path, text):
  path.write_text(text)
  path.chmod(0o755)


def flags(workdir):
  return killed_runs.command(workdir, *TRAINING)[3:]


def free_port():
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return str(probe.getsockname()[1])


def until(process, text):
  """The log of a process until it says `text`."""
  log = ''
  for line in process.stderr:
    log += line
    if text in line:
      return log
  raise AssertionError(f'ended before saying {text!r}: {log[-3000:]}')


def first_step(log):
  return int(re.search(r'continuing at step (\d+)', log)[1])


@pytest.mark.slow
def test_slurm_queues_a_stopped_run_again_and_it_goes_on(tmp_path):
  script(tmp_path / 'srun', SRUN)
  job, asked = str(os.getpid()), tmp_path / 'scontrol-calls'
  script(tmp_path / 'scontrol', f'#!/usr/bin/env bash\necho "$*" >> "{asked}"\n')
  environment = os.environ | {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'NOTES': str(tmp_path)}
  environment |= {'SLURM_JOB_ID': job, 'PYTHON': sys.executable}

  def submit():
    return subprocess.Popen(
      ['bash', 'launch/slurm.sbatch', *flags(tmp_path / 'run')],
      cwd=ROOT,
      env=environment,
      stderr=subprocess.PIPE,
      text=True,
    )

  def send(number, *which):
    tasks = (tmp_path / 'tasks').read_text().split()
    for index in which:
      os.kill(int(tasks[index]), number)

  job_1 = submit()
  until(job_1, 'step 14/')
  send(signal.SIGUSR1, 0, 1)  # `--signal=USR1@300` goes to every task.
  saved = int(re.search(r'saved step (\d+)', job_1.communicate()[1])[1])
  assert job_1.returncode == 0 and asked.read_text() == f'requeue {job}\n'
  job_2 = submit()
  log = until(job_2, f'step {saved + 28 - saved % 7}/')
  assert first_step(log) == saved
  send(signal.SIGKILL, 1)
  assert 'process 1 of 2' in job_2.communicate()[1]
  assert job_2.returncode not in (0, 75) and asked.read_text() == f'requeue {job}\n'
  job_3 = submit()
  log = job_3.communicate()[1]
  assert job_3.returncode == 0 and first_step(log) >= saved
  assert f'step {STEPS}/{STEPS}' in log and asked.read_text() == f'requeue {job}\n'


@pytest.fixture
def metadata():
  """Starts a metadata server of Compute Engine with these attributes; returns its address."""
  servers = []

  def start(attributes):
    class Answer(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
        found = attributes.get(self.path.rpartition('/')[2])
        self.send_response(404 if found is None else 200)
        self.end_headers()
        self.wfile.write((found or '').encode())

      def log_message(self, *unused):
        pass

    servers.append(http.server.ThreadingHTTPServer(('localhost', 0), Answer))
    threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
    return f'localhost:{servers[-1].server_port}'

  yield start
  for server in servers:
    server.shutdown()


def hosts_of_a_slice(workdir, metadata):
  """Command line and environment of two hosts that tpu_vm.sh or tpu_mig.sh starts."""
  port = free_port()
  for index in range(2):
    attributes = {'agent-worker-number': str(index), 'tpu-env': ''}
    attributes |= {'worker-network-endpoints': 'localhost,localhost'}
    given = {'GCE_METADATA_IP': metadata(attributes), 'JAX_COORDINATOR_PORT': port}
    yield ['launch/tpu_host.sh', '--stopped_status=75', *flags(workdir)], given


def pods(workdir, kind, metadata):
  """Command line and environment of both pods, from the JobSet that gke.sh writes."""
  command = ['launch/gke.sh', 'run', '--dry-run', '--context=c', '--name=digits', '--pool=p']
  command += ['--image=i', '--claim=c', '--hosts=2', '--chips=4']
  command += ['--tpu=tpu-v6e-slice', '--topology=2x4'] if kind == 'tpu' else []
  done = subprocess.run(
    [ROOT / command[0], *command[1:], '--', *flags(workdir)], capture_output=True, text=True
  )
  job = yaml.safe_load(done.stdout.partition('\n')[2])['spec']['replicatedJobs'][0]['template']
  assert job['spec']['completionMode'] == 'Indexed'
  (container,) = job['spec']['template']['spec']['containers']
  port = free_port()
  for index in range(2):
    if kind == 'tpu':  # As GKE's webhook sets them.
      given = {'TPU_WORKER_ID': str(index), 'TPU_WORKER_HOSTNAMES': 'localhost,localhost'}
      given |= {'GCE_METADATA_IP': metadata({'tpu-env': ''}), 'JAX_COORDINATOR_PORT': port}
    else:
      given = {each['name']: each.get('value', str(index)) for each in container['env']}
      host, _ = given['JAX_COORDINATOR_ADDRESS'].split(':')
      assert host == 'digits-hosts-0-0.digits'
      given['JAX_COORDINATOR_ADDRESS'] = f'localhost:{port}'
    yield [*container['command'], *container['args']], given


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['gpu', 'tpu', 'tpu_vm'])
def test_hosts_that_are_made_anew_go_on(tmp_path, kind, metadata):
  script(tmp_path / 'python', ON_A_TPU)
  python = sys.executable if kind == 'gpu' else str(tmp_path / 'python')
  hosts = lambda path: (
    hosts_of_a_slice(path, metadata) if kind == 'tpu_vm' else pods(path, kind, metadata)
  )
  environment = os.environ | {'PYTHON': python, 'REAL_PYTHON': sys.executable}

  def start():
    return [
      subprocess.Popen(
        command, cwd=ROOT, env=environment | given, stderr=subprocess.PIPE, text=True
      )
      for command, given in hosts(tmp_path / 'run')
    ]

  first, other = start()
  until(first, 'step 49/')
  for pod in (other, first):  # One is lost, and the scheduler ends the rest.
    pod.kill()
    pod.communicate()
  first, other = start()
  assert first_step(until(first, 'step 63/')) in (20, 40)
  other.terminate()  # Its node is taken away.
  saved = int(re.search(r'saved step (\d+)', first.communicate()[1])[1])
  other.communicate()
  assert (first.returncode, other.returncode) == (75, 75)
  first, other = start()
  log = first.communicate()[1]
  other.communicate()
  assert (first.returncode, other.returncode) == (0, 0) and first_step(log) == saved
