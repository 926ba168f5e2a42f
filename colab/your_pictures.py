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
# # Your own pictures: from a zip to a fine-tuned model
#
# **What you get:** a zip of your pictures becomes a checked store, a model that was trained on
# others is fine-tuned on it, and you see its samples, what the start from trained weights brought,
# and whether the samples are copies of your pictures.
#
# **How long it takes:** 4 minutes of CPU time with the stand-in of 8x8 pixels (11 minutes on the
# clock, on two cores that were busy with other things). Larger pictures want a GPU or a TPU; how
# long they take there was not measured.

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
# ## Your pictures
#
# A zip with a folder for each class: `cats/1.jpg`, `dogs/a.png`. Tick `UPLOAD` in Colab and choose
# the file. (Pictures without classes, tables, Parquet and more: [docs/data.md](../docs/data.md).)
#
# Otherwise the notebook makes such a zip from scikit-learn's handwritten digits: 200 pictures of
# the digits 5 to 9 stand for yours, all of 0 to 4 for the larger set that the first model learns.
# One picture of yours is damaged, as happens.

# %%
import pathlib
import zipfile

UPLOAD = False  # @param {type: "boolean"}
SIZE = 8  # @param {type: "integer"}

NAMES = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine']


def write_digits(path, digits, number):
  """A zip of so many pictures of each digit at most, in a folder for each."""
  import io

  from PIL import Image
  from sklearn import datasets

  found = datasets.load_digits()
  with zipfile.ZipFile(path, 'w') as archive:
    for digit in digits:
      for i, picture in enumerate(found.images[found.target == digit][:number]):
        file = io.BytesIO()
        Image.fromarray((picture * 255 / 16).astype('uint8')).convert('RGB').save(file, 'PNG')
        archive.writestr(f'{NAMES[digit]}/{i:03}.png', file.getvalue())


write_digits('theirs.zip', range(5), 200)
if UPLOAD:
  from google.colab import files

  (PICTURES,) = files.upload()
else:
  PICTURES = 'mine.zip'
  write_digits(PICTURES, range(5, 10), 40)
  with zipfile.ZipFile(PICTURES, 'a') as archive:
    archive.writestr('nine/broken.png', b'not a picture')
with zipfile.ZipFile(PICTURES) as archive:
  print(len(archive.namelist()), 'files:', *archive.namelist()[:3], '...')

# %% [markdown]
# ## Make a store
#
# Every picture is decoded, cropped to a square and scaled once, and kept with a checksum. What
# cannot be used is left out and listed. Here the store holds pixels. For pictures of 256 and more
# take latents instead: `--vae=hf://stabilityai/sd-vae-ft-mse --size=256`.

# %%
# !python -m diversedit_jax.prepare --source={PICTURES} --store=pixels --size={SIZE} --output=mine
print(pathlib.Path('mine/skipped.csv').read_text())

# %% [markdown]
# ## A config
#
# A config is a Python file. This one begins as the config of CIFAR-10 that comes with the package,
# and says what differs: a small network, a short run, and no mirror images, which would be wrong
# for digits and right for most photographs.

# %%
# %%writefile own.py
from configs import cifar10


def get_config(arg=None):
  config = cifar10.get_config(arg)
  config.data.size = 8
  config.data.flip = False
  config.model.size = ''
  config.model.depth, config.model.width, config.model.heads = 6, 96, 4
  config.model.patch_size = 2
  config.model.dtype = 'float32'
  config.train.batch_size = 64
  config.train.ema_decay = 0.99
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 50
  config.optimizer.schedule = 'cosine'
  config.log.every = 50
  config.preview.every = 0
  config.sampler.kind, config.sampler.steps = 'heun', 20
  config.sampler.guidance_scale = 2.0
  config.sample.number = 50
  return config


# %% [markdown]
# ## Look before you train
#
# `--mode=audit` reads two epochs as 1, 2, 4 and 8 processes would, counts the labels, and describes
# the values.

# %%
# !python -m diversedit_jax.main --config=own.py:data=store:mine --config.data.size={SIZE} \
#   --mode=audit --verbosity=-1

# %% [markdown]
# ## The weights to start from
#
# `INIT_FROM` is a checkpoint of a run, a file that `convert` wrote, or `hf://ORG/REPO`
# ([docs/weights.md](../docs/weights.md#start-a-run-from-weights)). Left empty, a model is trained
# on the digits 0 to 4.

