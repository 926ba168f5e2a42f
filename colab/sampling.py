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
# # Sample from a published checkpoint
#
# **What you get:** a checkpoint of SiT, DiT, REPA or DiverseDiT, looked into, converted and sampled
# from, and what guidance and its interval do to the pictures, with sliders.
#
# **How long it takes:** 5 minutes of CPU time with the small model (13 minutes on the clock, on two
# cores that were busy with other things). A checkpoint of size XL wants a GPU or a TPU; how long it
# takes there was not measured.

# %% [markdown]
# ## Install
#
# `PROJECT` is what pip installs: an address, `git+https://...`, or a folder. `..` is right where
# this notebook runs in its folder of a copy of the project; in Colab give an address. `[hub]` is
# for weights at `hf://`. If Colab then asks to restart the session, do so, and go on below.

# %% tags=["install"]
PROJECT = '..'  # @param {type: "string"}
# %pip install --quiet "{PROJECT}[hub]" ipywidgets

# %% [markdown]
# ## Choose the weights
#
# | weights | `CHECKPOINT` | `FAMILY` |
# |---|---|---|
# | DiT-XL/2 by diffusers' names | `hf://facebook/DiT-XL-2-256/transformer` | `dit` |
# | SiT's own program | `SiT-XL-2-256x256.pt` | `sit_original` |
# | REPA, DiverseDiT | their `.pt` | `sit` |
# | REG, SRA, MeanFlow | their file | `reg`, `sra`, `meanflow` |
#
# A file is uploaded by Colab's panel *Files*, or read from a mounted Drive by its path. These
# models make latents, which `VAE` turns into pictures. For REG and MeanFlow `CONFIG` names the
# method: `xl256:method=meanflow`.
#
# Left empty, nothing is downloaded: the notebook trains a small DiverseDiT on handwritten digits
# for a few minutes, and writes it by the names of DiverseDiT's program. All that follows is the
# same.

# %%
CHECKPOINT = ''  # @param {type: "string"}
FAMILY = 'auto'  # @param ["auto", "sit", "sit_original", "dit", "reg", "sra", "meanflow"]
CONFIG = 'xl256:method=flow'  # @param {type: "string"}
VAE = 'hf://stabilityai/sd-vae-ft-mse'  # @param {type: "string"}
STEPS = 1200  # @param {type: "integer"}

if not CHECKPOINT:
  CHECKPOINT, CONFIG, VAE = 'theirs.safetensors', 'digits', ''
  # !python -m diversedit_jax.main --config=digits:steps={STEPS} --workdir=runs/digits 2>&1 \
  #   | grep --line-buffered -E 'loop.py|error:'
  # !rm -rf share {CHECKPOINT}
  # !python -m diversedit_jax.main --config=digits --workdir=runs/digits --mode=export \
  #   --output=share --verbosity=-1
  # !python -m diversedit_jax.convert --to=torch --input=share/model.safetensors \
  #   --output={CHECKPOINT} --grid=4

# %% [markdown]
# ## Look into the file
#
# Names, shapes and norms, without running anything that the file holds. `family` names whose
# weights have these names and shapes, no more and no fewer.

# %%
# !python -m diversedit_jax.main --mode=inspect --checkpoint={CHECKPOINT}

# %% [markdown]
# ## Convert
#
# The names become ours, and so do the clock and the sign where a program has others. The line
# `config` has the keys of a model that these weights fit; `?` is what a file does not tell, and the
# config knows.

# %%
import pathlib
import shlex

# !rm -rf ours.safetensors out
# !python -m diversedit_jax.convert --input={CHECKPOINT} --output=ours.safetensors \
#   --family={FAMILY} | tee convert.txt
told = pathlib.Path('convert.txt').read_text().splitlines()
_, *keys = shlex.split(next(line for line in told if line.startswith('config')))
KEYS = [key for key in keys if '?' not in key] + [f'vae.weights={VAE}'] * bool(VAE)

# %% [markdown]
# ## Sample
#
# The command writes the samples, a grid, and a card with all that they depend on.

# %%
import json

from IPython.display import Image, display

