"""What schedulers do, rehearsed with local processes: from a script to a run that goes on."""

import http.server
import os
import re
import signal
import subprocess
import sys
import threading

from helpers import killed_runs, several
import pytest
import yaml

from diversedit_jax import together

ROOT = killed_runs.ROOT
STEPS = 150
TRAINING = ['--config.optimizer.schedule=constant', '--config.checkpoint.every=20']
TRAINING += [f'--config.train.steps={STEPS}', '--config.checkpoint.keep=2']
# srun starts the tasks of a step; their ids are noted for whoever sends them signals.
SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
export SLURM_STEP_NODELIST=localhost SLURM_NODEID=0
export SLURM_NTASKS=$TASKS SLURM_STEP_TASKS_PER_NODE=$TASKS
for ((i = 0; i < TASKS; i++)); do
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


def first_step(log):
  return int(re.search(r'continuing at step (\d+)', log)[1])


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4])
def test_slurm_queues_a_stopped_run_again_and_it_goes_on(tmp_path, count):
  script(tmp_path / 'srun', SRUN)
  job, asked = str(os.getpid()), tmp_path / 'scontrol-calls'
  script(tmp_path / 'scontrol', f'#!/usr/bin/env bash\necho "$*" >> "{asked}"\n')
  environment = os.environ | {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'NOTES': str(tmp_path)}
  environment |= {'SLURM_JOB_ID': job, 'PYTHON': sys.executable, 'TASKS': str(count)}

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
  several.until(job_1, 'step 14/')
  send(signal.SIGUSR1, *range(count))  # `--signal=USR1@300` goes to every task.
  saved = int(re.search(r'saved step (\d+)', job_1.communicate()[1])[1])
  assert job_1.returncode == 0 and asked.read_text() == f'requeue {job}\n'
  job_2 = submit()
  log = several.until(job_2, f'step {saved + 28 - saved % 7}/')
  assert first_step(log) == saved
  send(signal.SIGKILL, 1)
  assert f'process 1 of {count} (pid ' in job_2.communicate()[1]
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


def hosts_of_a_slice(workdir, count, metadata):
  """Command line and environment of the hosts that tpu_vm.sh or tpu_mig.sh starts."""
  port = several.free_port()
  for index in range(count):
    attributes = {'agent-worker-number': str(index), 'tpu-env': ''}
    attributes |= {'worker-network-endpoints': ','.join(['localhost'] * count)}
    given = {'GCE_METADATA_IP': metadata(attributes), 'JAX_COORDINATOR_PORT': port}
    yield ['launch/tpu_host.sh', '--stopped_status=75', *flags(workdir)], given


def pods(workdir, count, kind, metadata):
  """Command line and environment of the pods, from the JobSet that gke.sh writes."""
  command = ['launch/gke.sh', 'run', '--dry-run', '--context=c', '--name=digits', '--pool=p']
  command += ['--image=i', '--claim=c', f'--hosts={count}', '--chips=4']
  command += ['--tpu=tpu-v6e-slice', f'--topology={count}x4'] if kind == 'tpu' else []
  done = subprocess.run(
    [ROOT / command[0], *command[1:], '--', *flags(workdir)], capture_output=True, text=True
  )
  job = yaml.safe_load(done.stdout.partition('\n')[2])['spec']['replicatedJobs'][0]['template']
  assert job['spec']['completionMode'] == 'Indexed'
  (container,) = job['spec']['template']['spec']['containers']
  port = several.free_port()
  for index in range(count):
    if kind == 'tpu':  # As GKE's webhook sets them.
      given = {'TPU_WORKER_ID': str(index), 'TPU_WORKER_HOSTNAMES': ','.join(['localhost'] * count)}
      given |= {'GCE_METADATA_IP': metadata({'tpu-env': ''}), 'JAX_COORDINATOR_PORT': port}
    else:
      given = {each['name']: each.get('value', str(index)) for each in container['env']}
      host, _ = given['JAX_COORDINATOR_ADDRESS'].split(':')
      assert host == 'digits-hosts-0-0.digits'
      given['JAX_COORDINATOR_ADDRESS'] = f'localhost:{port}'
    yield [*container['command'], *container['args']], given


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4])
@pytest.mark.parametrize('kind', ['gpu', 'tpu', 'tpu_vm'])
def test_hosts_that_are_made_anew_go_on(tmp_path, kind, count, metadata):
  script(tmp_path / 'python', ON_A_TPU)
  python = sys.executable if kind == 'gpu' else str(tmp_path / 'python')
  hosts = lambda path: (
    hosts_of_a_slice(path, count, metadata)
    if kind == 'tpu_vm'
    else pods(path, count, kind, metadata)
  )
  environment = os.environ | {'PYTHON': python, 'REAL_PYTHON': sys.executable}

  def start():
    return [
      subprocess.Popen(
        command, cwd=ROOT, env=environment | given, stderr=subprocess.PIPE, text=True
      )
      for command, given in hosts(tmp_path / 'run')
    ]

  first, *others = start()
  several.until(first, 'step 49/')
  others[-1].kill()  # One is lost, and the rest end by themselves: the scheduler makes all anew.
  statuses, logs = several.ended([first, *others[:-1]])
  assert set(statuses) == {together.LOST}
  assert all(f'process {count - 1} of {count} (pid ' in log.splitlines()[-1] for log in logs)
  first, *others = start()
  assert first_step(several.until(first, 'step 63/')) in (20, 40)
  others[-1].terminate()  # Its node is taken away.
  statuses, logs = several.ended([first, *others])
  saved = int(re.search(r'saved step (\d+)', logs[0])[1])
  assert statuses == [75] * count
  statuses, logs = several.ended(start())
  assert statuses == [0] * count and first_step(logs[0]) == saved
