"""Trains, samples, scores, analyses: `python -m diversedit_jax.main --config=FILE ...`."""

from absl import flags

from diversedit_jax import cli, config_file
from diversedit_jax.modes import command

_CONFIG = flags.DEFINE_string(
  'config',
  None,
  'Config file, or the name of one that comes with the package; with meta-arguments after a colon: '
  'FILE.py:name=value,name=value. --config.SECTION.KEY=VALUE changes a key. Or a folder that '
  '--mode=export wrote, or hf://ORG/REPO.',
)
_OVERRIDE = flags.DEFINE_multi_string(
  'override', [], 'SECTION.KEY=VALUE: the same as --config.SECTION.KEY=VALUE.'
)
_WORKDIR = flags.DEFINE_string('workdir', '', 'Directory of the run.')
_MODE = flags.DEFINE_enum('mode', 'train', command.MODES, 'What to do; keys explains the config.')
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
_STOPPED_STATUS = flags.DEFINE_integer(
  'stopped_status',
  0,
  'Exit status of training that a signal ends before its last step: a scheduler knows by it that '
  'the run is to be started again.',
  lower_bound=0,
  upper_bound=255,
)
_FULL = flags.DEFINE_bool('full', False, 'With --mode=inspect: a line for each array.')
_SHARD = flags.DEFINE_string(
  'shard', '', 'With --mode=study: which share of the runs to train here, as 1/4 to 4/4.'
)
_STEP = flags.DEFINE_integer('step', None, 'With --mode=replay: the step, counted from 1.')
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'Join the other processes of a pod slice or cluster (jax.distributed).'
)


def main(argv: list[str]) -> None:
  """Reads the config, and runs the mode."""
  asked = command.Command(
    mode=_MODE.value,
    words=argv[1:],
    config_name=config_file.name(_CONFIG.value or ''),
    given=[text.partition('=')[0] for text in _OVERRIDE.value],
    workdir=_WORKDIR.value,
    checkpoint=_CHECKPOINT.value,
    output=_OUTPUT.value,
    continue_with=tuple(_CONTINUE_WITH.value),
    continue_from=_CONTINUE_FROM.value,
    full=_FULL.value,
    step=_STEP.value,
    shard=_SHARD.value,
    distributed=_DISTRIBUTED.value,
    stopped_status=_STOPPED_STATUS.value,
  )
  config = None if _CONFIG.value is None else config_file.load(_CONFIG.value)
  if config is not None:
    config_file.override(config, _OVERRIDE.value)
  text = command.run(asked, config)
  if text:
    print(text)


if __name__ == '__main__':
  cli.run(main, config_file.parse)
