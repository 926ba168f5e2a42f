"""Evaluation while training: a few samples of `sample.weights`, scored at intervals.

For watching a run, not for quoting: few samples make every Fréchet distance too large. The numbers
are kept apart from final ones, in `eval/during/`, each with its own protocol, and the weights of
the best so far beside them.
"""

import pathlib
import time

from absl import logging
import jax
import numpy as np

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import meeting, sharding, trees
from diversedit_jax.data import files
from diversedit_jax.evaluation import card, feature_network, scorers
from diversedit_jax.evaluation import decoder as decoder_lib
from diversedit_jax.experiment import eval_options
from diversedit_jax.modes import evaluate, identity, null_label, opening, restoring, run_context
from diversedit_jax.training import average, loop, state, writers
from diversedit_jax.weights import array_files

FOLDER = pathlib.Path('eval') / 'during'


def open_networks(
  experiment: experiment_lib.Experiment,
  decoder: decoder_lib.Decoder | None,
  label_dropout: float | None,
) -> dict[str, feature_network.FeatureNetwork]:
  """The networks of `opening.open_networks`; {} if `eval.every` is 0.

  Labels are checked too, so that a mistake ends the run before anything is written.

  Raises:
    UserError: as `opening.open_networks` and `evaluate.make_labels`.
  """
  if not experiment.evaluation.every:
    return {}
  evaluate.make_labels(experiment, experiment.evaluation.every_number)
  sampler = null_label.sampler_for(experiment, evaluate.KEY)
  null_label.check_trained(experiment, label_dropout, [sampler], evaluate.KEY)
  return opening.open_networks(experiment, decoder)


def open_scorer(
  experiment: experiment_lib.Experiment,
  mesh: jax.sharding.Mesh,
  path: pathlib.Path,
  decoder: decoder_lib.Decoder | None,
  networks: dict[str, feature_network.FeatureNetwork],
) -> scorers.Scorer | None:
  """The scorer of samples, opened before anything compiles; None if `eval.every` is 0.

  Raises:
    UserError: as `opening.open_scorer`; or `eval.best` is a score that it will not give.
  """
  if not experiment.evaluation.every:
    return None
  folder = path / 'eval' / 'references'
  scorer = opening.open_scorer(experiment, mesh, folder, decoder, networks)
  opening.check_score('eval.best', experiment.evaluation.best, scorer)
  return scorer


def hook(
  experiment: experiment_lib.Experiment,
  trainable: state.Trainable,
  scorer: scorers.Scorer | None,
  path: pathlib.Path,
  writer: writers.Writer,
) -> loop.Hook:
  """Scores at intervals; always with the same labels and noise, so that scores are comparable."""
  options = experiment.evaluation
  if scorer is None:
    return loop.Hook(every=0, run=lambda step, state, batch: None, made=lambda step: True)
  labels_N = evaluate.make_labels(experiment, options.every_number)
  sampler = null_label.sampler_for(experiment, evaluate.KEY)
  generator = run_context.make_generator(
    experiment, trainable.graphdef, trainable.mesh, options.every_number, sampler
  )
  facts, wanted = evaluate.label_facts(experiment, labels_N), restoring.kept(experiment)
  known = identity.make(
    experiment, sampler, scorer, options.every_number, {**facts, 'weights': wanted}
  )
  indices_N = evaluate.file_order(experiment, len(labels_N))
  labels_N = labels_N[indices_N]
  told: set[str] = set()
  folder = path / FOLDER
  file = lambda step: folder / f'step-{step:08d}.json'

  def run(step, state, batch):
    del batch
    started = time.monotonic()
    with run_context.sampling(experiment, trainable.mesh):
      params = state.weights(wanted)
      finished = scorer.finish(generator(params, labels_N, indices_N))
      seconds = time.monotonic() - started
      found = scorer.score([finished], labels_N)
    weights = restoring.Weights(
      graphdef=trainable.graphdef,
      params=params,
      mesh=trainable.mesh,
      step=step,
      origin=f'checkpoints/{step}',
      kind=wanted,
      attention=experiment.execution.attention,
    )
    protocol = run_context.protocol(
      experiment,
      weights,
      labels_N,
      sampler=sampler,
      seconds=seconds,
      **facts,
      **scorer.facts(),
      **scorer.compared(),
    )
    if remark := _remark(experiment, wanted, step):
      found['warnings'] = [*found['warnings'], remark]
    writer.row(step, {f'eval/{name}': value for name, value in found['scores'].items()})
    logging.info('step %d, %d samples: %s', step, len(labels_N), evaluate.in_words(found['scores']))
    evaluate.warn(f'step {step}', [line for line in found['warnings'] if line not in told])
    told.update(found['warnings'])
    if jax.process_index() == 0:
      card.write_json(file(step), {**found, 'protocol': protocol})
    best = {'score': options.best, 'value': found['scores'][options.best], 'step': step}
    if _is_best(folder, best, known):
      best |= {name: found[name] for name in ('scores', 'warnings')} | {'identity': known}
      _keep(folder, best, params, trainable.mesh)

  return loop.Hook(every=options.every, run=run, made=lambda step: file(step).exists())


def _remark(experiment, wanted, step):
  """What is doubtful about an average after so many steps."""
  train = experiment.train
  averages = {'ema': train.main(), **{average.item(str(one)): one for one in train.tracked()}}
  if wanted not in averages:
    return ''
  return average.remark(averages[wanted], train.ema_warmup, step)


def _is_best(folder, found, of):
  """Whether no earlier evaluation with the identity `of` was better; the first process decides."""
  better, name, value = True, found['score'], found['value']
  if jax.process_index() == 0 and (folder / 'best.json').is_file():
    known = files.read_json(folder / 'best.json')
    if known['score'] != name or identity.differences(known['identity'], of):
      logging.info('the best so far was of another score or protocol; it is sought anew')
    elif known['step'] != found['step']:  # Else it is this one, before the run was interrupted.
      better = value != known['value'] and eval_options.BEST[name](value, known['value']) == value
  return meeting.all_agree(better)


def _keep(folder, best, params, mesh):
  """Writes the weights as a file that --checkpoint takes, and which step they are from."""
  whole = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))  # Parts lie elsewhere.
  flat = {name: np.asarray(whole(x)) for name, x in trees.named_leaves(params).items()}
  if jax.process_index() == 0:
    with files.atomic(folder / 'best.safetensors') as temporary:
      array_files.save(temporary, flat)
    card.write_json(folder / 'best.json', {'weights': 'best.safetensors', **best})
