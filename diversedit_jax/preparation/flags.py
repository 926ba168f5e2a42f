"""Flags of `prepare`: their names, meanings and help."""

import argparse
from collections.abc import Sequence
import dataclasses
from typing import Any

from diversedit_jax import cli, paths, types
from diversedit_jax.data import pictures
from diversedit_jax.frozen import rae
from diversedit_jax.preparation import options

_DESCRIPTION = """\
Makes a store for training from pictures: their latents, encoded by an autoencoder (of a VAE the
moments), the tokens of a frozen encoder, the cropped pixels, or pixels beside either. If it is
killed, the same command goes on where it stopped.

  ImageNet, from the official tar of tars, which is not unpacked:
    python -m diversedit_jax.prepare --source=ILSVRC2012_img_train.tar --vae=sd-vae-ft-mse \\
      --output=imagenet256
  CIFAR-10 as pixels, from an archive of class folders (or --source=tfds:cifar10):
    python -m diversedit_jax.prepare --source=cifar10.tar/train --store=pixels --size=32 \\
      --crop=exact --output=cifar10
  Own pictures, one folder per class:
    python -m diversedit_jax.prepare --source=PHOTOGRAPHS --vae=sd-vae-ft-mse --output=store
  Four machines that share a folder: with --shard=0/4 to --shard=3/4, or all with --distributed.
  Check a finished store:
    python -m diversedit_jax.prepare --verify --output=imagenet256

Pictures that cannot be used, and files that are not pictures, are left out and listed in
OUTPUT/skipped.csv. The store is the same, byte for byte, however often the command was killed and
however many workers made it. Another kind of device or another --batch_size may change the last bit
of the latents."""


def parse(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """The given flags by name: fields of `options.Options`, 'distributed' and 'verify'.

  --help and unknown flags end the program.

  Raises:
    UserError: flags exclude each other.
  """
  given = vars(_parser().parse_args(argv))
  if 'verify' in given:
    others = sorted(given.keys() - {'verify', 'output'})
    if others:
      raise types.UserError(f'--verify takes --output alone, not --{others[0]}')
    return given
  if 'source' not in given:
    raise types.UserError('give --source to make a store, or --verify to check one; see --help')
  if 'shard' in given:
    if 'distributed' in given:
      raise types.UserError('--distributed sets --shard=i/n for each process; give one of them')
    given['worker'], given['workers'] = given.pop('shard')
  return given


def _parser():
  parser = cli.Parser(
    prog='python -m diversedit_jax.prepare',
    description=_DESCRIPTION,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    argument_default=argparse.SUPPRESS,
    allow_abbrev=False,
  )
  defaults = {f.name: f.default for f in dataclasses.fields(options.Options)}
  add = lambda flag, metavar, text, kind=str, **more: parser.add_argument(
    flag, metavar=metavar, help=text.format(**defaults), type=kind, **more
  )
  switch = lambda flag, text: parser.add_argument(flag, help=text, action='store_true')
  kinds = ', '.join(pictures.KINDS)
  add(
    '--source',
    'PICTURES',
    f'a path, or KIND:PATH with one of {kinds}; tfds:NAME[:SPLIT]',
    paths.expanded,
  )
  add('--output', 'FOLDER', 'folder of the store; with --verify also its URL', _root, required=True)
  add('--vae', 'FILE', 'weights of the autoencoder, their folder, or hf://ORG/REPO', paths.expanded)
  add('--vae_scale', 'S', 'scale of latents, 1 or C numbers (default: of the weights)', _numbers)
  add('--vae_shift', 'S', 'shift of latents, 1 or C numbers (default: of the weights)', _numbers)
  add(
    '--vae_dtype',
    'DTYPE',
    f'precision of its products: {_or(options.VAE_DTYPES)} (default: float32)',
  )
  add('--rae', 'NAME', 'encoder whose tokens are the latents, instead of --vae; see docs/rae.md')
  add('--rae_weights', 'FOLDER', 'folder with its weights', paths.expanded)
  add('--rae_statistics', 'FILE', 'mean and variance that normalise its tokens', paths.expanded)
  add('--rae_patch', 'N', f'pixels of a token along a side (default: {rae.PATCH})', int)
  add(
    '--rae_dtype',
    'DTYPE',
    f'precision of its products: {_or(options.VAE_DTYPES)} (default: float32)',
  )
  add('--size', 'N', 'side of the square pictures (default: {size})', int)
  add('--crop', 'RULE', f'{_or(pictures.CROPS)} (default: {{crop}}, as in published runs)')
  add('--orientation', 'O', f'{_or(pictures.ORIENTATIONS)} (default: {{orientation}})')
  add('--store', 'WHAT', f'{_or(options.STORES)} (default: {{store}})')
  switch('--twins', 'encode mirror images too: exact flips for training, twice the disk space')
  add('--dtype', 'DTYPE', f'dtype of the latents: {_or(options.DTYPES)} (default: float16)')
  add(
    '--classes',
    'FILE',
    "file with the names of all classes in order, 'imagenet', or 'alphabetical' (default: those "
    'found, sorted, numbers by their value)',
    paths.expanded,
  )
  add(
    '--labels',
    'FILE',
    "file that says the classes of pictures, or the column of a table that does; 'none': one class",
    paths.expanded,
  )
  add('--split', 'NAME', "split, in place of '{{split}}' in --source (default: {split})")
  add('--batch_size', 'N', 'pictures encoded at once (default: {batch_size})', int)
  add('--threads', 'N', 'threads that decode pictures (default: one per core)', int)
  add('--records_per_shard', 'N', 'pictures per shard (default: for about 64 shards)', int)
  add('--shard', 'i/n', 'make the i-th of n parts, counted from 0', _part)
  switch('--distributed', 'join the other processes of a pod slice or cluster (jax.distributed)')
  switch('--strict', 'end at the first picture that cannot be used; ignore files that are none')
  switch('--verify', 'read a finished store and check every file; only with --output')
  return parser


def _root(text):
  return text if paths.is_bucket(text) else paths.path(text)


def _or(known):
  return ' or '.join([', '.join(known[:-1]), known[-1]] if len(known) > 1 else known)


def _numbers(text):
  try:
    numbers = tuple(float(part) for part in text.split(','))
  except ValueError:
    raise argparse.ArgumentTypeError(f'{text!r} is no list of numbers; write 0.5 or 1,2') from None
  return numbers if len(numbers) > 1 else numbers[0]


def _part(text):
  index, _, count = text.partition('/')
  try:
    return int(index), int(count)
  except ValueError:
    raise argparse.ArgumentTypeError(f'{text!r} is not i/n; write 0/4') from None
