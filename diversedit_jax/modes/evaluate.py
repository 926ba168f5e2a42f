"""`--mode=eval`: samples scored, each number with the protocol behind it.

  sample -> decode -> sum features -> scores

in one pass. Each batch of finished samples is also kept in a file, for an evaluation that is killed
and started again, and for the `.npz` at the end. What decides the samples is kept beside them:
samples of another protocol are never mixed in, and finished scores of another protocol are never
overwritten.
"""

from collections.abc import Iterable, Iterator, Mapping
import hashlib
import json
import pathlib
import time
from typing import Any

from absl import logging
import jax
import numpy as np

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import paths, progress, types
from diversedit_jax.data import files, order
from diversedit_jax.evaluation import card, multihost, samples, scorers
from diversedit_jax.experiment import eval_options
from diversedit_jax.modes import guiding, identity, null_label, opening, restoring, run_context
from diversedit_jax.sampling import generate, trajectory

KEY = 'eval.labels'


def run(
  experiment: experiment_lib.Experiment, workdir: str, origin: str | None
) -> list[pathlib.Path]:
  """Scores fresh samples; writes `eval/NAME.json` and, of pictures, `eval/NAME.npz`.

  Raises:
    UserError: whatever does not fit, before anything compiles; another protocol under this name.
  """
  path, weights = restoring.open_weights(experiment, workdir, origin)
  options, folder = experiment.evaluation, path / 'eval'
  name = weights.named(options.name)
  labels_N = make_labels(experiment, options.number)
  sampler = null_label.sampler_for(experiment, KEY)
  null_label.check_trained(experiment, weights.label_dropout, [sampler], KEY)
  weights = guiding.with_guide(experiment, workdir, weights, [sampler], KEY)
  scorer = opening.open_all(experiment, weights.mesh, folder / 'references')
  evaluation = Evaluation(experiment, weights, scorer, labels_N, folder, name, sampler)
  written = evaluation.run(keep_samples=options.keep_samples)
  if written:  # On the first process.
    warn(name, json.loads(evaluation.result.read_bytes())['warnings'])
  return written


class Evaluation:
  """Samples of some weights, and their scores, under one name in one folder."""

  def __init__(
    self,
    experiment: experiment_lib.Experiment,
    weights: restoring.Weights,
    scorer: scorers.Scorer,
    labels_N: np.ndarray,
    folder: pathlib.Path,
    name: str,
    sampler: trajectory.SamplerConfig | None = None,
  ):
    """Looks whether there are scores by this name already.

    Args:
      experiment: how samples are made.
      weights: whose samples.
      scorer: finishes the samples and scores them.
      labels_N: label of each sample, by its index.
      folder: where the files are.
      name: name of the files.
      sampler: sampler to use instead of the experiment's.

    Raises:
      UserError: there are scores of another protocol by this name.
    """
    self._experiment, self._weights, self._scorer = experiment, weights, scorer
    self._sampler = sampler or experiment.sampler
    self._indices_N = file_order(experiment, len(labels_N))
    self._labels_N = labels_N[self._indices_N]
    self.result, self.archive = folder / f'{name}.json', folder / f'{name}.npz'
    self._folder, self._name = folder / f'{name}.parts', name
    self._facts = label_facts(experiment, labels_N) | {'parameters': weights.fingerprint}
    facts = {**self._facts, 'weights': weights.kind}
    if trajectory.GUIDE in self._sampler.velocities:
      facts['guided_by'] = dict(weights.guided_by)
    self._identity = identity.make(experiment, self._sampler, scorer, len(labels_N), facts)
    self._finished = identity.is_of(self.result, self._identity, 'scores')

  def run(self, *, keep_samples: bool) -> list[pathlib.Path]:
    """Makes and scores the samples, and writes the files; their paths, on the first process."""
    first, are_pictures = jax.process_index() == 0, self._scorer.image_shape[-1] == 3
    if self._finished:
      logging.info('%s has the scores of this protocol already', self.result)
      if first:
        files.remove_folder(self._folder)  # The run may have been killed late.
      if keep_samples and are_pictures and not self.archive.is_file():
        logging.warning('%s was not kept; remove %s to make it', self.archive, self.result)
      return [path for path in (self.result, self.archive) if first and path.is_file()]
    parts, clock = self._open_parts(), _Stopwatch()
    made_before, started = len(parts), time.monotonic()
    try:
      with run_context.sampling(self._experiment, self._weights.mesh):
        found = self._scorer.score(self._batches(parts, clock), self._labels_N)
    except KeyboardInterrupt:
      kept = f'{self._name}: finished samples are kept; the same command goes on'
      raise KeyboardInterrupt(kept) from None
    found['warnings'] = [*found['warnings'], *self._weights.remarks]
    facts = run_context.protocol(
      self._experiment,
      self._weights,
      self._labels_N,
      sampler=self._sampler,
      seconds=clock.seconds,
      samples_made_before=made_before,
      seconds_of_scoring=time.monotonic() - started - clock.seconds,
      **self._facts,
      **self._scorer.facts(),
      **self._scorer.compared(),
    )
    logging.info('%s: %s', self._name, in_words(found['scores']))
    if not first:
      return []
    written = [self.result]
    if keep_samples and are_pictures:
      shape = (len(self._labels_N), *self._scorer.image_shape)
      samples.write_npz(self.archive, shape, parts.batches(), self._labels_N)
      written.append(self.archive)
    card.write_json(self.result, {**found, 'protocol': facts, 'identity': self._identity})
    parts.remove()
    return written

  def _open_parts(self) -> samples.Parts:
    """The samples that are there; refuses those of another protocol. All processes see the same."""
    folder = self._folder
    start = multihost.from_first(len(samples.Parts(folder)))
    known = folder / 'identity.json'
    # Samples were once kept by index, and are now kept in the order of the file.
    facts = {**self._identity['samples'], 'order': 'file'}
    if not identity.is_of(known, facts, 'samples'):
      if start:
        raise types.UserError(
          f'{folder} holds {start} samples but no {known.name} that says whose: remove the folder, '
          'or choose another eval.name'
        )
      if jax.process_index() == 0:
        card.write_json(known, facts)
    multihost.wait_for(lambda: known.is_file() and len(samples.Parts(folder)) == start, folder)
    if start:
      logging.info('%s: %d of %d samples are there', self._name, start, len(self._labels_N))
    # The first process may be keeping fresh samples already, while others open what is there.
    return samples.Parts(folder, at_most=start)

  def _batches(self, parts: samples.Parts, clock: '_Stopwatch') -> Iterator[np.ndarray]:
    """Finished samples in the order of the file: those that are there, then fresh ones."""
    done, count = len(parts), len(self._labels_N)
    kept, seen = progress.Progress(f'{self._name}: kept samples', done, 'images'), 0
    for finished in parts.batches():
      yield finished
      seen += len(finished)
      kept.at(seen)
    generator = run_context.make_generator(
      self._experiment,
      self._weights.graphdef,
      self._weights.mesh,
      count,
      self._sampler,
      self._weights.guide,
    )
    meter = progress.Progress(f'{self._name}: sampling', count, 'images', done=done)
    for start in range(done, count, generator.batch_size):
      rows = slice(start, start + generator.batch_size)
      with clock:
        made = generator(self._weights.params, self._labels_N[rows], self._indices_N[rows])
        finished = self._scorer.finish(made)
        if jax.process_index() == 0:
          parts.append(finished)
      meter.at(start + len(finished))
      yield finished


