"""`--mode=eval`, `sweep` and `stats`: samples scored, each number with the protocol behind it.

Samples are made batch by batch, each kept as soon as it is there, so that an evaluation that was
killed goes on where it was. What decides the samples is kept beside them: those of another protocol
are never mixed, and finished scores of another protocol are never overwritten.
"""

from collections.abc import Iterable, Mapping
import hashlib
import json
import pathlib
import shutil
import time
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import types
from diversedit_jax.data import order
from diversedit_jax.evaluation import card, samples
from diversedit_jax.experiment import eval_options, run_dir
from diversedit_jax.modes import multihost, run_context, scorers
from diversedit_jax.sampling import generate, trajectory

_REPORT_SECONDS = 10.0


def run(
  experiment: experiment_lib.Experiment, workdir: str, origin: str | None
) -> list[pathlib.Path]:
  """Scores fresh samples; writes `eval/NAME.json` and, of pictures, `eval/NAME.npz`.

  Raises:
    UserError: whatever does not fit, before anything compiles; another protocol under this name.
  """
  path, weights = run_context.open_weights(experiment, workdir, origin)
  options, folder = experiment.evaluation, path / 'eval'
  name = options.name.replace('{step}', weights.origin.split('/')[-1])
  made = Evaluation(experiment, weights, folder, name, number=options.number)
  written = made.run(keep_samples=options.keep_samples)
  if written:  # On the first process.
    warn(name, json.loads(made.result.read_text())['warnings'])
  return written


class Evaluation:
  """Samples of some weights, and their scores, under one name in one folder."""

  def __init__(
    self,
    experiment: experiment_lib.Experiment,
    weights: run_context.Weights,
    folder: pathlib.Path,
    name: str,
    *,
    number: int,
    sampler: trajectory.SamplerConfig | None = None,
    scorer: scorers.Scorer | None = None,
  ):
    """Opens what is needed, and refuses what does not fit.

    Args:
      experiment, weights: whose samples. folder, name: of the files. number: of samples.
      sampler: instead of the experiment's. scorer: opened before; None opens that of the config.

    Raises:
      UserError: see `scorers.open_scorer`; or files by this name of another protocol.
    """
    self._experiment, self._weights = experiment, weights
    self._sampler = sampler or experiment.sampler
    self._labels = make_labels(experiment, number)
    # Parts of the Inception Score are cut from the file's order, which must not be that of labels.
    self._shuffled = order.permutation(experiment.sample.seed, 0, number)
    self._scorer = scorer or scorers.open_all(experiment, weights.mesh, folder / 'references')
    self.result, self.archive = folder / f'{name}.json', folder / f'{name}.npz'
    self._parts, self._name = folder / f'{name}.parts', name
    self._facts = label_facts(experiment, self._labels)
    self._facts |= {'parameters': weights.fingerprint}
    self._identity = identity(
      experiment, self._sampler, self._scorer, number, {**self._facts, 'weights': weights.kind}
    )
    self.finished = _is_of(self.result, self._identity, 'scores')

  def run(self, *, keep_samples: bool) -> list[pathlib.Path]:
    """Makes what is missing, scores it and writes it; the files, on the first process."""
    first = jax.process_index() == 0
    if self.finished:
      logging.info('%s has the scores of this protocol already', self.result)
      if first:
        shutil.rmtree(self._parts, ignore_errors=True)  # Of a run killed late.
      if keep_samples and self._are_pictures and not self.archive.is_file():
        logging.warning('%s was not kept; remove %s to make it', self.archive, self.result)
      return [path for path in (self.result, self.archive) if first and path.is_file()]
    seconds, made_before = self._make()
    parts, shuffled = samples.Parts(self._parts), self._shuffled
    labels, started = self._labels[shuffled], time.monotonic()
    with run_context.sampling(self._experiment, self._weights.mesh):
      found = self._scorer.score(lambda: parts.batches(shuffled), labels)
    facts = run_context.protocol(
      self._experiment,
      self._weights,
      labels,
      sampler=self._sampler,
      seconds=seconds,
      samples_made_before=made_before,
      seconds_of_scoring=time.monotonic() - started,
      **self._facts,
      **self._scorer.facts(),
      **self._scorer.compared(),
    )
    numbers = ', '.join(f'{name} {value:.4g}' for name, value in found['scores'].items())
    logging.info('%s: %s', self._name, numbers)
    if not first:
      return []
    written = [self.result]
    if keep_samples and self._are_pictures:
      shape = (len(labels), *self._scorer.image_shape)
      samples.write_npz(self.archive, shape, parts.batches(shuffled), labels)
      written.append(self.archive)
    card.write_json(self.result, {**found, 'protocol': facts, 'identity': self._identity})
    parts.remove()
    return written

  @property
  def _are_pictures(self) -> bool:
    """Whether ADM's evaluator could read the samples."""
    return self._scorer.image_shape[-1] == 3

  def _make(self) -> tuple[float, int]:
    """Makes the samples that are missing; the seconds that it took, and how many were there."""
    first, known = jax.process_index() == 0, self._parts / 'identity.json'
    parts, labels = samples.Parts(self._parts), self._labels
    start, count = _of_first(len(parts)), len(labels)
    if not _is_of(known, self._identity['samples'], 'samples'):
      if start:
        raise types.UserError(
          f'{self._parts} holds {start} samples but no {known.name} that says whose: remove the '
          'folder, or choose another eval.name'
        )
      if first:
        card.write_json(known, self._identity['samples'])
    multihost.wait_for(known.is_file, self._parts)
    if start:
      logging.info('%s: %d of %d samples are there already', self._name, start, count)
    generator = run_context.make_generator(
      self._experiment, self._weights.graphdef, self._weights.mesh, count, self._sampler
    )
    begun, started = start, time.monotonic()
    reported = started
    while start < count:
      some = labels[start : start + generator.batch_size]
      with run_context.sampling(self._experiment, self._weights.mesh):
        made = generator(self._weights.params, some, first_index=start)
        finished = self._scorer.finish(made)
      if first:
        parts.append(finished)
      start, now = start + len(some), time.monotonic()
      if now - reported > _REPORT_SECONDS or start == count:
        rate, reported = (start - begun) / (now - started), now
        logging.info(
          '%s: sampled %d/%d, %.3g images/s, ETA %.0f s',
          self._name,
          start,
          count,
          rate,
          (count - start) / rate,
        )
    multihost.wait_for(lambda: len(samples.Parts(self._parts)) == count, self._parts)
    return time.monotonic() - started, begun