flags = ' '.join(f'--config.{key}' for key in KEYS)
# !python -m diversedit_jax.main --config={CONFIG} {flags} --checkpoint=ours.safetensors \
#   --workdir=out --mode=sample --config.sample.number=100 --verbosity=-1
display(Image('out/samples/grid.png', width=400))
card = json.loads(pathlib.Path('out/samples/samples.json').read_text())
{name: card[name] for name in ('checkpoint', 'sampler', 'steps', 'nfe', 'guidance', 'seconds')}

# %% [markdown]
# ## Choose guidance by a score
#
# `--mode=sweep` scores every setting. The stand-in is scored by a classifier of digits and by a
# Fréchet distance in its features; for ImageNet give a reference and Inception's weights
# ([docs/evaluation.md](../docs/evaluation.md)).

# %%
if CONFIG == 'digits':
  # !python -m diversedit_jax.main --config=digits {flags} --checkpoint=ours.safetensors \
  #   --workdir=out --mode=sweep --config.sweep.number=200 --verbosity=-1 \
  #   --config.sweep.guidance_scales=1,2,4,8 --config.sweep.guidance_highs=1
  display(*(Image(plot, width=520) for plot in pathlib.Path('out/eval').glob('sweep-*.png')))

# %% [markdown]
# ## Guidance, from Python
#
# The same samples without a command: the config, the weights, and a sampler that is compiled for
# each setting and kept. A picture depends on the seed and on its index, so those below one another
# differ in the setting alone.

# %%
import dataclasses
import functools

import numpy as np

from diversedit_jax import config_file, experiment
from diversedit_jax.data import images
from diversedit_jax.modes import opening, restoring, run_context

config = config_file.load(CONFIG)
config_file.override(config, KEYS)
found = experiment.build(config)
_, weights = restoring.open_weights(found, 'out', 'ours.safetensors')
decoder = opening.open_decoder(found, weights.mesh)
classes = found.architecture.num_classes
LABELS = np.arange(0, classes, -(-classes // 10))  # At most ten of them.


@functools.cache
def draw(scale, low, high):
  """A picture of each label, and how often the network was evaluated for it."""
  sampler = dataclasses.replace(
    found.sampler, guidance_scale=scale, guidance_low=low, guidance_high=high
  )
  with run_context.sampling(found, weights.mesh):
    make = run_context.make_generator(found, weights.graphdef, weights.mesh, len(LABELS), sampler)
    made = make(weights.params, LABELS)
    return (decoder(made) if decoder else made), make.evaluations.per_sample


def show(*settings):
  """A row of pictures for each (scale, low, high)."""
  rows = [draw(*setting) for setting in settings]
  names = [
    f'scale {scale:g}, t in [{low:g}, {high:g}]: {evaluations} evaluations'
    for (scale, low, high), (_, evaluations) in zip(settings, rows, strict=True)
  ]
  pictures = np.concatenate([pictures for pictures, _ in rows])
  small = pictures.shape[1] < 16
  images.save_grid('guidance.png', pictures, len(LABELS), row_labels=names, smooth=small)
  return Image('guidance.png', width=720)


show(*((scale, 0.0, 1.0) for scale in (0.0, 1.0, 2.0, 4.0, 8.0)))

# %% [markdown]
# Scale 0 is a sample without a class, 1 has the class, and beyond that the class is exaggerated.
#
# Time runs from t = 1, noise, to t = 0, data. A step outside the interval is not guided, and costs
# one evaluation of the network instead of two:

# %%
show((4.0, 0.0, 1.0), (4.0, 0.5, 1.0), (4.0, 0.0, 0.5), (4.0, 0.3, 0.8))

# %% [markdown]
# Move the sliders; each new setting is compiled first. A page that only shows this notebook has no
# sliders: the rows above are some of their settings.

# %%
import ipywidgets as widgets

slider = functools.partial(widgets.FloatSlider, continuous_update=False)
between = widgets.FloatRangeSlider(value=(0, 1), min=0, max=1, step=0.05, continuous_update=False)


@widgets.interact(scale=slider(value=3, min=0, max=12, step=0.5), interval=between)
def explore(scale, interval):
  display(show((scale, *interval)))


# %% [markdown]
# ## Where to go on
#
# - Samplers with other steps: `!python -m diversedit_jax.main --mode=keys sampler`.
# - Fine-tune these weights on pictures of your own: [your_pictures.ipynb](your_pictures.ipynb).
# - What is read and written, and how to share weights: [docs/weights.md](../docs/weights.md).
