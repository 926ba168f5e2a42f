"""The model's config and the interpolant, from theirs."""

import dataclasses

import ml_collections

from diversedit_jax import interpolants, trees, types
from diversedit_jax.data import sources
from diversedit_jax.experiment import sections
from diversedit_jax.methods import flow
from diversedit_jax.models import config as config_lib
from diversedit_jax.models import sizes

# Told by the data, the method and the plan, not by the config's section.
_FROM_ELSEWHERE = ('input_size', 'channels', 'num_classes', 'interval', 'class_token', 'platform')
_NEAREST = 1e-3  # To the ends of time, for a noise or a score (SiT).


def make_model(
  section: ml_collections.ConfigDict, source: sources.Source, platform: str = ''
) -> tuple[config_lib.Architecture, config_lib.Execution]:
  """The model's config: a published size or four numbers, shaped for the data.

  platform: of a machine that is not here, see `config.Execution`.
  """
  names = [
    f.name
    for cls in (config_lib.Architecture, config_lib.Execution)
    for f in dataclasses.fields(cls)
  ]
  known = ['size', *(n for n in names if n not in _FROM_ELSEWHERE)]
  shape = [f.name for f in dataclasses.fields(sizes.Size)]
  sections.check_keys('config.model', section, known, ['size', 'skip', *shape])
  fields = dict(section)
  skip = dict(fields.pop('skip'))
  both = ['enabled', 'placement']
  sections.check_keys('config.model.skip', skip, both, both)
  name = fields.pop('size')
  if name:
    numbers = dataclasses.asdict(sizes.size(name))
    given = {k: fields[k] for k in numbers if fields[k] not in (0, numbers[k])}
    if given:
      raise types.UserError(
        f'config.model.size={name!r} and {given} contradict each other; set size to ""'
      )
    fields |= numbers
  rows, cols, channels = source.shape
  how = {f.name for f in dataclasses.fields(config_lib.Execution)}
  architecture = config_lib.Architecture(
    **{k: v for k, v in fields.items() if k not in how},
    input_size=(rows, cols),
    channels=channels,
    num_classes=source.num_classes,
    skip=config_lib.Skip(**skip),
  )
  execution = config_lib.Execution(
    **{k: v for k, v in fields.items() if k in how}, platform=platform
  )
  return architecture, execution


def make_path(section: ml_collections.ConfigDict) -> interpolants.Path:
  """The interpolant by name."""
  keys = ('path', 'prediction', 'weighting', 'time_law', 'time_mean', 'time_std', 'epsilon')
  sections.check_keys('config.interpolant', section, keys, keys)
  trees.check_known('interpolant.path', section.path, interpolants.PATHS)
  return interpolants.PATHS[section.path]


def make_time_law(section: ml_collections.ConfigDict, path: interpolants.Path) -> flow.TimeLaw:
  """The law of training times by name.

  Raises:
    UserError: for an unknown law, a mean or deviation that it does not have, or times nearer to the
      ends than the path allows.
  """
  trees.check_known('interpolant.time_law', section.time_law, interpolants.TIME_LAWS)
  law = interpolants.TIME_LAWS[section.time_law]
  epsilon = section.epsilon
  if epsilon is None:
    singular = section.prediction != 'velocity' and path.name != 'vp'
    epsilon = max(path.epsilon, _NEAREST if singular else 0)
  if epsilon < path.epsilon:
    raise types.UserError(
      f'interpolant.epsilon={epsilon} is too small: path {path.name!r} needs {path.epsilon}'
    )
  fields = {
    'epsilon': epsilon,
    'path': path.name,
    'mean': section.time_mean,
    'std': section.time_std,
  }
  names = [f.name for f in dataclasses.fields(law)]
  if 'mean' not in names and (section.time_mean, section.time_std) != (0.0, 1.0):
    raise types.UserError(
      f'interpolant.time_law={section.time_law!r} has no mean and deviation; leave time_mean=0.0, '
      f'time_std=1.0 (got {section.time_mean}, {section.time_std})'
    )
  return law(**{name: fields[name] for name in names})
