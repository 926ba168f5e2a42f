# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: jupytext,kernelspec
#     cell_metadata_filter: tags
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # On a TPU
#
# **What you get:** what devices there are, how a mesh spreads a model over them, what kept programs
# save, the throughput of a run, and whether a model fits a TPU that you do not have.
#
# **How long it takes:** 3 minutes of CPU time on a CPU (11 minutes on the clock, on two cores that
# were busy with other things). On a TPU nothing of this notebook has been run or measured.
#
# It runs on a CPU too: there one CPU plays eight devices. Meshes and the compiler's account are
# then those of a TPU, and images a second say nothing about one.

# %% [markdown]
# ## Install
#
# Choose Runtime > Change runtime type > TPU in Colab. `PROJECT` is what pip installs: an address,
# `git+https://...`, or a folder. `..` is right where this notebook runs in its folder of a copy of
# the project; in Colab give an address. `[tpu]` brings the compiler for TPUs, which a CPU can use
# as well.

# %% tags=["install"]
PROJECT = '..'  # @param {type: "string"}
# %pip install --quiet "{PROJECT}[tpu]"

# %% [markdown]
# ## Devices
#
# One process at a time has a TPU. So this notebook asks JAX in commands of their own, and never in
# its own process.

# %%
import glob
import os

ON_TPU = bool(glob.glob('/dev/accel*') or glob.glob('/dev/vfio/[0-9]*'))
if not ON_TPU:
  print('no TPU here: one CPU plays eight devices')
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'

# !python -c "import jax; print(*jax.devices(), sep='\n')" | tee devices.txt
with open('devices.txt') as file:
  COUNT = len(file.readlines())

# %% [markdown]
# ## A mesh
#
# | axis | its devices share |
# |---|---|
# | `mesh.data`, which takes the rest | nothing; each has examples of its own |
# | `mesh.fsdp` | one copy of parameters, average and moments |
# | `mesh.tensor` | each matrix product, by heads and by the MLP's hidden layer |
#
# What the state of SiT-XL/2 takes on each of eight devices, by arithmetic (`--mode=plan` compiles
# nothing):

# %%
import re
import subprocess

import matplotlib.pyplot as plt


def command(*flags):
  """What a command of the package prints."""
  line = ['python', '-m', 'diversedit_jax.main', '--verbosity=-1', *flags]
  done = subprocess.run(line, capture_output=True, text=True)
  if done.returncode:
    raise RuntimeError(done.stderr)
  return done.stdout


plan = ['--mode=plan', '--config=xl256', '--config.plan.devices=8']
MESHES = {
  'data 8': [],
  'data 8, moments split': ['--config.optimizer.shard_over_data=True'],
  'data 2, fsdp 4': ['--config.mesh.fsdp=4'],
  'fsdp 8': ['--config.mesh.fsdp=8'],
  'data 4, tensor 2': ['--config.mesh.tensor=2'],
}
plans = {name: command(*plan, *flags) for name, flags in MESHES.items()}
print(plans['fsdp 8'])
state = {name: float(re.search(r'([\d.]+) GiB state', text)[1]) for name, text in plans.items()}
figure, ax = plt.subplots(figsize=(6, 2), layout='constrained')
ax.bar_label(ax.barh(list(state), list(state.values())), fmt='%.2f', padding=3)
ax.invert_yaxis()
ax.margins(x=0.12)
ax.set(xlabel='GiB on each device: parameters, average, moments, gradients')
ax.spines[['top', 'right']].set_visible(False)

# %% [markdown]
# ## The same run on another mesh
#
# A mesh changes where numbers are, not what they are: examples and noise are functions of the seed
# and the step, and losses differ by the rounding of sums. A small DiverseDiT on handwritten digits,
# on the devices that are here:

# %%
import json
import pathlib

STEPS = 60  # @param {type: "integer"}
meshes = {f'data {COUNT}': []}
if COUNT % 4 == 0:
  meshes[f'data {COUNT // 4}, fsdp 2, tensor 2'] = [
    '--config.mesh.fsdp=2',
    '--config.mesh.tensor=2',
  ]


