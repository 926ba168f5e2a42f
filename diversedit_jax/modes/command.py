"""A command of `main`: what its flags ask for, whether they go together, and its run."""

from collections.abc import Sequence
import dataclasses

from absl import logging
import ml_collections

from diversedit_jax import cli, cluster, together, types
from diversedit_jax import experiment as experiment_lib
from diversedit_jax.experiment import declarations, idle, run_dir
from diversedit_jax.modes import (
  analyze,
  audit,
  classifier,
  evaluate,
  export,
  inspect,
  listing,
  plan,
  replay,
  report,
  sample,
  start,
  stats,
  study,
  sweep,
  train,
)

# Modes that look at weights, of a workdir or from elsewhere, and write files about them.
_OF_WEIGHTS = {
  'sample': sample.run,
  'eval': evaluate.run,
  'sweep': sweep.run,
  'analyze': analyze.run,
  'export': export.run,
}
MODES = (
  'train',
  *_OF_WEIGHTS,
  'inspect',
  'report',
  'replay',
  'study',
  'classifier',
  'stats',
  'plan',
  'audit',
  'list',
  'keys',
)
# Flags that only some modes have a use for.
_MODES_OF = {
  'checkpoint': ('train', *_OF_WEIGHTS, 'inspect'),
  'output': (*_OF_WEIGHTS, 'report', 'replay', 'study', 'classifier'),
  'full': ('inspect',),
  'step': ('replay',),
  'shard': ('study',),
  'continue_with': ('train',),
  'continue_from': ('train',),
  'stopped_status': ('train', 'study'),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
  """The flags of `main` but for the config, by their names.

  words: arguments that are no flags: a key for mode keys, directories of runs for mode report.
  config_name: name of the config without folder and ending.
  given: keys of the config that the command line sets.

  Raises:
    UserError: a flag that the mode has no use for.
  """

  mode: str
  words: Sequence[str] = ()
  config_name: str = ''
  given: Sequence[str] = ()
  workdir: str = ''
  checkpoint: str | None = None
  output: str | None = None
  continue_with: Sequence[str] = ()
  continue_from: int | None = None
  full: bool = False
  step: int | None = None
  shard: str = ''
  distributed: bool = False
  stopped_status: int = 0

  def __post_init__(self):
    if self.words and not (self.mode == 'report' or self.mode == 'keys' and len(self.words) == 1):
      raise types.UserError(f'unexpected arguments: {" ".join(self.words)}')
    for field in dataclasses.fields(self):
      modes = _MODES_OF.get(field.name, MODES)
      if self.mode not in modes and getattr(self, field.name) != field.default:
        raise types.UserError(
          f'--{field.name} is not for --mode={self.mode}, but for {", ".join(modes)}'
        )
    if self.mode == 'replay' and self.step is None:
      raise types.UserError('--mode=replay needs --step=N, the step to replay, counted from 1')

  def places(self) -> tuple[str, str | None]:
    """Where results go, and the weights from elsewhere if there are some."""
    workdir, origin, output = self.workdir, self.checkpoint, self.output
    if output is None and self.mode == 'export':
      raise types.UserError('--mode=export needs --output=DIR, the folder to write')
    if output is None:
      return workdir, origin
    if origin is not None and workdir:
      raise types.UserError('with --checkpoint, --workdir and --output are the same: give one')
    return output, origin or run_dir.newest_checkpoint(workdir)


def run(asked: Command, config: ml_collections.ConfigDict | None) -> str | None:
  """Runs the mode; returns what is to be printed.

  Raises:
    SystemExit: a signal has ended training before its last step, and that has a status of its own.
  """
  mode, workdir = asked.mode, asked.workdir
  if config is None and (asked.given or mode not in ('keys', 'inspect', 'report')):
    raise types.UserError('no config: give --config=FILE, as --config=configs/digits.py')
  if config is not None and mode not in ('list', 'study'):
    listing.check_is_experiment(config)
  if mode == 'keys':
    return declarations.document(*asked.words, config=config).removesuffix('\n')
  if mode == 'inspect':
    return inspect.run(workdir, asked.checkpoint, config, whole=asked.full)
  if mode == 'report':
    return report.run([*([workdir] if workdir else []), *asked.words], asked.output)
  if mode == 'list':
    return listing.listing(config)
  if mode == 'plan' and config.get('plan', {}).get('compile_for'):
    cli.stay_on_cpu()
  cli.keep_programs()
  cli.keep_memory()
  if not asked.distributed:
    return _run(asked, config)
  cluster.join()
  cli.let_first_process_log()
  with together.together():
    return _run(asked, config)


def _run(asked, config):
  mode, workdir = asked.mode, asked.workdir
  if mode == 'study':
    how = {'part': asked.shard, 'output': asked.output}
    written, finished = study.run(config, asked.config_name, workdir, **how)
    return _ended(asked, finished) or '\n'.join(map(str, written))
  if mode == 'train' and asked.checkpoint is not None:
    config = start.with_checkpoint(config, asked.checkpoint)
  experiment = experiment_lib.build(config, planned=mode == 'plan')
  for line in idle.remarks(experiment, mode, asked.given):
    logging.warning('%s', line)
  if mode == 'train':
    goes_on = {'continue_with': asked.continue_with, 'continue_from': asked.continue_from}
    return _ended(asked, train.run(experiment, workdir, **goes_on))
  if mode == 'plan':
    return plan.run(experiment)
  if mode == 'replay':
    return replay.run(experiment, workdir, asked.step, asked.output)
  if mode == 'classifier':
    return classifier.run(experiment, asked.output)
  if mode == 'audit':
    return audit.run(experiment, workdir)
  if mode == 'stats':
    return '\n'.join(map(str, stats.run(experiment, workdir)))
  return '\n'.join(map(str, _OF_WEIGHTS[mode](experiment, *asked.places())))


def _ended(asked, finished):
  """Ends with the status that was asked for where a signal has ended training early."""
  if not finished and asked.stopped_status:
    raise SystemExit(asked.stopped_status)
