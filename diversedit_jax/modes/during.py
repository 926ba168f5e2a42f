"""Evaluation while training: a few samples of the averaged weights, scored at intervals.

For watching a run, not for quoting: few samples make every Fréchet distance too large. The numbers
are kept apart from final ones, in `eval/during/`, each with its own protocol, and the averaged
weights of the best so far beside them.
"""

import json
import pathlib
import time

from absl import logging
import jax
import numpy as np

from diversedit_jax import build, checkpoint, sharding, trees, types
from diversedit_jax.build import scoring as options_lib
from diversedit_jax.data import files
from diversedit_jax.evaluation import card
from diversedit_jax.modes import decoding, evaluation, scoring, shared
from diversedit_jax.training import loop, state, writers
from diversedit_jax.weights import array_files

FOLDER = pathlib.Path('eval') / 'during'


def open_networks(experiment: build.Experiment, decoder: decoding.Decoder | None) -> dict:
  """Of `scoring`, before anything is written; none if `eval.every` is 0 (UserError)."""
  return scoring.open_networks(experiment, decoder) if experiment.evaluation.every else {}


def open_scorer(
  experiment: build.Experiment, mesh: jax.sharding.Mesh, path: pathlib.Path,
  decoder: decoding.Decoder | None, networks: dict,
) -> scoring.Scorer | None:  # fmt: skip
  """What scores the samples, opened before anything compiles; None if `eval.every` is 0.

  Raises:
    UserError: see `scoring.open_scorer`.
  """
  if not experiment.evaluation.every:
    return None
  return scoring.open_scorer(experiment, mesh, path / 'eval' / 'references', decoder, networks)


def hook(
  experiment: build.Experiment, trainable: state.Trainable, scorer: scoring.Scorer | None,
  path: pathlib.Path, writer: writers.Writer,
) -> loop.Hook:  # fmt: skip
  """Scores at intervals; always of the same labels and noise, so that scores are comparable."""
  options = experiment.evaluation
  if scorer is None:
    return loop.Hook(every=0, run=lambda step, state, batch: None)
  labels = evaluation.make_labels(experiment, options.every_number)
  generator = shared.make_generator(
    experiment, trainable.graphdef, trainable.mesh, options.every_number
  )

  def run(step, state, batch):
    del batch
    started = time.monotonic()
    with shared.sampling(experiment, trainable.mesh):
      finished = scorer.finish(generator(state.ema, labels))
    seconds = time.monotonic() - started
    shuffled = np.random.default_rng(experiment.sample.seed).permutation(len(labels))
    found = scorer.score(lambda: [finished[shuffled]], labels[shuffled])
    weights = shared.Weights(
      trainable.graphdef, state.ema, trainable.mesh, step, f'checkpoints/{step}'
    )
    facts = shared.protocol(
      experiment, weights, labels, label_policy=options.labels, seconds=seconds,
      weights='ema', **scorer.facts(), **scorer.compared(),
    )  # fmt: skip
    _check_best(options.best, found['scores'])
    writer.row(step, {f'eval/{name}': value for name, value in found['scores'].items()})
    logging.info(
      'step %d, %d samples: %s', step, len(labels),
      ', '.join(f'{name} {value:.4g}' for name, value in found['scores'].items()),
    )  # fmt: skip
    folder = path / FOLDER
    if jax.process_index() == 0:
      card.write_json(folder / f'step-{step:08d}.json', {**found, 'protocol': facts})
    if _is_best(folder, options.best, found['scores'][options.best], step):
      _keep(folder, options.best, found['scores'], step, state.ema, trainable.mesh)

  return loop.Hook(every=options.every, run=run)


def _check_best(best, found):
  if best not in found:
    raise types.UserError(
      f'eval.best={best!r} is not among the scores of this reference: {", ".join(found)}'
    )


def _is_best(folder, name, value, step):
  """Whether no earlier evaluation was better; decided by the first process for all."""
  better = True
  if jax.process_index() == 0 and (folder / 'best.json').is_file():
    known = json.loads((folder / 'best.json').read_text())
    # An evaluation of the same step is this one, before the run was interrupted.
    if known['score'] == name and known['step'] != step:
      better = value != known['value'] and options_lib.BEST[name](value, known['value']) == value
  return checkpoint.all_processes(better)


def _keep(folder, name, scores, step, params, mesh):
  """The averaged weights, as a file that --checkpoint takes, and which step they are of."""
  whole = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))  # Parts lie elsewhere.
  flat = {name: np.asarray(whole(x)) for name, x in trees.named_leaves(params).items()}
  if jax.process_index() == 0:
    with files.atomic(folder / 'best.safetensors') as temporary:
      array_files.save(temporary, flat)
    card.write_json(
      folder / 'best.json',
      {'score': name, 'value': scores[name], 'step': step, 'weights': 'best.safetensors', **scores},
    )