def train(workdir, *flags):
  """Trains for STEPS; the rows of metrics.jsonl."""
  config = [f'--config=digits:steps={STEPS}', '--config.log.every=10', '--config.preview.every=0']
  command(*config, f'--workdir={workdir}', '--config.log.telemetry_every=0', *flags)
  lines = (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()
  return [row for row in map(json.loads, lines) if 'loss' in row]


runs = {name: train(f'runs/mesh-{i}', *meshes[name]) for i, name in enumerate(meshes)}
print(f'{"step":<24}', *(f'{row["step"]:>8}' for row in next(iter(runs.values()))))
for name, rows in runs.items():
  print(f'{name:<24}', *(f'{row["loss"]:8.5f}' for row in rows))

# %% [markdown]
# ## Kept programs
#
# Compiled programs are kept below `~/.cache`, or in `$JAX_COMPILATION_CACHE_DIR`, which may be a
# folder of a mounted Drive that is yours alone. The same config again, in another workdir, waits
# less for its first step:

# %%
train('runs/again')


def waited(workdir):
  """Seconds until the first step was done, the making of the state not counted."""
  report = json.loads((pathlib.Path(workdir) / 'report/report.json').read_text())
  return report['goodput']['seconds']['compile']


for workdir in ('runs/mesh-0', 'runs/again'):
  command('--mode=report', f'--workdir={workdir}')
  print(f'{workdir:<12} {waited(workdir):6.1f} s to the first step')
# !du -sh ~/.cache/diversedit_jax/xla

# %% [markdown]
# ## Throughput
#
# `metrics.jsonl` has the rate of each report. On a TPU this trains SiT-S/2 in bfloat16 on latents
# that are noise, and compares with the peak of the chip; elsewhere it shows the rate of the digits,
# and that only.

# %%
PEAK = {'v4': 275, 'v5 lite': 197, 'v5': 459, 'v6 lite': 918}  # TFLOP/s in bfloat16, by Google.
BATCH = 256  # @param {type: "integer"}

if ON_TPU:
  bench = ['--config=s256:steps=200', f'--config.train.batch_size={BATCH}']
  quiet = ['--config.log.every=20', '--config.preview.every=0', '--config.log.telemetry_every=0']
  command(*bench, *quiet, '--workdir=runs/bench')
  lines = pathlib.Path('runs/bench/metrics.jsonl').read_text().splitlines()
  rates = [row for row in map(json.loads, lines) if 'images_per_second' in row]
  flops = float(re.search(r'([\d.]+) G training', command('--mode=plan', *bench))[1]) * 1e9
  kind = subprocess.check_output(
    ['python', '-c', 'import jax; print(jax.devices()[0].device_kind)'], text=True
  )
  peak = PEAK.get(kind.strip().removeprefix('TPU '))
  rate = rates[-1]['images_per_second']
  share = '' if peak is None else f', {rate * flops / (COUNT * peak * 1e12):.0%} of the peak'
  print(f'SiT-S/2 on {COUNT} x {kind.strip()}: {rate:.0f} images/s{share}')
else:
  rates = runs[f'data {COUNT}']
  print(f'digits on a CPU: {rates[-1]["images_per_second"]:.0f} images/s; run this on a TPU')

figure, ax = plt.subplots(figsize=(5, 1.8), layout='constrained')
ax.plot([row['step'] for row in rates], [row['images_per_second'] for row in rates], 'o-')
ax.set(xlabel='step', ylabel='images/s', ylim=(0, None))
ax.grid(alpha=0.3)

# %% [markdown]
# ## Will it fit?
#
# `plan.compile_for` compiles the run's real step for a slice that is not here, and prints the
# compiler's account beside the estimate; what libtpu says of the machine that it misses is in
# `compiler.log`. Other targets: `v5p:2x2x1`, `v6e:4x4`, `h100:8`.

# %%
TARGET = 'v5e:2x2'  # @param {type: "string"}

# !python -m diversedit_jax.main --mode=plan --config=s256:method=flow \
#   --config.train.batch_size=64 --config.plan.compile_for={TARGET} --config.plan.peak_tflops=197 \
#   --verbosity=-1 2>compiler.log || tail -1 compiler.log

# %% [markdown]
# ## Where to go on
#
# - Several hosts, slices, preemption, and runs in a bucket: [docs/scale.md](../docs/scale.md).
# - What fits which device: [docs/memory.md](../docs/memory.md).
# - Where the time of a step goes: `--config.log.profile=100:102`
#   ([docs/seeing.md](../docs/seeing.md)).