class _Stopwatch:
  """Adds up the seconds that are spent in its `with` blocks."""

  def __init__(self):
    self.seconds = 0.0

  def __enter__(self):
    self._started = time.monotonic()

  def __exit__(self, *_):
    self.seconds += time.monotonic() - self._started


def file_order(experiment: experiment_lib.Experiment, count: int) -> np.ndarray:
  """Indices of samples in the order in which they are made, scored and written, [count].

  The parts of the Inception Score are cut from this order, so it must not be that of the labels.
  """
  return order.permutation(experiment.sample.seed, 0, count)


def make_labels(experiment: experiment_lib.Experiment, number: int) -> np.ndarray:
  """Labels of an evaluation, int32 [number], by `eval.labels`.

  Raises:
    UserError: a file that cannot be read, or holds other than one class for each sample.
  """
  policy, classes = experiment.evaluation.labels, experiment.architecture.num_classes
  if not policy.startswith(eval_options.LABELS_FILE):
    return generate.make_labels(policy, np.arange(number), classes, experiment.sample.seed, key=KEY)
  path = paths.path(policy.removeprefix(eval_options.LABELS_FILE))
  try:
    with path.open('rb') as file:
      labels = np.lib.format.read_array(file, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise types.UserError(f'eval.labels={policy!r} cannot be read as .npy: {error}') from error
  if labels.ndim != 1 or labels.dtype.kind not in 'iu' or len(labels) < number:
    raise types.UserError(
      f'eval.labels={policy!r} holds {labels.dtype} {labels.shape}, expected at least {number} '
      'integers'
    )
  labels = labels[:number]
  if labels.min() < 0 or labels.max() >= max(classes, 1):
    raise types.UserError(
      f'eval.labels={policy!r} holds labels from {labels.min()} to {labels.max()}, expected '
      f'0 to {max(classes, 1) - 1}'
    )
  return labels.astype(np.int32)


def label_facts(experiment: experiment_lib.Experiment, labels_N: np.ndarray) -> dict[str, Any]:
  """Facts of labels for a protocol card; a file is named without its folder."""
  classes = experiment.architecture.num_classes
  policy = generate.canonical(experiment.evaluation.labels, classes)
  if policy.startswith(eval_options.LABELS_FILE):
    policy = eval_options.LABELS_FILE + pathlib.PurePath(policy).name
  return {'label_policy': policy, 'labels_sha256': hashlib.sha256(labels_N.tobytes()).hexdigest()}


def in_words(scores: Mapping[str, float]) -> str:
  """Scores for a line of the log."""
  return ', '.join(f'{name} {value:.4g}' for name, value in scores.items())


def warn(name: str, warnings: Iterable[str]) -> None:
  """Logs what makes scores doubtful."""
  for line in warnings:
    logging.warning('%s: %s', name, line)
