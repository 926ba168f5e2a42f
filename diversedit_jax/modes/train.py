"""`--mode=train`: trains, or continues the run that the workdir holds."""

from collections.abc import Sequence
import contextlib

from absl import logging
import jax

from diversedit_jax import checkpoint, paths, rng, sharding, together, trees, types
from diversedit_jax import experiment as experiment_lib
from diversedit_jax.data import bad_records, files, pipeline
from diversedit_jax.evaluation import card
from diversedit_jax.experiment import flat_config, kernels, run_dir
from diversedit_jax.modes import (
  guiding,
  hooks,
  null_label,
  online_eval,
  opening,
  restoring,
  run_context,
  start,
)
from diversedit_jax.training import (
  average,
  goodput,
  loop,
  nonfinite,
  optim,
  overview,
  profiling,
  spikes,
  state,
  trackers,
  writers,
)


def run(
  experiment: experiment_lib.Experiment,
  workdir: str,
  *,
  continue_with: Sequence[str] = (),
  continue_from: int | None = None,
) -> bool:
  """Trains, or continues the run that the workdir holds.

  Args:
    experiment: what to train. workdir: directory of the run.
    continue_with, continue_from: see `run_dir.open_for_training`.

  Returns:
    Whether the last step is done; a signal may have ended training before.

  Raises:
    UserError: whatever does not fit, before anything compiles; a loss that is not finite.
  """
  mesh = run_context.make_mesh(experiment)
  experiment_lib.check_devices(experiment, mesh)
  trackers.check(experiment.log.tracker)
  experiment = run_context.with_attention(
    experiment, kernels.read(run_dir.started_from(workdir)[0])
  )
  trainable = run_context.make_trainable(experiment, mesh)
  experiment, beginning, facts = start.begin(experiment, trainable, workdir)
  dropout = null_label.dropped(experiment.train.label_dropout, facts)
  if experiment.preview.every or experiment.evaluation.every:
    restoring.kept(experiment)
    guiding.check_absent(experiment)
  if experiment.preview.every:
    null_label.check_trained(experiment, dropout, [experiment.sampler])
  # Before the workdir is touched: these name a missing file of weights.
  decoder = opening.open_decoder(experiment, mesh)
  frozen = jax.device_put(experiment.objective.frozen(), sharding.replicated(mesh))
  networks = online_eval.open_networks(experiment, decoder, dropout)
  data = run_context.data_facts(experiment.source)
  _check_machine(experiment, mesh, trainable, workdir)
  how = {'data': data, 'continue_with': continue_with, 'continue_from': continue_from}
  with _opened(experiment, workdir, **how) as path:
    if jax.process_index() == 0:
      kernels.record(path, jax.default_backend(), experiment.execution.attention)
    placed = _begun(trainable, beginning, path)
    del beginning  # Arrays on the host, as large as the network.
    return _train(experiment, mesh, trainable, placed, decoder, frozen, networks, path)


def _begun(trainable, beginning, path):
  """Tells and records from which weights a run begins; returns them on the devices."""
  if beginning is None:
    return state.AT_RANDOM
  if jax.process_index() == 0:
    start.tell(beginning, trainable)
    run_dir.record_beginning(path, beginning.facts)
  return trainable.place(beginning.start)


def _train(experiment, mesh, trainable, placed, decoder, frozen, networks, path):
  """Trains in an open directory and returns what `run` does; the rest is what `run` has made."""
  first = jax.process_index() == 0
  scorer = online_eval.open_scorer(experiment, mesh, path, decoder, networks)
  key = jax.random.key(experiment.seed)
  examples = lambda step: run_context.examples_of(experiment, step)
  logging.info(
    '%s, %s: %s parameters, mesh %s, batch %d',
    experiment.method,
    experiment.source.name,
    f'{trees.count(trainable.params):,}',
    dict(mesh.shape),
    experiment.train.batch_size,
  )
  if experiment.optimizer.freeze:
    logging.info('optimizer.freeze: %s', overview.frozen(trainable.params, trainable.fixed))
  if divided := optim.division(experiment.optimizer, trainable.trained(trainable.params)):
    logging.info('%s', divided)
  if first:
    overview.log(trainable.params)
    train = experiment.train
    for one in (train.main(), *trainable.averages.values()):
      if remark := average.remark(one, train.ema_warmup, train.steps):
        logging.warning('%s', remark)
  with (
    jax.set_mesh(mesh),
    contextlib.closing(_checkpoints(path, experiment, trainable)) as checkpoints,
    together.told_early(),
    _way_on_told(experiment, checkpoints),
    profiling.traced(
      run_context.make_steps(experiment, trainable),
      steps=experiment.log.profiled,
      folder=path / 'tensorboard',
    ) as traced,
  ):
    left_out = nonfinite.LeftOut(
      path / nonfinite.FILE, most=experiment.train.max_skipped, write=first, examples=examples
    )
    bad = bad_records.Count(path=path / bad_records.FILE, limit=experiment.data.max_bad)
    attempt = lambda placed: loop.train(
      experiment.loop(),
      trainable=trainable,
      step_fn=lambda step, state, batch: traced(step, state, batch, frozen),
      init_key=rng.stream(key, 'init'),
      placed=placed,
      open_batches=lambda start: run_context.open_batches(experiment, mesh, start, bad),
      checkpoints=checkpoints,
      left_out=left_out,
      watched=spikes.Spikes(experiment.log.spike, examples),
      account=goodput.Account(path / goodput.FILE if first else None),
      open_writer=lambda start, unsent: writers.Writer(
        path,
        start_step=start,
        unsent=unsent,
        tensorboard=experiment.log.tensorboard,
        active=first,
        tracker=trackers.opener(experiment.log.tracker, path, flat_config.of(experiment.config)),
      ),
      hooks=lambda writer: [
        *hooks.telemetries(experiment, trainable, frozen, path, writer, key),
        hooks.preview(experiment, trainable, decoder, path, writer),
        online_eval.hook(experiment, trainable, scorer, path, writer),
        hooks.bad_records(experiment, bad, writer),
      ],
    )
    state_after = nonfinite.with_rollback(
      attempt,
      placed,
      active=experiment.train.on_nonfinite == 'rollback',
      left_out=left_out,
      checkpoints=checkpoints,
    )
    return int(state_after.step) >= experiment.train.steps


