"""Small things to prepare a store of: 24 pictures, two of them bad, and a narrow autoencoder."""

import io
import json

import numpy as np
from PIL import Image
import safetensors.numpy

from diversedit_jax.data.pictures import base
from diversedit_jax.frozen import vae, vae_files
from diversedit_jax.preparation import options

SIZE = 32
CONFIG = vae.VAEConfig(
  latent_channels=2,
  block_channels=(8, 8, 8),
  layers_per_block=1,
  norm_groups=4,
  scale=0.5,
  shift=0.25,
)
CLASSES = ('ant', 'bee', 'cat')
BAD = {5: b'', 14: b'no picture'}


def jpeg(seed, side=3 * SIZE):
  """A noisy gradient of its own size, larger than SIZE and at most `side`."""
  rng = np.random.default_rng(seed)
  height, width = rng.integers(side // 2, side, 2)
  ramp = np.linspace(0, 200, height)[:, None, None] + 40 * rng.random((height, width, 3))
  file = io.BytesIO()
  Image.fromarray(ramp.astype(np.uint8)).save(file, 'JPEG', quality=90)
  return file.getvalue()


def files(bad=BAD, side=3 * SIZE):
  """Bytes of 24 pictures by name, in classes; some are bad."""
  return {
    f'{CLASSES[i // 8]}/{i:03d}.jpg': bad[i] if i in bad else jpeg(i, side) for i in range(24)
  }


def write_pictures(folder, **more):
  """The files in a folder, one folder for each class."""
  for name, data in files(**more).items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def write_vae(folder):
  """A file of weights, with its config.json beside it."""
  autoencoder = vae_files.random(CONFIG, 0)
  folder.mkdir()
  path = folder / vae_files.FILE
  safetensors.numpy.save_file(vae_files.to_arrays(autoencoder.params, CONFIG), path)
  settings = {
    'norm_num_groups': CONFIG.norm_groups,
    'scaling_factor': CONFIG.scale,
    'shift_factor': CONFIG.shift,
  }
  (folder / vae_files.SETTINGS).write_text(json.dumps(settings))
  return path


class Memory(base.Pictures):
  """Pictures that lie in memory; `reads` are the names that were read."""

  name = 'memory/small'

  def __init__(self, contents, skipped=()):
    self.contents, self.reads = contents, []
    found = [(name, name.split('/')[0], len(data)) for name, data in contents.items()]
    self.listing, _ = base.make_listing(found, skipped, CLASSES, 'memory')

  def read(self, index):
    name = self.listing.names[index]
    self.reads.append(name)
    if self.contents[name] == b'':
      raise base.BadPicture('is gone')
    return self.contents[name]


def asked(output, **more):
  """A request for latents of the pictures, four to a shard."""
  fields = {'source': 'memory', 'output': output, 'vae': 'random', 'size': SIZE, 'batch_size': 3}
  return options.Options(**fields | {'records_per_shard': 4, 'threads': 2} | more)


def contents(root):
  """Bytes of every file by its path."""
  return {
    path.relative_to(root).as_posix(): path.read_bytes()
    for path in sorted(root.rglob('*'))
    if path.is_file()
  }
