"""`--mode=inspect`: what a run, a checkpoint or any file of weights holds, in a page.

Needs no config: a run describes itself, and a file is described by its names and shapes. With one,
it says whether they belong together. Nothing is compiled or written.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
from typing import Any

import ml_collections
import numpy as np

from diversedit_jax import checkpoint, convert, trees, types
from diversedit_jax import experiment as experiment_lib
from diversedit_jax.convert import detection, families, mapping
from diversedit_jax.evaluation import card
from diversedit_jax.experiment import declarations, flat_config, kernels
from diversedit_jax.frozen import encoders, inception_files, rae_decoder, vae_files
from diversedit_jax.modes import evaluate, origins, restoring, run_context
from diversedit_jax.reporting import records
from diversedit_jax.training import writers
from diversedit_jax.weights import array_files, likely, location, misfits, opening, summary

_SHOWN = 20  # Lines of scores.
_TITLE = 13  # Width of the words at the left.
_OURS = 'diversedit_jax, as '
_TRANSFORMERS = (
  encoders.clip,
  encoders.dinov2,
  encoders.ijepa,
  encoders.mae,
  encoders.mocov3,
  encoders.siglip2,
)
_SIZES = ('depth', 'width', 'heads', 'patch_size')


def run(
  workdir: str,
  origin: str | None,
  config: ml_collections.ConfigDict | None = None,
  *,
  whole: bool = False,
) -> str:
  """The page.

  Args:
    workdir: directory of a run; used if there is no origin.
    origin: a run, its folder checkpoints/STEP or a file of weights, here or on the hub.
    config: compared with the run's, or a file is fitted to its model; None does not.
    whole: whether each array has a line of its own.

  Raises:
    UserError: there is nothing that holds weights.
  """
  if not (workdir or origin):
    raise types.UserError(
      '--mode=inspect looks at a run or at weights: give --workdir=DIR, or --checkpoint=FILE'
    )
  given = origin or workdir
  if folder := origins.run_at(given):
    steps = checkpoint.steps(folder / 'checkpoints')
    lines = _describe_run(folder, steps, config)
    lines += _items(folder / 'checkpoints' / str(steps[-1]), whole) if steps else []
    return '\n'.join(lines)
  found = origins.find(given)
  if found.step is None:
    return '\n'.join(_describe_file(found, config, whole))
  card = [] if found.run is None else _describe_run(found.run, [found.step], config)
  return '\n'.join([*card, *_items(found.path, whole)])


def recognise(
  arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any] | None = None
) -> list[str]:
  """What arrays are the weights of, in words; several where names and shapes are the same.

  Nothing is guessed: all names and shapes of what is named are there, and no others.

  Args:
    arrays: the weights.
    settings: the contents of the `config.json` beside them, without which a DC-AE is not known.
  """
  return [words for words, _ in _recognised(arrays, settings or {})]


def _recognised(arrays, settings) -> Iterator[tuple[str, Mapping[str, np.ndarray] | None]]:
  """Words, and for a diffusion model its arrays by names that `infer_config` knows."""
  if any(name.startswith('model/') for name in arrays):
    params = convert.unflatten(arrays)
    for name, family in families.FAMILIES.items():
      # Without its marks, a network with rotary positions has the names and shapes of SiT's.
      if family.rotary and not detection.is_marked(family, arrays):
        continue
      # Ours do not tell the patch size; 1 is as good as another.
      how = {'family': name, 'patch_size': 1, 'fixed': False}
      written = _attempt(lambda how=how: mapping.to_rules(params, **how))
      if written is not None:
        yield f'{_OURS}{name}', written
    return
  # Which of its 1000 rows of labels are classes, a file need not tell to be known.
  fits = lambda name, **k: _attempt(lambda: convert.to_ours(arrays, name, **k)) is not None
  for name in families.FAMILIES:
    if fits(name) or fits(name, num_classes=999):
      yield name, arrays
  # The config.json may be that of something else.
  read = lambda told: _attempt(
    lambda: vae_files.from_arrays(arrays, settings=told, scale=1.0, shift=0.0)
  )
  found = read(settings) or (read({}) if settings else None)
  if found is not None:
    sizes = f'{found.config.factor}x down, {found.config.latent_channels} latent channels'
    yield f'{found.name}: {sizes}', None
  # The heads do not show.
  settings = {'decoder_num_attention_heads': 1}
  found = _attempt(lambda: rae_decoder.from_arrays(arrays, settings=settings))
  if found is not None:
    yield f'decoder of an RAE, {found.config.latent} channels to {found.config.side} pixels', None
  if _attempt(lambda: inception_files.from_arrays(arrays)) is not None:
    yield 'Inception of 2015-12-05, the network of FID', None
  for module in _TRANSFORMERS:
    family = module.FAMILY
    yield from ((f'encoder {name}', None) for name in family.configs if family.fits(name, arrays))
  fitting = (name for name in encoders.convnext.CONFIGS if encoders.convnext.fits(name, arrays))
  yield from ((f'encoder {name}', None) for name in fitting)


def _attempt(make: Callable[[], Any]) -> Any:
  try:
    return make()
  except types.UserError:
    return None


def _describe_file(origin, config, whole) -> list[str]:
  path = origin.path
  arrays, notes = _read(path)
  size = path.stat().st_size
  size = f'{size / 1e6:,.1f} MB' if size >= 1e6 else f'{size:,} bytes'
  lines = [_line('file', f'{location.place_of(path) or path}, {size}')]
  lines += [_line('SHA-256', location.digest(path))]
  settings = _attempt(lambda: vae_files.settings_beside(path)) or {}
  found = dict(_recognised(arrays, settings))
  is_ours = any(words.startswith(_OURS) for words in found)
  names = ' or '.join(words.removeprefix(_OURS) for words in found)
  known = f'{_OURS if is_ours else ""}{names}'
  unknown = f'unknown{likely.kind(arrays) or ": none that this version knows"}'
  lines += [_line('family', known or unknown), *(_line('', note) for note in notes)]
  configs: dict[str, list[str]] = {}
  for words, state_dict in found.items():
    if state_dict is not None:
      name = words.removeprefix(_OURS)
      family, inferred = families.family(name), convert.infer_config(state_dict, name)
      inferred |= {'patch_size': None} if is_ours else {}
      configs.setdefault(' '.join(detection.config_keys(inferred, family)), []).append(words)
      lines += [_line('licence', family.notice)] if family.notice else []
  for keys, of in configs.items():
    lines.append(_line('config', keys if len(configs) == 1 else f'{keys}  (of {" or ".join(of)})'))
  if origin.about is not None:
    about = origin.about
    step = 'unknown' if about.weights['step'] is None else f'{about.weights["step"]:,}'
    lines += [_line('weights', f'{about.weights["kind"]} of step {step}, from --mode=export')]
    lines += _card(about.config, about.data) + _score_lines(path.parent)
  lines += [] if config is None else [_line('--config', _fit(arrays, config))]
  return [*lines, *_tables({'arrays': lambda: arrays}, whole)]


def _read(path) -> tuple[dict[str, np.ndarray], Sequence[str]]:
  """The arrays of the network in a file, and what was taken, or all where there are several."""
  try:
    found = array_files.read(path)
    return found.arrays, found.notes
  except types.UserError as error:
    with contextlib.ExitStack() as stack:
      opened = opening.open_file(path, stack)
      arrays = {name: read() for name, read in opened.readers.items()}
    return arrays, [f'all arrays of the file: {error}']


def _fit(arrays, config) -> str:
  experiment = run_context.unprobed(experiment_lib.build(config))
  mesh = run_context.make_mesh(experiment)
  wanted = trees.named_leaves(run_context.make_trainable(experiment, mesh, heads=False).params)
  faults = restoring.faults(arrays, wanted)
  return f'does not fit: {"; ".join(faults)}' if faults else 'fits'


def _describe_run(folder, steps, config) -> list[str]:
  of_run = origins.Origin(path=folder / 'checkpoints' / '0', step=0)
  stored = flat_config.flatten(of_run.recorded('config.json'))
  versions = of_run.recorded('versions.json', list) or [{}]
  made = [f'{name} {version}' for name, version in versions[-1].items()]
  planned = stored.get('train.steps', declarations.keys()['train.steps'].default)
  lines = [
    _line('run', folder),
    *_card(stored, of_run.recorded('data.json')),
    _line('made by', ', '.join(made) or 'unknown'),
    _line('attention', _on_platforms(of_run.recorded(kernels.FILE)) or 'unknown'),
    _line('steps', f'{planned:,}, {_last_report(folder)}'),
    _line('checkpoints', ', '.join(map(str, steps)) or 'none yet'),
  ]
  lines += [] if config is None else [_line('--config', _differences(stored, config))]
  return lines + _score_lines(folder)


def _on_platforms(kernels) -> str:
  return ', '.join(f'{kernel} on a {platform.upper()}' for platform, kernel in kernels.items())


def _card(stored, data) -> list[str]:
  """Method, model and data, from a flat config and what is recorded of the data."""
  known = declarations.keys()
  value = lambda key: stored.get(key, known[key].default)
  sizes = [f'{name} {value(f"model.{name}")}' for name in _SIZES]
  others = [
    f'{key.removeprefix("model.")} {stored[key]}'
    for key in stored
    if key in known and known[key].decides_network and key.startswith('model.')
    if key.removeprefix('model.') not in (*_SIZES, 'size') and stored[key] != known[key].default
  ]
  named = [value('model.size')] if value('model.size') else sizes
  facts = [data.get('name', value('data.source'))]
  facts += [f'{data["examples"]:,} examples'] if 'examples' in data else []
  facts += [data['space']] if 'space' in data else []
  facts += [f'SHA-256 {data["sha256"][:16]}'] if 'sha256' in data else []
  return [
    _line('method', value('method')),
    _line('model', ', '.join([*named, *others])),
    _line('data', ', '.join(facts)),
  ]


def _differences(stored, config) -> str:
  known = declarations.keys()
  theirs = flat_config.complete({key: value for key, value in stored.items() if key in known})
  changed = flat_config.differences(theirs, flat_config.of(config))
  listed = [f'{key}: stored {old!r}, given {new!r}' for key, (old, new) in changed.items()]
  return f'differs in {misfits.first_few(listed)}' if listed else 'is that of the run'


def _last_report(folder) -> str:
  """The last row of metrics.jsonl with a loss, in words."""
  try:
    rows = writers.read_jsonl(folder / 'metrics.jsonl')
  except (OSError, types.UserError):
    rows = []
  last = next((row for row in reversed(rows) if 'loss' in row), None)
  return 'no report' if last is None else f'loss {last["loss"]:.4g} at step {last["step"]:,}'


def _score_lines(folder) -> list[str]:
  lines = []
  for name, content in records.scores(folder).items():
    lines.append(f'{name}: {evaluate.in_words(content["scores"])}{_how(content["protocol"])}')
  more = [f'... and {len(lines) - _SHOWN} older'] if len(lines) > _SHOWN else []
  shown = [*lines[-_SHOWN:], *more]
  return [_line('scores' if i == 0 else '', line) for i, line in enumerate(shown)]


def _how(protocol) -> str:
  """How scored samples were made; '' for those of a file, of which nobody knows."""
  if (
    not {'num_samples', 'weights', 'checkpoint', 'sampler', 'steps', 'guidance'} <= protocol.keys()
  ):
    return ''
  return (
    f' ({protocol["num_samples"]} samples of {protocol["weights"]} at {protocol["checkpoint"]}, '
    f'{protocol["sampler"]} {protocol["steps"]} steps, guidance {card.guidance(protocol)})'
  )


def _items(path, whole) -> list[str]:
  """The average in full, and a line for each other part."""
  title = f'{path.parent.name}/{path.name}'
  further = [name for name in checkpoint.items(path) if name not in checkpoint.ITEMS]
  order = ('ema', 'params', *further, 'opt')
  read = {f'{item} of {title}': (lambda item=item: checkpoint.read(path, item)) for item in order}
  return _tables(read, whole)


def _tables(read, whole) -> list[str]:
  """The table of the first arrays, and the totals of all, which are read one after the other."""
  table, totals = [], []
  for title, arrays in read.items():
    try:
      facts = summary.measure(arrays())
    except types.UserError as error:
      totals.append(_line(title, error))
      continue
    if not table:
      table = ['', title, *summary.table(facts if whole else summary.bounded(facts)), '']
    one = summary.total(facts)
    totals.append(
      f'{title}: {one.arrays} arrays, {one.values:,} values of {one.dtype}, norm {one.norm:.6g}, '
      f'{summary.finite_in_words(one)}'
    )
  return table + totals


def _line(title, text) -> str:
  return f'{title:<{_TITLE}}{text}'
