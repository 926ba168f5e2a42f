"""Trains, samples, scores, analyses: `python -m diversedit_jax.main --config=FILE ...`."""

from absl import flags, logging

from diversedit_jax import cli, cluster, config_file, types
from diversedit_jax import experiment as experiment_lib
from diversedit_jax.experiment import declarations, idle, run_dir
from diversedit_jax.modes import (
  analyze,
  audit,
  evaluate,
  export,
  inspect,
  listing,
  plan,
  sample,
  start,
  stats,
  sweep,
  train,
)

MODES = ('train', 'sample', 'eval', 'sweep', 'analyze', 'export', 'inspect', 'stats', 'plan')
MODES += ('audit', 'list', 'keys')

_CONFIG = flags.DEFINE_string(
  'config',
  None,
  'Config file, or the name of one that comes with the package; with meta-arguments after a colon: '
  'FILE.py:name=value,name=value. --config.SECTION.KEY=VALUE changes a key. Or a folder that '
  '--mode=export wrote, or hf://ORG/REPO. A new run starts from them.',
)
_OVERRIDE = flags.DEFINE_multi_string(
  'override', [], 'SECTION.KEY=VALUE: the same as --config.SECTION.KEY=VALUE.'
)
_WORKDIR = flags.DEFINE_string('workdir', '', 'Directory of the run.')
_MODE = flags.DEFINE_enum('mode', 'train', MODES, 'What to do; keys explains the config.')
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  None,
  'Weights from elsewhere: a folder checkpoints/STEP, a file that `convert` wrote, a folder that '
  '--mode=export wrote, or hf://ORG/REPO. A new run starts from them.',
)
_OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'Directory for results, beside a workdir that is only read.',
  allow_override=True,  # `evaluate_npz` has one too; tests import both.
)
_CONTINUE_WITH = flags.DEFINE_list(
  'continue_with',
  [],
  'Keys whose values the run may change when it continues, or SECTION.*, with commas between.',
)
_CONTINUE_FROM = flags.DEFINE_integer(
  'continue_from',
  None,
  'Step of an earlier checkpoint from which the run continues; what came later is set aside.',
)
_FULL = flags.DEFINE_bool('full', False, 'With --mode=inspect: a line for each array.')
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'Join the other processes of a pod slice or cluster (jax.distributed).'
)
# Modes that have a use for a flag.
_MODES_OF = {
  'checkpoint': ('train', 'sample', 'eval', 'sweep', 'analyze', 'export', 'inspect'),
  'output': ('sample', 'eval', 'sweep', 'analyze', 'export'),
  'full': ('inspect',),
  'continue_with': ('train',),
  'continue_from': ('train',),
}


def main(argv: list[str]) -> None:
  """Builds the experiment and runs the mode."""
  mode, section = _MODE.value, argv[1] if len(argv) == 2 and _MODE.value == 'keys' else ''
  if len(argv) > 1 and not section:
    raise types.UserError(f'unexpected arguments: {" ".join(argv[1:])}')
  for name, modes in _MODES_OF.items():
    if flags.FLAGS[name].present and mode not in modes:
      raise types.UserError(f'--{name} is not for --mode={mode}, but for {", ".join(modes)}')
  config = None if _CONFIG.value is None else config_file.load(_CONFIG.value)
  if config is not None and (mode != 'list' or _OVERRIDE.value):
    listing.check_is_experiment(config)
    config_file.override(config, _OVERRIDE.value)
  if config is None and (mode not in ('keys', 'inspect') or _OVERRIDE.value):
    raise types.UserError('no config: give --config=FILE, as --config=configs/digits.py')
  if mode == 'keys':
    print(declarations.document(section, config), end='')
    return
  if mode == 'inspect':
    print(inspect.run(_WORKDIR.value, _CHECKPOINT.value, config, whole=_FULL.value))
    return
  if mode == 'plan' and config.get('plan', {}).get('compile_for'):
    cli.stay_on_cpu()
  cli.keep_programs()
  cli.keep_memory()
  if _DISTRIBUTED.value:
    cluster.join()
    cli.let_first_process_log()
  if mode == 'list':
    print(listing.listing(config))
    return
  if mode == 'train' and _CHECKPOINT.value is not None:
    config = start.with_checkpoint(config, _CHECKPOINT.value)
  experiment = experiment_lib.build(config, planned=mode == 'plan')
  for line in idle.remarks(experiment, mode, [text.partition('=')[0] for text in _OVERRIDE.value]):
    logging.warning('%s', line)
  if mode == 'plan':
    print(plan.run(experiment))
  elif mode == 'audit':
    print(audit.run(experiment, _WORKDIR.value))
  elif mode == 'train':
    train.run(
      experiment,
      _WORKDIR.value,
      continue_with=_CONTINUE_WITH.value,
      continue_from=_CONTINUE_FROM.value,
    )
  elif mode == 'stats':
    print(*stats.run(experiment, _WORKDIR.value), sep='\n')
  else:
    module = {'sample': sample, 'eval': evaluate, 'sweep': sweep, 'analyze': analyze}
    module['export'] = export
    print(*module[mode].run(experiment, *_places()), sep='\n')


def _places() -> tuple[str, str | None]:
  """Where results go, and the weights from elsewhere if there are some."""
  workdir, origin, output = _WORKDIR.value, _CHECKPOINT.value, _OUTPUT.value
  if output is None and _MODE.value == 'export':
    raise types.UserError('--mode=export needs --output=DIR, the folder to write')
  if output is None:
    return workdir, origin
  if origin is not None and workdir:
    raise types.UserError('with --checkpoint, --workdir and --output are the same: give one')
  return output, origin or run_dir.newest_checkpoint(workdir)


if __name__ == '__main__':
  cli.run(main, config_file.parse)
