"""Command line that converts one file of weights between PyTorch's names and ours."""

import argparse
from collections.abc import Sequence
import pathlib
import sys

from diversedit_jax import trees, types
from diversedit_jax.convert import families, mapping
from diversedit_jax.weights import array_files

_DESCRIPTION = """\
Converts weights between PyTorch models and diversedit_jax: exactly, and without running any code
that a file may contain.

  python -m diversedit_jax.convert --input=REPA-XL.pt --output=sit.safetensors
  python -m diversedit_jax.convert --to=torch --input=sit.safetensors --output=theirs.pt --grid=16

The family 'sit' is that of REPA and DiverseDiT: t = 0 is data, 4 output channels. The original SiT
runs its clock the other way and is not of this family.

Our files hold arrays by slash-joined names, as model/blocks/layers/attn/qkv/kernel. The names,
shapes and numbers of all arrays are checked; an existing output is never overwritten."""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status, 0, or 1 after a message to stderr."""
  flags = _parser().parse_args(argv)
  try:
    print(_convert(flags))
  except types.UserError as error:
    print(f'convert: {error}', file=sys.stderr)
    return 1
  return 0


def _parser():
  parser = argparse.ArgumentParser(
    prog='python -m diversedit_jax.convert',
    description=_DESCRIPTION,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  known = ', '.join(families.FAMILIES)
  add = lambda flag, text, **options: parser.add_argument(flag, help=text, **options)
  file = {'required': True, 'type': pathlib.Path, 'metavar': 'FILE'}
  add('--input', '.pt, .pth, .safetensors or .npz', **file)
  add('--output', 'a new .safetensors or .npz; with --to=torch also .pt (needs PyTorch)', **file)
  add('--to', 'whose names to write (default: ours)', choices=('ours', 'torch'), default='ours')
  add('--family', f'kind of model (default: sit; known: {known})', default='sit')
  add(
    '--key', 'part of a .pt checkpoint (default: ema if there is one, else model, else all of it)'
  )
  add(
    '--patch_size',
    'only with --to=torch: the patch size, which our weights do not tell (default: 2)',
    type=int,
    metavar='P',
  )
  add(
    '--grid',
    "tokens of one example; with --to=ours the grid of the file's position table (default: a "
    'square), with --to=torch that of the table to write (default: 16, for 256 px and patch 2)',
    type=_grid,
    metavar='ROWS[xCOLS]',
  )
  return parser


def _grid(text):
  rows, _, cols = text.partition('x')
  try:
    return int(rows), int(cols or rows)
  except ValueError:
    raise argparse.ArgumentTypeError(f'{text!r} is not ROWS or ROWSxCOLS') from None


def _convert(flags):
  """Reads, converts and writes; returns the summary."""
  if flags.to == 'ours' and flags.patch_size is not None:
    raise types.UserError('--patch_size is for --to=torch; the other way the file tells it')
  if flags.to == 'ours' and flags.output.suffix in ('.pt', '.pth'):
    raise types.UserError(f'{flags.output}: our weights go into files of .safetensors or .npz only')
  array_files.check_output(flags.output)
  given = {name: x for name in ('grid', 'patch_size') if (x := getattr(flags, name)) is not None}
  arrays = array_files.load(flags.input, key=flags.key)
  if flags.to == 'ours':
    params = mapping.to_ours(arrays, flags.family, **given)
    state_dict, written = arrays, trees.named_leaves(params)
  else:
    params = array_files.unflatten(arrays)
    state_dict = written = mapping.to_torch(params, flags.family, **given)
  array_files.save(flags.output, written)
  return _summary(flags, params, state_dict)


def _summary(flags, params, state_dict):
  table = families.family(flags.family).position_table
  dropped = f'{table} dropped, equal to ours' if table in state_dict else 'nothing dropped'
  fixed = f'{table} made anew' if flags.to == 'torch' else dropped
  config = mapping.infer_config(state_dict, flags.family)
  return '\n'.join(
    [
      f'family      {flags.family}',
      *(f'{name:<12}{"not told by the weights" if x is None else x}' for name, x in config.items()),
      f'parameters  {trees.count(params):,}',
      f'fixed       {fixed}',
      f'written     {flags.output}',
    ]
  )
