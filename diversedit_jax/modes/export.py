"""`--mode=export`: weights as a folder that Hugging Face's hub takes as it is, see `published`."""

from collections.abc import Mapping
import pathlib
from typing import Any

import jax
import numpy as np

from diversedit_jax import convert, paths, trees, types
from diversedit_jax import experiment as experiment_lib
from diversedit_jax.data import files
from diversedit_jax.data.sources import described
from diversedit_jax.evaluation import card
from diversedit_jax.experiment import flat_config, kernels, learned, published, run_dir
from diversedit_jax.modes import model_card, null_label, origins, restoring, run_context
from diversedit_jax.reporting import records
from diversedit_jax.weights import location

_README = 'README.md'


def run(experiment: experiment_lib.Experiment, output: str, origin: str) -> list[pathlib.Path]:
  """Writes model.safetensors, config.json, README.md and the scores of these weights; their paths.

  Args:
    experiment: whose model the weights are of; `sample.weights` chooses those of a checkpoint.
    output: the folder, which must not have files of these names.
    origin: a folder checkpoints/STEP, or a file of weights, here or on the hub.

  Raises:
    UserError: no such weights, weights of another model or that are not finite, or the folder has
      such files.
  """
  if '://' in output and not paths.is_bucket(output):
    raise types.UserError(
      f'--output={output} is a URL, expected a folder, or one in a bucket as gs://BUCKET/FOLDER; '
      'export to a folder, then `hf upload` it'
    )
  folder, found = paths.absolute(paths.path(output, bucket=True)), origins.find(origin)
  _check_free(folder)
  space = run_context.space_facts(experiment.source)
  step = found.step
  if found.run is not None:
    run_dir.open_for_reading(str(found.run), experiment.config, space)
  choice = None if step is None else found.choice(experiment.sample.weights)
  if found.about is not None:
    found.about.check(experiment.config, space)
    kind, step = (found.about.weights[fact] for fact in ('kind', 'step'))
  else:
    kind = 'file' if choice is None else choice.kind
  weights = {'kind': kind, 'step': step, 'origin': found.name}
  if found.about is not None or found.run is not None:
    weights['label_dropout'] = null_label.dropped_for(found)
  known = {} if found.run is None else kernels.read(found.run)
  known = known if found.about is None else found.about.weights.get('attention')
  weights |= {'attention': known} if known else {}
  arrays = _arrays(experiment, found, choice)
  folder_of = found.path.parent if found.about is not None else found.run
  scores = {} if folder_of is None else _of_these(records.scores(folder_of), step, kind)
  if jax.process_index() != 0:
    return []
  files.make_writable(folder, f'--output={folder}')
  try:
    with files.local_folder(folder) as place:
      written = _write(place, experiment, found, weights, arrays, scores)
    return [folder / path.relative_to(place) for path in written]
  except OSError as error:
    raise types.UserError(f'--output={folder} cannot be written: {error.strerror}') from error


def _arrays(experiment, found, choice) -> dict[str, np.ndarray]:
  """The arrays of the model alone, in float32."""
  flat = found.arrays(choice)
  mesh, experiment = run_context.make_mesh(experiment), run_context.unprobed(experiment)
  wanted = trees.named_leaves(run_context.make_trainable(experiment, mesh, heads=False).params)
  if problems := restoring.faults(flat, wanted, finite=True):
    raise types.UserError(f'{found.path} cannot be exported: {"; ".join(problems)}')
  return {name: np.asarray(flat[name], leaf.dtype) for name, leaf in wanted.items()}


def _class_names(experiment, found) -> list[str]:
  names = tuple(experiment.source.label_names)
  if found.run is not None:
    names = learned.label_names(found.run, experiment.source.digest, names)
  return list(names)


def _of_these(scores, step, kind) -> Mapping[str, Any]:
  """The scores of some weights; those of other steps say nothing about them."""
  theirs = lambda protocol: (protocol.get('step'), protocol.get('weights')) == (step, kind)
  return {path: content for path, content in scores.items() if theirs(content['protocol'])}


def _check_free(folder):
  if folder.exists() and not folder.is_dir():
    raise types.UserError(f'--output={folder} is a file, expected a folder')
  held = [
    name for name in (published.MODEL, published.SETTINGS, _README) if (folder / name).exists()
  ]
  if held:
    raise types.UserError(
      f'--output={folder} holds {", ".join(held)}, which would be overwritten; remove them, or '
      'choose another folder'
    )


def _write(folder, experiment, found, weights, arrays, scores) -> list[pathlib.Path]:
  folder.mkdir(parents=True, exist_ok=True)
  model = folder / published.MODEL
  convert.save(model, arrays)
  given = flat_config.of(experiment.config)
  given = given if found.about is None else found.about.config
  content = published.settings(
    given if found.run is None else flat_config.stored(found.run),
    {**weights, 'sha256': location.digest(model)},
    described.describe(experiment.source) | {'label_names': _class_names(experiment, found)},
  )
  for path, one in scores.items():
    card.write_json(folder / path, one)
  text = model_card.text(folder.name, content, sum(x.size for x in arrays.values()), scores)
  with files.atomic(folder / _README) as temporary:
    temporary.write_text(text, encoding='utf-8')
  # Last: a folder without it is no export.
  card.write_json(folder / published.SETTINGS, content)
  return [model, folder / published.SETTINGS, folder / _README, *(folder / path for path in scores)]
