"""`--mode=classifier`: trains a small classifier of the data, to score samples by."""

import jax

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import paths, types
from diversedit_jax.data import files
from diversedit_jax.evaluation import classifier


def run(experiment: experiment_lib.Experiment, output: str | None) -> str:
  """Trains on `data.source` and writes the file that `eval.classifier` takes; what it is worth.

  Raises:
    UserError: no file is named, it is there or cannot be written; several processes; data without
      classes or pictures.
  """
  if not output or not output.endswith('.safetensors'):
    raise types.UserError('--mode=classifier needs --output=FILE.safetensors, the file to write')
  path = paths.path(output)
  if path.exists():
    raise types.UserError(f'{path} is there already; remove it, or choose another --output')
  if jax.process_count() > 1:
    raise types.UserError('--mode=classifier is for one process; start it without --distributed')
  files.make_writable(path.parent, f'--output={path}')
  train = experiment.data.open(pixels=True)
  test = experiment.data.open_test(train, pixels=True)
  fitted = classifier.fit(
    train, test, epochs=experiment.evaluation.classifier_epochs, seed=experiment.seed
  )
  classifier.save(path, fitted)
  facts = fitted.facts
  return (
    f'{path}\n{facts["test_accuracy"]:.1%} of {len(test):,} held-out pictures are recognised; '
    f'Fréchet distance of real training pictures to them: {facts["fid_floor"]:.4g}'
  )
