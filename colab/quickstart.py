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
# # DiverseDiT in five minutes
#
# This notebook trains a diffusion transformer of 1.1 million parameters on 1,442 handwritten digits
# of 8x8 pixels, watches it learn, and samples from it. A CPU runtime is enough.
#
# The network is a SiT with the two additions of DiverseDiT
# ([arXiv 2603.04239](https://arxiv.org/abs/2603.04239)): long residual connections from its first
# half to its second, and a loss that keeps the representations of its blocks apart.

# %% [markdown]
# ## Install
#
# `PROJECT` is what pip installs: an address, `git+https://...`, or a folder. `..` is right where
# this notebook runs in its folder of a copy of the project; in Colab give an address. If Colab then
# asks to restart the session, do so, and go on below.

# %% tags=["install"]
PROJECT = '..'  # @param {type: "string"}
# %pip install --quiet {PROJECT}

# %% [markdown]
# ## Train
#
# The command is the one that a TPU slice takes: a config, a directory for all that the run makes,
# and what is to differ from the config. Stop it, and it saves; run the cell again, and it goes on
# where it was, bit for bit.

# %%
STEPS = 1200  # @param {type: "integer"}
WORKDIR = 'runs/digits'  # @param {type: "string"}

# !python -m diversedit_jax.main --config=digits:steps={STEPS} --workdir={WORKDIR}

# %% [markdown]
# ## What happened
#
# Each report is a row of `metrics.jsonl`, which TensorBoard shows as well (`%load_ext tensorboard`,
# `%tensorboard --logdir runs`). The velocity loss trains the sampler. The diversity loss measures
# how alike the blocks' outputs are; it is weighted by its own size, so its pull fades as the blocks
# come apart.

# %%
import json
import pathlib

from IPython.display import Image, display
import matplotlib.pyplot as plt

run = pathlib.Path(WORKDIR)
rows = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
shown = {
  'velocity': 'velocity loss',
  'diverse/loss': 'diversity loss',
  'diverse/weight': 'its weight',
}
figure, axes = plt.subplots(1, 3, figsize=(11, 2.6), layout='constrained')
for ax, (name, title) in zip(axes, shown.items(), strict=True):
  there = [row for row in rows if name in row]
  ax.plot([row['step'] for row in there], [row[name] for row in there])
  ax.set(title=title, xlabel='step')
  ax.grid(alpha=0.3)

# %% [markdown]
# The same labels and the same noise, sampled on the way. The weights are averages over some 200
# steps.

# %%
for preview in sorted((run / 'samples').glob('preview-*.png')):
  print(preview.name)
  display(Image(preview, width=420))

# %% [markdown]
# ## Sample
#
# Guidance trades variety for clarity. Every picture depends on the seed and on its index only, so
# the rows below differ in guidance alone.

# %%
for scale in (1, 2, 4):
  # !python -m diversedit_jax.main --config=digits --workdir={WORKDIR} --mode=sample \
  #   --config.sample.name=guidance-{scale} --config.sample.number=40 \
  #   --config.sampler.guidance_scale={scale} --verbosity=-1
  display(Image(run / 'samples' / f'guidance-{scale}' / 'grid.png', width=420))

# %% [markdown]
# ## Score and look inside
#
# A classifier of real digits recognises the samples (class consistency), and the Fréchet distance
# to held-out digits is taken in its features. The number stands with all that it depends on.

# %%
# !python -m diversedit_jax.main --config=digits --workdir={WORKDIR} --mode=eval --verbosity=-1
card = json.loads((run / 'eval' / 'digits.json').read_text())
card['scores']

# %% [markdown]
# CKA between the outputs of all blocks at three times t: 1 where two blocks hold the same.

# %%
# !python -m diversedit_jax.main --config=digits --workdir={WORKDIR} --mode=analyze --verbosity=-1
display(Image(run / 'analysis' / 'cka.png', width=640))

# %% [markdown]
# Where the seconds went, and what the run came to:

# %%
# !python -m diversedit_jax.main --workdir={WORKDIR} --mode=report --verbosity=-1

# %% [markdown]
# ## Change one thing
#
# `--config=digits:method=flow,skips=False` is the plain SiT, `method=repa+diverse` adds REPA.
# `!python -m diversedit_jax.main --mode=keys diversity` explains every key of the loss. The same
# commands with `--config=xl256` train SiT-XL/2 on ImageNet.
#
# Other notebooks: [published checkpoints](sampling.ipynb), [your own
# pictures](your_pictures.ipynb), [what the blocks hold](representations.ipynb), [on a
# TPU](tpu.ipynb).
