"""`--mode=audit`: what a run would see, checked before it is trusted."""

from typing import Any

import jax
import numpy as np

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import types
from diversedit_jax.data import audit as audit_lib
from diversedit_jax.data import images, latents, pipeline
from diversedit_jax.data.pictures import remarks as label_remarks
from diversedit_jax.data.sources import base
from diversedit_jax.evaluation import card
from diversedit_jax.experiment import run_dir
from diversedit_jax.modes import run_context

_EPOCHS = 2
_EXAMPLES = 2048  # Examples that are read for the statistics of values.


def run(experiment: experiment_lib.Experiment, workdir: str) -> str:
  """Checks order, labels and values; returns a report. A workdir keeps it as audit.json.

  Raises:
    UserError: there are faults; all are named.
  """
  path = run_dir.open_for_output(workdir) if workdir and jax.process_index() == 0 else None
  facts = gather(experiment)
  if path is not None:
    card.write_json(path / run_dir.AUDIT, facts)
  if facts['faults']:
    raise types.UserError(f'{experiment.source.name}: {"; ".join(facts["faults"])}')
  return table(facts)


def gather(experiment: experiment_lib.Experiment) -> dict[str, Any]:
  """All facts, and the 'faults' and 'remarks' found in them, in words."""
  source, batch_size = experiment.source, experiment.train.batch_size
  data = run_context.data_facts(source)  # Refuses processes with different data.
  source.fetch()
  order = audit_lib.order_facts(
    len(source),
    seed=experiment.seed,
    batch_size=batch_size,
    flip=experiment.data.flip,
    epochs=_EPOCHS,
    processes=[p for p in (1, 2, 4, 8) if batch_size % p == 0],
  )
  labels = audit_lib.label_facts(source.labels, source.num_classes)
  bad: list[str] = []
  values = audit_lib.value_facts(
    _batches(experiment, bad), lambda batch: _values(batch, source, experiment.seed)
  )
  faults, remarks = list(order['faults']), []
  if bad:
    faults.append(
      f'{len(bad)} of {values["examples"] + len(bad)} pictures that were read are bad, which would '
      f'end a run: {"; ".join(bad[:3])}'
    )
  if values['nonfinite']:
    faults.append(f'{values["nonfinite"]} positions of the data are not finite')
  low, high = audit_lib.USUAL_STD
  unusual = [s for s in values['std'] if not low <= s <= high]
  if source.space == 'latents' and source.tokenizer is None and unusual:
    remarks.append(
      f'channels have standard deviations {", ".join(f"{s:.2f}" for s in values["std"])}: scaled '
      f'latents of natural images have 0.7 to 1, so the scale may not be that of the autoencoder'
    )
  low, high = values['min'], values['max']
  if (source.space == 'pixels' or source.tokenizer) and low is not None and 0 <= low < high:
    remarks.append(
      f'values lie in [{low:.2f}, {high:.2f}], expected about [-1, 1]: pixels '
      'in [0, 1] become these by 2 x - 1'
    )
  remarks += label_remarks.of_labels(source.labels, source.label_names)
  if labels['empty']:
    remarks.append(f'{len(labels["empty"])} of {labels["classes"]} classes have no example')
  facts = {
    'data': experiment.config.data.source,
    **data,
    'seed': experiment.seed,
    'batch_size': batch_size,
    'order': order,
    'labels': labels,
    'values': values,
    'bad': bad,
    'faults': faults,
    'remarks': remarks,
  }
  if prepared := source.preparation():
    facts['store'] = prepared
  return facts


def table(facts: dict[str, Any]) -> str:
  """The report in lines."""
  order, labels, values = facts['order'], facts['labels'], facts['values']
  numbers = lambda xs: ' '.join(f'{x:.3f}' for x in xs)
  rows = [
    ('data', f'{facts["name"]}, {order["examples"]:,} examples, batch {facts["batch_size"]}'),
    *(
      (
        f'epoch {e["epoch"]}',
        f'sha256 {e["sha256"][:16]}, each example once, {e["mirrored"]:.1%} mirrored',
      )
      for e in order['epochs']
    ),
    ('processes', f'{", ".join(map(str, order["processes"]))}: the same global batches'),
    (
      'labels',
      f'{labels["classes"]} classes of {labels["least"]} to {labels["most"]} examples, '
      f'{len(labels["empty"])} empty',
    ),
    ('values', f'{values["examples"]} examples, {values["per_second"]:.0f} examples/s read alone'),
    ('mean', numbers(values['mean'])),
    ('std', numbers(values['std'])),
    ('range', f'{values["min"]:.3f} to {values["max"]:.3f}'),
    ('digest', facts['sha256'][:16]),
    *((name, str(value)) for name, value in facts.get('store', {}).items()),
    *(('remark', remark) for remark in facts['remarks']),
  ]
  return '\n'.join(f'{name:<12}{text}' for name, text in rows)


def _batches(experiment, bad):
  """Batches of a run. Pictures are taken from all over their collection, and bad ones are noted."""
  source, batch_size = experiment.source, experiment.train.batch_size
  if not source.decodes:
    steps = pipeline.Steps(
      source=source, seed=experiment.seed, batch_size=batch_size, flip=experiment.data.flip
    )
    yield from map(steps, range(max(1, min(_EXAMPLES, len(source)) // batch_size)))
    return
  for index in np.unique(np.linspace(0, len(source) - 1, _EXAMPLES).astype(int)).tolist():
    try:
      yield source.gather(np.array([index]))
    except base.BadExample as error:
      bad.append(error.reason)


def _values(batch, source, seed):
  """What the model would learn to make from a batch, float32; pixels where these are encoded."""
  if 'moments' in batch:
    moments = batch['moments']
    shape = (*moments.shape[:-1], moments.shape[-1] // 2)
    eps = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return np.asarray(latents.sample(jax.numpy.asarray(moments), eps, source.scaling))
  x = batch[next(key for key in ('images', 'latents', 'pixels') if key in batch)]
  return images.from_uint8(x) if x.dtype == np.uint8 else x
