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
# # What the blocks hold
#
# **What you get:** two networks that differ in DiverseDiT's additions alone (the long residual
# connections and the diversity loss), and side by side how alike their blocks are (CKA), what a
# linear map reads from each (probes), and how many directions each uses (effective rank).
#
# **How long it takes:** 4 minutes of CPU time (9 minutes on the clock, on two cores that were busy
# with other things). On a GPU or TPU it was not measured.

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
# ## Train two
#
# Both see the same pictures with the same noise in the same order.

# %%
STEPS = 600  # @param {type: "integer"}

PLAIN = f'digits:method=flow,skips=False,steps={STEPS}'
DIVERSE = f'digits:method=flow+diverse,skips=True,steps={STEPS}'
RUNS = ('plain', 'diverse')
# !python -m diversedit_jax.main --config={PLAIN} --workdir=runs/plain \
#   --config.preview.every=0 2>&1 | grep --line-buffered -E '00/|goodput|error:'
# !python -m diversedit_jax.main --config={DIVERSE} --workdir=runs/diverse \
#   --config.preview.every=0 2>&1 | grep --line-buffered -E '00/|goodput|error:'

# %% [markdown]
# ## What the diversity loss does
#
# It measures how alike the outputs of the blocks are, and is weighted by its own size: once the
# blocks are apart, it pulls no more. The velocity loss trains the sampler.

# %%
import json
import pathlib

import matplotlib.pyplot as plt


def rows(name, key):
  """Steps and values of what a run reported."""
  lines = pathlib.Path(f'runs/{name}/metrics.jsonl').read_text().splitlines()
  told = [row for row in map(json.loads, lines) if key in row]
  return [row['step'] for row in told], [row[key] for row in told]


figure, axes = plt.subplots(1, 3, figsize=(11, 2.4), layout='constrained')
for name in RUNS:
  axes[0].plot(*rows(name, 'velocity'), label=name)
axes[0].legend()
axes[1].plot(*rows('diverse', 'diverse/loss'), color='C1')
axes[2].plot(*rows('diverse', 'diverse/weight'), color='C1')
for ax, title in zip(axes, ('velocity loss', 'diversity loss', 'its weight'), strict=True):
  ax.set(title=title, xlabel='step')
  ax.grid(alpha=0.3)
for name in RUNS:
  means, tokens = (rows(name, f'similarity/{view}')[1][-1] for view in ('mean', 'token'))
  print(f'{name}: cosine of two blocks {means:.2f} by token means, {tokens:.2f} token by token')

# %% [markdown]
# In the runs that are kept here the loss did what it is for: two blocks' outputs point to different
# directions. It has not made the sampler better by then: after 600 steps the plain network has the
# lower velocity loss. (The paper trains for 400,000.)
#
# ## Analyse both
#
# `--mode=analyze` looks at held-out digits, noised to three times t (1 is noise), and writes a
# sheet, and all its numbers to `analysis/analysis.json`.

# %%
# !python -m diversedit_jax.main --config={PLAIN} --workdir=runs/plain --mode=analyze --verbosity=-1
# !python -m diversedit_jax.main --config={DIVERSE} --workdir=runs/diverse --mode=analyze \
#   --verbosity=-1

# %% [markdown]
# The sheet of each run: first the plain network, then the one with the additions. `cka.png` beside
# it has all times.

# %%
from IPython.display import display
from PIL import Image


def show(path):
  """Shows a figure at half its size, which keeps the notebook small."""
  display(Image.open(path).convert('RGB').reduce(2).quantize(64))


for name in RUNS:
  show(f'runs/{name}/analysis/sheet.png')

# %% [markdown]
# ## Side by side
#
# The numbers of both `analysis.json`. CKA of the outputs of every two blocks, 1 where they hold the
# same; the same colours everywhere:

# %%
parts = {
  name: json.loads(pathlib.Path(f'runs/{name}/analysis/analysis.json').read_text())['parts']
  for name in RUNS
}
figure, axes = plt.subplots(2, 3, figsize=(8, 5), layout='constrained', sharex=True, sharey=True)
for row, name in zip(axes, RUNS, strict=True):
  for ax, panel in zip(row, parts[name]['cka']['figures']['cka']['panels'], strict=True):
    ends = min(panel['x']) - 0.5, max(panel['x']) + 0.5
    drawn = ax.imshow(panel['values'], vmin=0, vmax=1, origin='lower', extent=(*ends, *ends))
    ax.set_title(f'{name}, {panel["title"]}', fontsize=9)
figure.supxlabel('block')
figure.supylabel('block')
_ = figure.colorbar(drawn, ax=axes, label='CKA')

# %% [markdown]
# CKA asks how the examples lie to each other, the diversity loss where outputs point, so they need
# not agree. In the runs that are kept here they do at t = 0.1 (mean off the diagonal 0.78 plain,
# 0.68 with the additions) and do not at t = 0.5 and 0.9.
#
# Block by block, at t = 0.5: how unlike the others its output is, which share of held-out digits a
# linear classifier recognises in it (the network is not told the class), and how many directions it
# uses.

# %%
curves = {
  'diversity: 1 - mean CKA': ('cka', 'diversity'),
  'accuracy of a linear probe': ('probe', 'probe'),
  'effective rank': ('rank', 'rank'),
}
figure, axes = plt.subplots(1, 3, figsize=(11, 2.8), layout='constrained')
for ax, (title, (part, shown)) in zip(axes, curves.items(), strict=True):
  for name in RUNS:
    values = parts[name][part]['figures'][shown]['panels'][0]['series']['t = 0.5']
    ax.plot(range(1, len(values) + 1), values, 'o-', label=name)
  ax.set(title=title, xlabel='block', ylim=(0, None))
  ax.grid(alpha=0.3)
_ = axes[0].legend()

# %% [markdown]
# ## Blocks of one against blocks of the other
#
# `analysis.against` names another run, a checkpoint or a file of weights.

# %%
# !python -m diversedit_jax.main --config={DIVERSE} --workdir=runs/diverse --mode=analyze \
#   --config.analysis.parts=compare --config.analysis.against=runs/plain --verbosity=-1
show('runs/diverse/analysis/compare.png')

# %% [markdown]
# ## Where to go on
#
# - Every part of the analysis, with its definition and source:
#   [docs/analysis.md](../docs/analysis.md).
# - One run of each kind proves nothing: [docs/studies.md](../docs/studies.md) trains variants with
#   several seeds, and writes one table and one figure.
# - A page with both runs side by side: `--mode=report runs/plain runs/diverse --output=compared`
#   ([docs/seeing.md](../docs/seeing.md)).
