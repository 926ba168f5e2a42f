"""`--mode=study`: variants of a config with several seeds, trained, in one table and one figure.

  WORKDIR/VARIANT/seed-N   a run like any other, which continues if it was stopped
  WORKDIR/NAME.json        what all runs came to; NAME.md is the table of it, NAME.svg and .png the
                           figure

Table and figure are made of NAME.json alone; without a workdir they are made anew from one that was
kept.
"""

import pathlib
from typing import Any

from absl import logging
import jax
import ml_collections

from diversedit_jax import checkpoint, signals, types
from diversedit_jax import experiment as experiment_lib
from diversedit_jax.analysis import studies, study_figure
from diversedit_jax.data import files
from diversedit_jax.evaluation import checks
from diversedit_jax.experiment import continuing, flat_config, run_dir, study
from diversedit_jax.modes import analyze, study_results, train
from diversedit_jax.training import nonfinite

# What all variants must have alike, so that their scores are of one kind and of the same steps.
_ALIKE = ('train.steps', 'eval.best', 'eval.every', 'eval.every_number', 'eval.reference')
_ALIKE += ('eval.labels', 'eval.quantiser', 'eval.inception', 'eval.encoder', 'eval.classifier')
_ALIKE += ('eval.fdr', 'eval.fdr_real', 'eval.cmmd')


def run(
  given: ml_collections.ConfigDict,
  name: str,
  workdir: str = '',
  *,
  part: str = '',
  output: str | None = None,
) -> tuple[list[pathlib.Path], bool]:
  """Trains and analyses what is left of a study, and writes what is known of it.

  Args:
    given: config of a study. name: name of the files.
    workdir: directory of the runs; without one nothing is trained, and `output` has NAME.json.
    part: share of the runs that this process trains, as '1/4'; '' is all.
    output: folder of the files; None is the workdir.

  Returns:
    The files, and False if a signal has ended training early.

  Raises:
    UserError: several processes; a run that is there of another config; as training, but numbers
      that are not finite end only their own run, and are told.
  """
  if jax.process_count() > 1:
    raise types.UserError(
      '--mode=study is for one process; start it without --distributed, on each machine with its '
      'share of the runs: --shard=1/4 to --shard=4/4'
    )
  asked = study.read(given)
  if not workdir and not output:
    raise types.UserError(
      f'--mode=study needs --workdir=DIR for its runs, or --output=DIR with {name}.json, from '
      'which it makes table and figure again'
    )
  if part and not workdir:
    raise types.UserError(f'--shard={part} is a share of the runs, which need --workdir=DIR')
  runs = list(asked.runs())
  mine = study.shard(runs, part) if part else runs
  folder = run_dir.open_for_output(output or workdir)
  file = folder / f'{name}.json'
  if not workdir:
    return tell(folder / name, files.read_json(file)), True
  home = run_dir.directory(workdir)
  _check(asked)
  for one in runs:
    study_results.check_config(home / one.folder, one.config)
  with signals.stop_requested() as stopped_by:  # Also by one that comes when a run has ended.
    for number, one in enumerate(mine, 1):
      if study_results.is_done(home / one.folder, one.config):
        continue
      logging.info('run %d of %d: %s, seed %d', number, len(mine), one.variant, one.seed)
      if stopped_by() or not _train(one, home / one.folder) or stopped_by():
        return [], False
  left = [one for one in runs if not study_results.is_done(home / one.folder, one.config)]
  if left:
    which = ', '.join(f'{one.variant} with seed {one.seed}' for one in left[:4])
    logging.warning('%d of %d runs are not done yet: %s', len(left), len(runs), which)
  if len(left) == len(runs):
    return [], True
  known = files.read_json(file, may_lack=True)
  study_results.write(file, study_results.gather(asked, home, known))
  return [file, *tell(folder / name, files.read_json(file))], True


def tell(path: pathlib.Path, results: dict[str, Any]) -> list[pathlib.Path]:
  """Writes table and figure of a study beside its results, and logs the table; their paths."""
  table = studies.markdown(results)
  logging.info('%s\n%s', results['title'], table)
  target = path.with_name(f'{path.name}.md')
  with files.atomic(target) as temporary:
    temporary.write_text(f'{table}\n')
  return [target, *study_figure.draw(path, results)]


def _check(asked):
  """Refuses variants that cannot be trained, or compared, before anything is (UserError)."""
  flat = {name: flat_config.of(config) for name, config in asked.variants.items()}
  for name, config in asked.variants.items():
    try:
      experiment = experiment_lib.build(config)
    except types.UserError as error:
      raise types.UserError(f'variant {name!r}: {error}') from error
    if not experiment.evaluation.every:
      raise types.UserError(
        f'variant {name!r} has eval.every=0, so there would be no scores to compare; set its steps'
      )
  for key in _ALIKE:
    found = {name: of[key] for name, of in flat.items()}
    if len(set(map(repr, found.values()))) > 1:  # Some are lists.
      listed = ', '.join(f'{value!r} of {name}' for name, value in found.items())
      raise types.UserError(
        f'variants differ in {key}: {listed}; a study compares the same scores after the same steps'
      )


def _train(one, place):
  """Trains one run to its end, and analyses it if its config names parts.

  Returns:
    Whether no signal has ended it; True also if its numbers are not finite, which is noted.
  """
  experiment = experiment_lib.build(one.config)
  try:
    if not train.run(experiment, str(place)):
      return False
    if experiment.analysis.parts:
      analyze.run(experiment, str(place), None)
    return True
  except types.UserError as error:
    cause = error.__cause__
    if isinstance(error, checks.NotFinite):  # As finite weights may make samples that are not.
      step, because = continuing.newest_step(place), str(error)
    elif isinstance(cause, nonfinite.NonFiniteLoss | checkpoint.NotFinite):
      step, because = cause.step, cause.because
    else:
      raise
    logging.warning('%s, seed %d, diverged at step %d: %s', one.variant, one.seed, step, because)
    study_results.note_failure(place, step, because)
    return True
