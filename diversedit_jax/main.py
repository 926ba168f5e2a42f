"""Trains, samples, scores, analyses: `python -m diversedit_jax.main --config=FILE ...`."""

from absl import flags
from ml_collections import config_flags

from diversedit_jax import build, cli, modes, types
from diversedit_jax.modes import listing

MODES = ('train', 'sample', 'eval', 'sweep', 'analyze', 'stats', 'plan', 'audit', 'list')

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config file, with meta-arguments after a colon: FILE.py:name=value,name=value.'
)
_WORKDIR = flags.DEFINE_string('workdir', '', 'Directory of the run.')
_MODE = flags.DEFINE_enum('mode', 'train', MODES, 'What to do.')
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  None,
  'Weights from elsewhere: a folder checkpoints/STEP, or a file that `convert` wrote.',
)
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'Join the other processes of a pod slice or cluster (jax.distributed).'
)
flags.mark_flag_as_required('config')


def main(argv: list[str]) -> None:
  """Builds the experiment and runs the mode."""
  if len(argv) > 1:
    raise types.UserError(f'unexpected arguments: {" ".join(argv[1:])}')
  config, mode = cli.load(_CONFIG), _MODE.value
  if mode == 'plan' and config.get('plan', {}).get('compile_for'):
    cli.stay_on_cpu()
  cli.keep_programs()
  cli.keep_memory()
  if _DISTRIBUTED.value:
    cli.join_processes()
  if mode == 'list':
    print(listing.listing(config))
    return
  listing.check_is_experiment(config)
  experiment = build.build(config, planned=mode == 'plan')
  if mode == 'plan':
    print(modes.plan(experiment))
  elif mode == 'audit':
    print(modes.audit(experiment, _WORKDIR.value))
  elif mode == 'train':
    modes.train(experiment, _WORKDIR.value)
  elif mode == 'stats':
    print(*modes.stats(experiment, _WORKDIR.value), sep='\n')
  else:
    run = {
      'sample': modes.sample,
      'eval': modes.evaluate,
      'sweep': modes.sweep,
      'analyze': modes.analyze,
    }[mode]
    print(*run(experiment, _WORKDIR.value, _CHECKPOINT.value), sep='\n')


if __name__ == '__main__':
  cli.run(main)
