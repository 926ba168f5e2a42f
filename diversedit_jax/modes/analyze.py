"""`--mode=analyze`: what the blocks hold, by parts (docs/analysis.md)."""

import functools
import pathlib

from absl import logging
import jax

from diversedit_jax import checkpoint, rng, sharding
from diversedit_jax import experiment as experiment_lib
from diversedit_jax.analysis import output, registry
from diversedit_jax.analysis import scope as scope_lib
from diversedit_jax.evaluation import card
from diversedit_jax.experiment import run_dir
from diversedit_jax.methods import registry as methods
from diversedit_jax.modes import origins, others, restoring


def run(
  experiment: experiment_lib.Experiment, workdir: str, origin: str | None
) -> list[pathlib.Path]:
  """Writes figures, arrays and analysis.json of the parts that `analysis.parts` names.

  Every process computes; the first one writes.

  Raises:
    UserError: a part that the run does not allow; see `restoring.open_weights`.
  """
  options = experiment.analysis
  path, weights = restoring.open_weights(experiment, workdir, origin)
  folder = path / 'analysis'
  made = _scope(experiment, weights, workdir, origin)
  names, left_out = registry.chosen(options.parts, made)
  for name, why in left_out.items():
    logging.info('left out: %s %s', name, why)
  facts, written, sheet = _protocol(experiment, weights, made), [], []
  for i, name in enumerate(names, 1):
    logging.info('part %d of %d: %s', i, len(names), name)
    found = registry.PARTS[name].run(made)
    sheet += found.sheet
    if jax.process_index() == 0:
      # By default the sheet shows what the other figures would.
      only = '' if options.parts else 'cka'
      written += output.write(folder, name, found, facts, title=_title(facts), only=only)
  if jax.process_index() == 0 and set(registry.defaults()) <= set(names):
    title = f'{_title(facts)}, {facts["examples"]} examples, view {facts["view"]}'
    written += output.write_sheet(folder, sheet, title)
  return [*written, folder / output.FILE] if written else []


def _scope(experiment, weights, workdir, origin):
  """What the parts look at."""
  options = experiment.analysis
  wanted = {*registry.defaults()} if not options.parts else {*options.parts}
  other = _other_weights(experiment, workdir) if wanted & {'compare', registry.ALL} else None
  encoded = bool(wanted & {'cknna', registry.ALL})
  of_methods = [experiment.method] + ([other[0].method] if other else [])
  pixels = encoded or any(methods.needs(method, 'needs_pixels') for method in of_methods)
  pixels = pixels or experiment.source.tokenizer is not None
  training = experiment.source
  if encoded and not methods.needs(experiment.method, 'needs_pixels'):
    training = experiment.rae.encoded(experiment.data.open(pixels=True))
  return scope_lib.Scope(
    config=options,
    subject=_subject(experiment, weights, 'this run' if other else weights.origin),
    held_out=experiment.rae.encoded(experiment.data.open_test(training, pixels=pixels)),
    training=training,
    objective=experiment.objective,
    key=rng.stream(jax.random.key(experiment.seed), 'analysis'),
    step=weights.step or 0,
    batch_size=experiment.train.batch_size // experiment.train.accumulate,
    kept=_kept(experiment, workdir, origin),
    other=_subject(*other) if other else None,
  )


def _subject(experiment, weights, name):
  objective = experiment.objective.flow_only()
  return scope_lib.Subject(
    name=name,
    graphdef=weights.graphdef,
    params=weights.params,
    objective=objective,
    frozen=jax.device_put(objective.frozen(), sharding.replicated(weights.mesh)),
    mesh=weights.mesh,
    architecture=experiment.architecture,
  )


def _kept(experiment, workdir, origin):
  """Parameters of the run's checkpoints by step, read when called."""
  if origin is None:
    folder = run_dir.open_recorded(workdir) / 'checkpoints'
  else:
    found = origins.find(origin)
    if found.step is None:
      return {}
    folder = found.path.parent

  def read(step):
    return restoring.open_weights(experiment, workdir, f'{folder}/{step}')[1].params

  return {step: functools.partial(read, step) for step in checkpoint.steps(folder)}


def _other_weights(experiment, workdir):
  """The experiment, weights and name of `analysis.against`, or None."""
  against = experiment.analysis.against
  if not against:
    return None
  kept = ('data', 'mesh', 'analysis', 'sample')
  other, origin, found = others.find(experiment, 'analysis.against', against, kept)
  _, loaded = restoring.open_weights(other, workdir, origin)
  return other, loaded, others.name(found)


def _protocol(experiment, weights, made):
  """What must be known to read the numbers of every part."""
  options = experiment.analysis
  facts = {
    'method': experiment.method,
    'weights': weights.kind,
    'step': weights.step,
    'checkpoint': weights.origin,
    'depth': experiment.architecture.depth,
    'width': experiment.architecture.width,
    'data': made.held_out.name,
    'examples': len(made.indices),
    'labels': options.labels,
    'times': list(options.times),
    'view': options.view,
    'kernel': options.kernel,
    'estimator': options.estimator,
    'bandwidth': options.bandwidth,
    'degree': options.degree,
    'batch_size': options.batch_size,
    'seed': experiment.seed,
    'device': card.devices(),
    'versions': card.versions(),
  }
  return facts | ({'average': dict(weights.made_of)} if weights.made_of else {})


def _title(facts):
  at = facts['checkpoint'] if facts['step'] is None else f'step {facts["step"]:,}'
  return f'{facts["method"]}, {at} ({facts["weights"]}), {facts["data"]}'