# %%
INIT_FROM = ''  # @param {type: "string"}
STEPS = 800  # @param {type: "integer"}

if not INIT_FROM:
  INIT_FROM = f'runs/theirs/checkpoints/{STEPS}'
  # !python -m diversedit_jax.prepare --source=theirs.zip --store=pixels --size={SIZE} \
  #   --output=theirs 2>&1 | grep examples
  # !python -m diversedit_jax.main --config=own.py:data=store:theirs,steps={STEPS} \
  #   --config.data.size={SIZE} --workdir=runs/theirs 2>&1 \
  #   | grep --line-buffered -E 'loop.py|error:'

# %% [markdown]
# ## Fine-tune, and train from nothing beside it
#
# The same steps on your pictures, with and without the start. What was kept, fitted and new is in
# `init.json`. (The method is the config's, with the diversity loss. Its weight is 0 here: so small
# a network begins below the range in which the loss pulls, see `--mode=keys diversity`.)

# %%
FINE_TUNE_STEPS = 200  # @param {type: "integer"}

mine = f'--config=own.py:data=store:mine,steps={FINE_TUNE_STEPS} --config.data.size={SIZE}'
# !python -m diversedit_jax.main {mine} --workdir=runs/mine --config.init_from={INIT_FROM} 2>&1 \
#   | grep --line-buffered -E 'loop.py|initial.py|error:'
# !python -m diversedit_jax.main {mine} --workdir=runs/nothing --verbosity=-1

# %%
import json

import matplotlib.pyplot as plt

figure, ax = plt.subplots(figsize=(5.5, 2.6), layout='constrained')
for name, title in (('nothing', 'from nothing'), ('mine', 'from the weights')):
  lines = pathlib.Path(f'runs/{name}/metrics.jsonl').read_text().splitlines()
  rows = [row for row in map(json.loads, lines) if 'velocity' in row]
  ax.plot([row['step'] for row in rows], [row['velocity'] for row in rows], label=title)
ax.set(xlabel='step', ylabel='velocity loss')
ax.legend()
ax.grid(alpha=0.3)
# %% [markdown]
# ## Sample
#
# From nothing, then from the weights: the same seed, the same steps. These are few; take more for
# clear pictures.

# %%
from IPython.display import Image, display

for name in ('nothing', 'mine'):
  # !python -m diversedit_jax.main {mine} --workdir=runs/{name} --mode=sample --verbosity=-1
  display(Image(f'runs/{name}/samples/grid.png', width=460))

# %% [markdown]
# ## What the run came to

# %%
# !python -m diversedit_jax.main --workdir=runs/mine --mode=report --verbosity=-1

# %% [markdown]
# ## Are they copies?
#
# A model that sees few pictures for long repeats them. Above: samples; below each: the nearest of
# your pictures. Copies would be nearer to it than your pictures are to each other.

# %%
import numpy as np

from diversedit_jax import config_file, experiment
from diversedit_jax.data import images

config = config_file.load('own.py:data=store:mine')
config.data.size = SIZE
source = experiment.build(config).source
yours = images.from_uint8(source.gather(np.arange(len(source)))['images'])
made = np.load('runs/mine/samples/samples.npz')['images'][:10]
distances = np.square(made[:, None] - yours[None]).mean((2, 3, 4))
pairs = np.concatenate([made, yours[distances.argmin(1)]])
images.save_grid('copies.png', pairs, 10, row_labels=['samples', 'nearest'], smooth=SIZE < 16)
others = np.square(yours[:, None] - yours[None]).mean((2, 3, 4)) + 9 * np.eye(len(yours))
print(f'a sample to its nearest picture: {np.sqrt(distances.min(1)).mean():.2f}')
print(f'a picture to its nearest other:  {np.sqrt(others.min(1)).mean():.2f}')
Image('copies.png', width=640)

# %% [markdown]
# ## Where to go on
#
# - A published SiT-XL/2 on your pictures as latents takes the same steps: `prepare --vae=...`,
#   `convert`, and `--config=xl256:method=flow,data=store:mine --config.init_from=sit.safetensors
#   --config.model.learn_sigma=True`
#   ([docs/weights.md](../docs/weights.md#start-a-run-from-weights)).
# - Add DiverseDiT to a trained SiT, or freeze parts: the same page.
# - Share the model: `--mode=export`. Sample it with sliders: [sampling.ipynb](sampling.ipynb).
