"""The command line that converts a file of weights between another system's names and ours."""

import argparse
from collections.abc import Sequence

from diversedit_jax import cli, paths, trees, types
from diversedit_jax.convert import detection, families, mapping
from diversedit_jax.weights import array_files

_DESCRIPTION = """\
Converts weights between other systems' models and diversedit_jax, both ways, without running any
code that a file may contain.

  python -m diversedit_jax.convert --input=REPA-XL.pt --output=sit.safetensors
  python -m diversedit_jax.convert --to=torch --input=sit.safetensors --output=theirs.pt --grid=16

Families:
  sit           REPA and DiverseDiT: t = 0 is data, 4 output channels
  reg           REG: with a class token
  sra           SRA: with its alignment head, or without, as its moving average
  meanflow      MeanFlow's Flax parameters; --to=torch writes Flax names for it
  sit_original  SiT's own program: t = 1 is data, 8 output channels; clock and sign are converted
  dit           DiT: noise and variance; weights for non-commercial use only (CC BY-NC 4.0)

auto recognises them by names and shapes, except that sit_original and dit look the same. An
original SiT with 4 output channels looks like 'sit' but has another clock; it is not supported.

MeanFlow's checkpoint is a folder; its names are joined by slashes and begin with net/. In Python:
  state = flax.training.checkpoints.restore_checkpoint(FOLDER, target=None)
  numpy.savez('mf.npz', **flax.traverse_util.flatten_dict(state['ema_params'], sep='/'))

Our files hold arrays by slash-joined names, as model/blocks/layers/attn/qkv/kernel. The names,
shapes and dtypes of all arrays are checked; an existing output is never overwritten."""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status, see `cli.status`."""
  return cli.status(lambda: print(_convert(_parser().parse_args(argv))), 'convert')


def _parser():
  parser = cli.Parser(
    prog='python -m diversedit_jax.convert',
    description=_DESCRIPTION,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  known = ', '.join(families.FAMILIES)
  add = lambda flag, text, **options: parser.add_argument(flag, help=text, **options)
  file = {'required': True, 'metavar': 'FILE'}
  text = '.pt, .pth, .safetensors or .npz; or hf://ORG/REPO/FILE'
  add('--input', text, type=paths.expanded, **file)
  text = 'a new .safetensors or .npz; with --to=torch also .pt (needs PyTorch)'
  add('--output', text, type=paths.path, **file)
  add(
    '--to',
    'the names to write; torch means those of the other system (default: ours)',
    choices=('ours', 'torch'),
    default='ours',
  )
  add('--family', f'kind of model: auto (default), {known}', default='auto')
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
    "rows and columns of tokens; with --to=ours in the file's position table (default: a square), "
    'with --to=torch in the table to write (default: 16, for 256 px and patch 2)',
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
    raise types.UserError('--patch_size is for --to=torch; without that, the file tells it')
  if flags.to == 'ours' and flags.output.suffix in ('.pt', '.pth'):
    raise types.UserError(
      f'{flags.output} cannot hold our weights; write a .safetensors or .npz file'
    )
  array_files.check_output(flags.output)
  given = {name: x for name in ('grid', 'patch_size') if (x := getattr(flags, name)) is not None}
  arrays = array_files.load(flags.input, key=flags.key)
  family = detection.detect(arrays) if flags.family == 'auto' else flags.family
  if flags.to == 'ours':
    params = mapping.to_ours(arrays, family, **given)
    state_dict, written = arrays, trees.named_leaves(params)
  else:
    params = array_files.unflatten(arrays)
    state_dict = written = mapping.to_torch(params, family, **given)
  array_files.save(flags.output, written)
  return _summary(flags, family, params, state_dict)


def _summary(flags, family, params, state_dict):
  rules = families.family(family)
  table = rules.position_table
  if table is None:
    fixed = 'nothing: this family stores no position table'
  elif flags.to == 'torch':
    fixed = f'{table} computed'
  else:
    fixed = f'{table} dropped, equal to ours' if table in state_dict else 'nothing dropped'
  config = mapping.infer_config(state_dict, family)
  return '\n'.join(
    [
      f'family      {family}',
      *(f'{name:<12}{"unknown" if x is None else x}' for name, x in config.items()),
      f'parameters  {trees.count(params):,}',
      f'fixed       {fixed}',
      f'config      {" ".join(detection.config_keys(config, rules))}',
      *([f'licence     {rules.notice}'] if rules.notice else []),
      f'written     {flags.output}',
    ]
  )
