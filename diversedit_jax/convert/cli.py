"""The command line that converts a file of weights between another system's names and ours."""

import argparse
from collections.abc import Sequence

from diversedit_jax import cli, paths, trees, types
from diversedit_jax.convert import detection, diffusers_dit, families, mapping
from diversedit_jax.weights import array_files

_GRID = (16, 16)
"""The tokens of 256 px and patch 2."""

_DESCRIPTION = """\
Converts weights between other systems' models and diversedit_jax, both ways, without running any
code that a file may contain.

  python -m diversedit_jax.convert --input=REPA-XL.pt --output=sit.safetensors
  python -m diversedit_jax.convert --to=torch --input=sit.safetensors --output=theirs.pt --grid=16
  python -m diversedit_jax.convert --input=hf://facebook/DiT-XL-2-256/transformer --output=dit.npz

The input is read by what it holds, whatever its suffix: .safetensors, .npz, what torch.save wrote
(.pt, .pth, .bin, .ckpt), an index of shards, or a folder with one of these. A network is found in
the checkpoints of Lightning, DDP, FSDP, torch.compile and averages; what was taken is printed.

Families:
  sit           REPA and DiverseDiT: t = 0 is data, 4 output channels
  reg           REG: with a class token
  sra           SRA: with its alignment head, or without, as its moving average
  meanflow      MeanFlow's Flax parameters; --to=torch writes Flax names for it
  sit_original  SiT's own program: t = 1 is data, 8 output channels; clock and sign are converted
  selfflow      Self-Flow's published networks: like SiT's own, with patches of side 2 as a matrix
  rae           RAE's DiT: LightningDiT's with Gaussian features of time; t = 0 is data
  ddt           the same with a wide head
  raev2         RAEv2's, with time and label in tokens and a head of internal guidance
  lightning     LightningDiT: t = 1 is data; RMSNorm, SwiGLU and rotary positions
  dit           DiT, by its own names or diffusers': noise and variance; weights for non-commercial
                use only (CC BY-NC 4.0)

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
  text = 'a file of weights, an index of shards or a folder with them; or hf://ORG/REPO/FILE'
  add('--input', text, type=paths.expanded, **file)
  text = (
    'a new .safetensors or .npz; with --to=torch also .pt (needs PyTorch); with --to=diffusers a '
    'new folder'
  )
  add('--output', text, type=paths.path, **file)
  add(
    '--to',
    'the names to write; torch means those of the other system, diffusers a folder that its '
    'DiTTransformer2DModel reads (default: ours)',
    choices=('ours', 'torch', 'diffusers'),
    default='ours',
  )
  add('--family', f'kind of model: auto (default), {known}', default='auto')
  add(
    '--key',
    'part of a checkpoint, as ema, or state_dict.model (default: an average if there is one, else '
    'the only network, or the one called model or state_dict)',
  )
  add(
    '--num_classes',
    'number of classes (default: one less than the rows of the label table, whose last row is the '
    'null label; as many rows mean a model trained with class_dropout_prob=0)',
    type=int,
    metavar='K',
  )
  add(
    '--heads',
    'only with --to=diffusers, or --to=torch for rotary positions: attention heads (default: those '
    'of a published size)',
    type=int,
    metavar='H',
  )
  add(
    '--decoder_heads',
    'only with --to=torch, families ddt and raev2: attention heads of the decoder (default: 16 '
    'for two blocks of width 2048, as published)',
    type=int,
    metavar='H',
  )
  add(
    '--decoder_depth',
    'only with --to=ours, families ddt and raev2: blocks of the decoder (default: those of another '
    'width, or with a modulation)',
    type=int,
    metavar='M',
  )
  add(
    '--patch_size',
    'only with --to=torch or diffusers: the patch size, which our weights do not tell (default: 2)',
    type=int,
    metavar='P',
  )
  add(
    '--grid',
    "rows and columns of tokens; with --to=ours in the file's position table (default: a square), "
    'with --to=torch or diffusers in the table to write (default: 16, for 256 px and patch 2)',
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
  _check(flags)
  given = lambda *names: {n: x for n in names if (x := getattr(flags, n)) is not None}
  read = array_files.read(
    flags.input, key=flags.key, anchors=families.anchors(), within=('transformer',)
  )
  arrays = read.arrays
  settings = diffusers_dit.read_settings(read.path) if diffusers_dit.recognises(arrays) else {}
  diffusers = flags.to == 'diffusers'
  if flags.family == 'auto':
    flags.family = 'dit' if diffusers else detection.detect(arrays)
  _check_decoder(flags)
  if flags.to == 'ours':
    how = given('grid', 'num_classes', 'decoder_depth')
    params = mapping.to_ours(arrays, flags.family, **how)
    state_dict, written = arrays, trees.named_leaves(params)
  else:
    params = array_files.unflatten(arrays)
    how = given('grid', 'patch_size', *(() if diffusers else ('heads', 'decoder_heads')))
    state_dict = mapping.to_rules(params, flags.family, **how)
    written = mapping.their_names(state_dict, flags.family)
  config = mapping.infer_config(state_dict, flags.family, **given('decoder_depth'))
  config['heads'] = flags.heads or settings.get('num_attention_heads') or config['heads']
  if diffusers:
    diffusers_dit.save(flags.output, written, config, flags.grid or _GRID)
  else:
    array_files.save(flags.output, written)
  return _summary(flags, read.notes, params, state_dict, config)


def _check(flags):
  """Refuses flags that do not go together, before anything is read (UserError)."""
  ours, diffusers = flags.to == 'ours', flags.to == 'diffusers'
  for name, used, where in (
    ('patch_size', not ours, '--to=torch and --to=diffusers; without that, the file tells it'),
    ('heads', not ours, '--to=diffusers, whose config.json has it, and --to=torch'),
    ('decoder_heads', flags.to == 'torch', '--to=torch'),
    ('num_classes', ours, '--to=ours'),
    ('decoder_depth', ours, '--to=ours; without that, our weights tell it'),
  ):
    if getattr(flags, name) is not None and not used:
      raise types.UserError(f'--{name} is for {where}')
  for name in ('heads', 'decoder_heads', 'decoder_depth'):
    if (getattr(flags, name) or 1) < 1:
      raise types.UserError(f'--{name}={getattr(flags, name)} must be positive')
  if diffusers and flags.family not in ('auto', 'dit'):
    raise types.UserError(f'--to=diffusers writes DiT, not --family={flags.family}')
  if ours and flags.output.suffix in ('.pt', '.pth'):
    raise types.UserError(
      f'{flags.output} cannot hold our weights; write a .safetensors or .npz file'
    )
  if diffusers:
    diffusers_dit.check_output(flags.output)
  else:
    array_files.check_output(flags.output)


def _check_decoder(flags):
  """Refuses flags of a decoder for a family that has none (UserError)."""
  if families.family(flags.family).has_decoder:
    return
  known = ' and '.join(name for name, one in families.FAMILIES.items() if one.has_decoder)
  for name in ('decoder_depth', 'decoder_heads'):
    if getattr(flags, name) is not None:
      raise types.UserError(
        f'--{name} is for networks with a wide head, families {known}; this one is {flags.family}'
      )


def _summary(flags, notes, params, state_dict, config):
  rules = families.family(flags.family)
  table = ', '.join(rules.tables)
  if not table:
    fixed = 'nothing: this family stores no position table'
  elif flags.to == 'torch':
    fixed = f'{table} computed'
  elif flags.to == 'diffusers':
    fixed = f'{table} left out, which diffusers computes'
  else:
    found = ', '.join(name for name in rules.tables if name in state_dict)
    fixed = f'{found} dropped, equal to ours' if found else 'nothing dropped'
  keys, labels = detection.config_keys(config, rules), []
  if flags.to == 'ours':
    rows = config['num_classes'] + 1
    labels = [
      f'labels      {rows} rows: {rows - 1} classes, the last row for the null label (of a model '
      f'trained without dropping labels, they are {rows} classes: give --num_classes={rows})'
    ]
    if flags.num_classes == rows:
      config['num_classes'] = rows
      labels = [f'labels      {rows} rows of {rows} classes, and one of zeros for the null label']
      keys += ['train.label_dropout=0', 'sampler.guidance_scale=1']
  return '\n'.join(
    [
      *(f'read        {note}' for note in notes),
      f'family      {flags.family}',
      *(f'{name:<12}{"unknown" if x is None else x}' for name, x in config.items()),
      *labels,
      f'parameters  {trees.count(params):,}',
      f'fixed       {fixed}',
      f'config      {" ".join(keys)}',
      *([f'licence     {rules.notice}'] if rules.notice else []),
      f'written     {flags.output}',
    ]
  )
