"""Weights to look at: of the workdir's run, of another checkpoint, or of a file."""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import functools
import pathlib
from typing import Any

from absl import logging
from flax import nnx
import jax

from diversedit_jax import checkpoint, trees, types
from diversedit_jax import experiment as experiment_lib
from diversedit_jax.experiment import flat_config, kernels, learned, run_dir
from diversedit_jax.modes import averages, null_label, origins, run_context
from diversedit_jax.sampling import generate
from diversedit_jax.training import average, initial
from diversedit_jax.weights import forms, misfits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
  """Parameters to look at, and where they come from.

  step: training steps behind them; None for a file.
  origin: checkpoint or file, without folders; of a file of the hub its place.
  kind: what cards call them, see `card.protocol_card`.
  attention: kernel that the model runs with.
  label_dropout: share of labels that was dropped in their training, or in that of the weights that
    it started from; for a file that of the config; None if it is not known.
  label_names: names of the classes that they were trained on; () if they are not known.
  remarks: sentences that make their samples doubtful.
  made_of: of an average that was not tracked, see `averages.Choice.facts`.
  guide, guided_by: the network of `sampler.autoguidance`, and what cards say of it; see `guiding`.
  """

  graphdef: nnx.GraphDef
  params: Mapping[str, Any]
  mesh: jax.sharding.Mesh
  step: int | None
  origin: str
  kind: str
  attention: str
  label_dropout: float | None = None
  label_names: tuple[str, ...] = ()
  remarks: tuple[str, ...] = ()
  made_of: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  guide: generate.Guide | None = None
  guided_by: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def label(self) -> str:
    """The step, or the file's name, for names of results."""
    file = pathlib.PurePath(self.origin.partition('#')[0])
    return file.name if self.step is None else str(self.step)

  def named(self, pattern: str) -> str:
    """The name of results by `eval.name` or `sample.name`."""
    return pattern.replace('{step}', self.label).replace('{weights}', self.kind)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Digest of the parameters, see `trees.fingerprint`; made once for all settings of a sweep."""
    return trees.fingerprint(self.params, forms.before)


def open_weights(
  experiment: experiment_lib.Experiment, workdir: str, origin: str | None
) -> tuple[pathlib.Path, Weights]:
  """The directory for results, and the weights to look at.

  Args:
    experiment: whose model the weights must fit.
    workdir: directory of the run, or for results if there is an origin.
    origin: a folder checkpoints/STEP, or a file of weights, here or on the hub; None takes the
      run's newest checkpoint.

  Raises:
    UserError: no such weights, weights of another model, or `sample.weights` that a file is not of.
  """
  space = run_context.space_facts(experiment.source)
  if origin is None:
    path = run_dir.open_for_reading(workdir, experiment.config, space)
    run_dir.check_results(path)
    return path, _of_checkpoint(experiment, path / 'checkpoints', None, path)
  found = origins.find(origin)
  path = run_dir.open_for_output(workdir)
  if found.step is None:
    return path, _of_file(experiment, found)
  if found.run is not None:  # Refuses another model, and one of other latents.
    run_dir.open_for_reading(str(found.run), experiment.config, space)
  return path, _of_checkpoint(experiment, found.path.parent, found.step, found.run)


def check_weights(workdir: str, origin: str | None, names: Sequence[str], key: str) -> None:
  """Refuses names of weights that are not there, before any is read.

  Args:
    workdir, origin: as of `open_weights`. names: each as in `sample.weights`.
    key: of which they are the values.

  Raises:
    UserError: a checkpoint has no such weights, and they cannot be made; or it is a file.
  """
  found = origins.find(run_dir.newest_checkpoint(workdir) if origin is None else origin)
  if found.step is None:
    raise types.UserError(
      f'{key} chooses among the weights of a checkpoint, but {found.name} is a file, which holds '
      'one set'
    )
  for name in names:
    found.choice(name, key)


def _of_checkpoint(experiment, folder, number, run):
  """Weights of a step in a folder of checkpoints, None for the newest; of a run if it is known."""
  if not folder.is_dir():
    raise types.UserError(f'no checkpoint in {folder}; train first')
  names = tuple(experiment.source.label_names)
  mesh = run_context.make_mesh(experiment)
  known = {} if run is None else kernels.read(run)
  experiment = run_context.with_attention(experiment, known)
  trainable = run_context.make_trainable(experiment, mesh)
  chosen, step, params = _restored(experiment, trainable, folder, number, run)
  logging.info('%s weights of step %d', chosen.kind, step)
  weights = Weights(
    graphdef=trainable.graphdef,
    params=params,
    mesh=mesh,
    step=step,
    origin=f'checkpoints/{step}',
    kind=chosen.kind,
    attention=experiment.execution.attention,
    label_dropout=_by_config(experiment),
    label_names=names,
    made_of=chosen.facts,
  )
  if run is None:
    return weights
  return dataclasses.replace(
    weights,
    label_dropout=null_label.dropped_by(run),
    label_names=learned.label_names(run, experiment.source.digest, names),
    remarks=_remarks(run, folder / str(step), chosen.kind),
  )


def _restored(experiment, trainable, folder, number, run):
  """What `sample.weights` chose, the step, and the parameters; see `_of_checkpoint`."""
  step = max(checkpoint.steps(folder), default=0) if number is None else number
  chosen = averages.find(folder / str(step), experiment.sample.weights, origins.main_decay(run))
  items = {item for _, item, _ in chosen.parts}
  with contextlib.closing(
    checkpoint.Checkpoints(str(folder), more=items - {*checkpoint.ITEMS}, read_only=True)
  ) as checkpoints:
    if chosen.stored:  # Where the newest cannot be read, the one before it can.
      (item,) = items
      step, found, _ = checkpoints.restore(trainable.targets(item), number)
      return chosen, step, found[item]

    def read(step, items):
      return checkpoints.restore(trainable.targets(*items), step)[1]

    return chosen, step, averages.total(chosen, read)


def kept(experiment: experiment_lib.Experiment) -> str:
  """The item of the state that `sample.weights` names while training.

  Raises:
    UserError: an average that training does not keep.
  """
  weights, train = experiment.sample.weights, experiment.train
  wanted = average.chosen(weights, 'sample.weights')
  if wanted == train.main():
    return 'ema'
  if isinstance(wanted, str):
    return wanted
  if wanted not in train.tracked():
    raise types.UserError(
      f'sample.weights={weights} is not kept while training, whose previews and scores are of it: '
      f'give --config.train.averages={wanted} too'
    )
  return average.item(str(wanted))


def _of_file(experiment, found):
  """Weights of a file that `convert` or `--mode=export` wrote."""
  kind, step, dropout = 'file', None, _by_config(experiment)
  names = tuple(experiment.source.label_names)
  if found.about is not None:
    found.about.check(experiment.config, run_context.space_facts(experiment.source))
    kind, step = (found.about.weights[fact] for fact in ('kind', 'step'))
    dropout, names = found.about.label_dropout, tuple(found.about.data['label_names'])
  asked, held = experiment.sample.weights, kind if kind != 'file' else 'ema'
  if asked != held.partition('@')[0] and average.chosen(asked, '') != average.chosen(held, ''):
    raise types.UserError(
      f'sample.weights={asked} chooses among those of a checkpoint, but {found.name} is '
      f'a file, which holds one set: give sample.weights={held}'
    )
  mesh = run_context.make_mesh(experiment)
  known = {} if found.about is None else found.about.weights.get('attention', {})
  experiment = run_context.with_attention(experiment, known)
  trainable = run_context.make_trainable(experiment, mesh, heads=False)
  flat, wanted = found.arrays(), trees.named_leaves(trainable.params)
  if problems := faults(flat, wanted):
    raise types.UserError(f'{found.path} does not fit the config: {"; ".join(problems)}')
  leaves = [flat[name].astype(x.dtype) for name, x in wanted.items()]
  params = jax.tree.unflatten(jax.tree.structure(trainable.params), leaves)
  return Weights(
    graphdef=trainable.graphdef,
    params=jax.tree.map(jax.device_put, params, trainable.shardings.params),
    mesh=mesh,
    step=step,
    origin=found.name,
    kind=kind,
    attention=experiment.execution.attention,
    # A row of zeros stands for the null label of a model that never learned one.
    label_dropout=dropout if flat[initial.TABLE][-1].any() else 0.0,
    label_names=names,
  )


def _by_config(experiment):
  """Share of labels that weights without a run were trained without, as far as the config says."""
  return experiment.train.label_dropout or (None if experiment.init_from else 0.0)


def _remarks(run, folder, kind):
  """What is doubtful about weights of a checkpoint of the run in a directory."""
  stored, of = flat_config.stored(run), average.chosen(kind, 'weights')
  if of == 'params':
    return ()
  began = 0
  if of == 'ema':
    of = average.Decay(stored['train.ema_decay'])
  else:
    began = average.beginnings(checkpoint.read_meta(folder)).get(str(of), 0)
  remark = average.remark(of, stored['train.ema_warmup'], int(folder.name), began)
  return (remark,) if remark else ()


def faults(flat, wanted, *, finite=False):
  """How arrays by name do not fit the leaves of a model; heads are left out: they only train it."""
  shapes = {name: x.shape for name, x in wanted.items()}
  is_head = lambda name: name.startswith('heads/')
  return misfits.find(flat, shapes, unused=is_head, finite=finite)
