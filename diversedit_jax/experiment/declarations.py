"""Every key of a config, from the classes that declare them: defaults, help, comparisons.

To add a key, add a field by `options.option` to one of these classes, or a method's file: nothing
else is edited. `python -m diversedit_jax.main --mode=keys` prints what there is.
"""

from collections.abc import Mapping
import textwrap
from typing import Any

import ml_collections

from diversedit_jax import options, trees, types
from diversedit_jax.analysis import section as analysis
from diversedit_jax.experiment import data_options, eval_options, rae_options, sections
from diversedit_jax.interpolants import section as interpolant
from diversedit_jax.methods import registry
from diversedit_jax.models import config as model_config
from diversedit_jax.planning import plan
from diversedit_jax.sampling import trajectory
from diversedit_jax.training import initial, optim

_HEAD = """# Every key of a config

Printed by `python -m diversedit_jax.main --mode=keys`: each key with its default, what it may be,
what it means, and whether a run may change it when it continues. `--mode=keys NAME` prints one
section; `--config=FILE` beside it shows what that config sets otherwise.

"""

_GENERAL = 'general'

Classes = Mapping[str, tuple[type[options.Section], ...]]


def classes() -> Classes:
  """The classes that declare each section, by its name, '' for keys without one; in print order."""
  methods = {name: (cls,) for name, cls in registry.sections().items()}
  found: Classes = {
    '': (sections.General,),
    'init': (initial.Options,),
    'data': (data_options.DataOptions,),
    'vae': (sections.VaeOptions,),
    'rae': (rae_options.RaeOptions,),
    'model': (sections.ModelSize, model_config.Architecture, model_config.Execution),
    'interpolant': (interpolant.Interpolant,),
    **methods,
    'train': (sections.TrainOptions,),
    'optimizer': (optim.OptimizerConfig,),
    'mesh': (sections.MeshOptions,),
    'log': (sections.LogOptions,),
    'checkpoint': (sections.CheckpointOptions,),
    'preview': (sections.PreviewOptions,),
    'sampler': (trajectory.SamplerConfig,),
    'sample': (sections.SampleOptions,),
    'eval': (eval_options.EvalOptions,),
    'sweep': (eval_options.SweepOptions,),
    'analysis': (analysis.AnalysisConfig,),
    'plan': (plan.PlanConfig,),
  }
  for name, declared in found.items():
    if name in methods and declared != methods[name]:
      raise ValueError(f'the section {name!r} is taken; register {methods[name]} with another')
  return found


def defaults() -> ml_collections.ConfigDict:
  """Every key there is at its default: the published recipe (DiverseDiT, Table A1)."""
  config = ml_collections.ConfigDict()
  for name, declared in classes().items():
    section = options.defaults(declared)
    if name:
      config[name] = section
    else:
      config.update(section)
  return config


def complete(config: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """A config with the defaults of all keys that it lacks."""
  whole = defaults().to_dict()

  def fill(into, given):
    for key, value in given.items():
      if isinstance(value, Mapping):
        fill(into.setdefault(key, {}), value)
      else:
        into[key] = value

  fill(whole, config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config)
  return ml_collections.ConfigDict(whole)


def keys() -> dict[str, options.Key]:
  """Every key by its whole name."""
  found = {}
  for declared in classes().values():
    found |= options.keys(declared)
  return found


def values(config: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
  """What a config gives, by section one dict for each class that declares it.

  Raises:
    UserError: for an unknown key or section, naming the nearest.
  """
  declared = classes()
  top = options.keys(declared[''])
  for name in config:
    if name not in declared and name not in top:
      hint = trees.did_you_mean(name, {*declared, *top} - {''})
      raise types.UserError(f'unknown key config.{name}{hint}')
  general = {key: config[key] for key in top if key in config}
  found = {'': options.values(declared[''], general, '')}
  for name, of_one in declared.items():
    if name:
      found[name] = options.values(of_one, config.get(name, {}), name)
  return found


def document(only: str = '', config: Mapping[str, Any] | None = None) -> str:
  """Every key with default, bounds, meaning and source, as Markdown.

  Args:
    only: a section, a part of a method or a whole key; '' is all.
    config: whose values are shown where they are not the default.

  Raises:
    UserError: for an unknown name, with the nearest.
  """
  declared = classes()
  sections = {name or _GENERAL: name for name in declared}
  parts = {name: cls.section for name, cls in registry.METHODS.items()} | {'flow': 'interpolant'}
  known = {**parts, **sections, **{name: name.rpartition('.')[0] for name in keys()}}
  if only and only not in known:
    raise types.UserError(f'unknown section or key {only!r}{trees.did_you_mean(only, known)}')
  given = None if config is None else complete(config)
  if only in keys():
    return _line(keys()[only], given) + '\n'
  wanted = [known[only]] if only else declared
  shown = '\n\n'.join(_section(name, declared[name], given) for name in wanted)
  return ('' if only else _HEAD) + shown + '\n'


def _section(name, declared, config):
  summary, found = ' '.join(cls.__doc__.splitlines()[0] for cls in declared), options.keys(declared)
  files = dict.fromkeys(f'`{key.module.replace(".", "/")}.py`' for key in found.values())
  summary = textwrap.fill(f'{summary} Declared in {" and ".join(files)}.', 98)
  head = f'## {name or _GENERAL}\n\n{summary}\n'
  return '\n'.join([head, *(_line(key, config) for key in found.values())])


def _line(key, config):
  facts = [key.kind, key.option.bounds]
  if key.option.choices is not None:
    facts = [' | '.join(str(choice) or "''" for choice in key.option.choices)]
  facts += ['may change when a run continues'] if key.may_change else []
  given = ''
  if config is not None:
    value = _at(config, key)
    same = (tuple(value) if isinstance(value, list) else value) == key.default
    given = '' if same else f', here {value!r}'
  described = '; '.join(filter(None, facts))
  doc = textwrap.fill(key.option.doc, 98, initial_indent='  ', subsequent_indent='  ')
  return f'- `{key.name}` = {key.default!r}{given} ({described})  \n{doc}'


def _at(config, key):
  for part in key.name.split('.'):
    if part not in config:
      return key.default
    config = config[part]
  return config