def _check_machine(experiment, mesh, trainable, workdir):
  """Refuses a machine that the run would fail on at its first checkpoint or batch (UserError)."""
  options = experiment.data
  run_context.on_all_processes(experiment.source.fetch)
  pipeline.check_shared_memory(
    experiment.source,
    len(sharding.process_rows(mesh, experiment.train.batch_size)),
    prefetch=options.prefetch,
    workers=options.workers,
  )
  if not paths.is_bucket(workdir):
    _check_space(experiment, trainable, paths.path(workdir))


def _check_space(experiment, trainable, path):
  """Refuses a disk without room for the checkpoints that are kept at once, and the one after."""
  options, steps, folder = experiment.checkpoint, experiment.train.steps, path / 'checkpoints'
  there = checkpoint.steps(folder)
  newest = max(there, default=0)
  to_come = max(-(-steps // options.every) - newest // options.every, 0) if newest < steps else 0
  # The oldest goes when the newest is there.
  count = min(max(options.keep + 1 - len(there), 1), to_come)
  copies = 2 + len(trainable.averages)
  size = copies * trees.num_bytes(trainable.params) + trees.num_bytes(trainable.opt_state)
  leftovers = (file for left in folder.glob(checkpoint.UNFINISHED) for file in left.rglob('*'))
  free = files.free_space(path) + sum(file.stat().st_size for file in leftovers if file.is_file())
  if count * size <= free:
    return
  fewer = ', or keep fewer by --config.checkpoint.keep=1' if options.keep > 1 and count > 2 else ''
  raise types.UserError(
    f'workdir {path}: its disk has {free / 1e9:.3g} GB free, but {count} more checkpoints of '
    f'{size / 1e9:.3g} GB need {count * size / 1e9:.3g} GB (checkpoint.keep={options.keep}, and '
    f'the one that is written); free space there, give a --workdir on another disk{fewer}'
  )


@contextlib.contextmanager
def _way_on_told(experiment, checkpoints):
  """Adds to the message of numbers that are not finite how the run can go on."""
  try:
    yield
  except (nonfinite.NonFiniteLoss, checkpoint.NotFinite) as error:
    rate, seed = experiment.optimizer.learning_rate, experiment.seed
    steps = ', '.join(map(str, checkpoints.steps()))
    earlier = f'; --continue_from=STEP goes back to a checkpoint: {steps}' if steps else ''
    leaving = ''
    if experiment.train.on_nonfinite == 'stop':
      leaving = '; --config.train.on_nonfinite=rollback leaves out such a step'
    raise types.UserError(
      f'{error}. Unchanged, the run would come to the same. It goes on with other values, as '
      f'--continue_with=optimizer.learning_rate --config.optimizer.learning_rate={rate / 2:g} or '
      f'--continue_with=seed --config.seed={seed + 1}{earlier}{leaving}'
    ) from error


@contextlib.contextmanager
def _opened(experiment, workdir, **how):
  """The directory of the run, in which no other run trains meanwhile.

  how: see `run_dir.open_for_training`.
  """
  opened = lambda write: run_dir.open_for_training(
    workdir, experiment.config, card.versions(), write=write, **how
  )
  with contextlib.ExitStack() as held:

    def claim_and_open():
      opened(False)  # Refuses before anything is written.
      held.enter_context(run_dir.claimed(workdir))
      return opened(True)

    first = jax.process_index() == 0
    path = run_context.on_all_processes(claim_and_open if first else lambda: None)
    yield path if first else opened(False)  # The others look when it has been written.


def _checkpoints(path, experiment, trainable):
  options = experiment.checkpoint
  return checkpoint.Checkpoints(
    str(path / 'checkpoints'),
    more=map(average.item, trainable.averages),
    keep=options.keep,
    keep_every=options.keep_every or None,
  )