def make_labels(experiment: experiment_lib.Experiment, number: int) -> np.ndarray:
  """Labels of an evaluation, int32 [number], by `eval.labels`.

  Raises:
    UserError: a file that cannot be read, or holds other than one class for each sample.
  """
  policy, classes = experiment.evaluation.labels, experiment.architecture.num_classes
  if not policy.startswith(eval_options.LABELS_FILE):
    return generate.make_labels(
      policy, np.arange(number), classes, experiment.sample.seed, key='eval.labels'
    )
  try:
    with open(policy.removeprefix(eval_options.LABELS_FILE), 'rb') as file:
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


def label_facts(experiment: experiment_lib.Experiment, labels: np.ndarray) -> dict[str, Any]:
  """Of a protocol card: which labels; a file by its name and contents, not by its folder."""
  policy = experiment.evaluation.labels
  if policy.startswith(eval_options.LABELS_FILE):
    policy = eval_options.LABELS_FILE + pathlib.PurePath(policy).name
  return {'label_policy': policy, 'labels_sha256': hashlib.sha256(labels.tobytes()).hexdigest()}


def identity(
  experiment: experiment_lib.Experiment,
  sampler: trajectory.SamplerConfig,
  scorer: scorers.Scorer,
  number: int,
  facts: Mapping[str, Any],
) -> dict[str, Any]:
  """What decides samples and their scores; `facts` are those of labels and weights."""
  config = run_dir.flatten(experiment.config.to_dict())
  return plain(
    {
      'samples': {
        **run_context.sampler_facts(experiment, sampler),
        **scorer.facts(),
        **facts,
        'number': number,
        'class_token_scale': sampler.class_token_scale,
        'network': {k: v for k, v in config.items() if run_dir.decides_network(k)},
      },
      'compared': scorer.compared(),
    }
  )


def warn(name: str, warnings: Iterable[str]) -> None:
  """Logs what makes scores doubtful."""
  for line in warnings:
    logging.warning('%s: %s', name, line)


def plain(facts: Any) -> Any:
  """Facts as they come back from a JSON file."""
  return json.loads(json.dumps(facts))


def _is_of(path: pathlib.Path, identity: Mapping[str, Any], what: str) -> bool:
  """Whether a file is there and of this identity.

  Raises:
    UserError: it is of another one; what differs is listed. Or not all processes see the same.
  """
  there = path.is_file()
  fault = _fault(path, identity, what) if there else ''
  # The first process writes the file later, so all look before any goes on, and all refuse or none.
  multihost.check_same(2 if fault else int(there), path.parent)
  if fault:
    raise types.UserError(fault)
  return there


def _fault(path, identity, what):
  """In words, why a file is not of an identity; '' if it is."""
  try:
    known = json.loads(path.read_text())
  except ValueError as error:
    return f'{path} is damaged: {error}'
  known = known.get('identity', known)
  changed = run_dir.differences(run_dir.flatten(known), run_dir.flatten(identity))
  if not changed:
    return ''
  listed = ', '.join(f'{k}: there {a!r}, now {b!r}' for k, (a, b) in list(changed.items())[:8])
  held = path.parent if what == 'samples' else path
  return f'{held} has {what} of another protocol: {listed}. Choose another eval.name, or remove it'


def _of_first(number: int) -> int:
  """The first process's number, on every process."""
  return int(multihost_utils.broadcast_one_to_all(np.int32(number)))
