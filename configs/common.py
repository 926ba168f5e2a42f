"""What the configs share: typed meta-arguments and the recipe of the papers."""

from collections.abc import Mapping
import re
from typing import Any

import ml_collections

from diversedit_jax import experiment, options, trees, types
from diversedit_jax.methods import registry


def parse_arg(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
  """The meta-arguments of `--config=FILE.py:name=value,name=value`, typed like their defaults.

  `a,b=1` sets a to True and b to 1. Values are read as the type of the default: '1e-4', 'True',
  'B/2'. A comma within a path belongs to it, unless what follows is `name=` or a name from here.

  Raises:
    UserError: for an unknown name (the nearest is named) or a value of another type.
  """
  parsed = dict(defaults)
  for item in _items(arg or '', defaults):
    name, equals, text = item.partition('=')
    if name not in defaults:
      raise types.UserError(f'unknown config argument {name!r}{trees.did_you_mean(name, defaults)}')
    kind = type(defaults[name])
    try:
      parsed[name] = options.READ.get(kind, kind)(text) if equals or kind is not bool else True
    except (KeyError, ValueError) as error:
      raise types.UserError(f'config argument {name}={text!r} is not a {kind.__name__}') from error
  return ml_collections.ConfigDict(parsed)


def _items(arg, known):
  """The items of 'a=1,b': one that begins with no name goes on with the path before it."""
  items: list[str] = []
  for text in filter(None, arg.split(',')):
    is_new = text in known or re.match(r'\w+=', text)
    if is_new or not items or not re.search('[/~]', items[-1].partition('=')[2]):
      items.append(text)
    else:
      items[-1] += f',{text}'
  return items


def base() -> ml_collections.ConfigDict:
  """Every key there is, with the values of the published recipe (DiverseDiT, Table A1).

  The keys are declared where they are used; `--mode=keys` and docs/config.md list them.
  """
  return experiment.defaults()


def set_method(config: ml_collections.ConfigDict, method: str) -> None:
  """Sets the method, and what its published recipe does otherwise than SiT's."""
  config.method = method
  for name in registry.parse(method):
    config.update_from_flattened_dict(registry.METHODS[name].recipe)


def set_options(config: ml_collections.ConfigDict, flat: Mapping[str, Any]) -> None:
  """Sets keys; synthetic data, of dry runs, have no mirror images and stay as they are."""
  config.update_from_flattened_dict(flat)
  if config.data.source.startswith('synthetic:'):
    config.data.flip = False


def has_skips(method: str) -> bool:
  """True if the published form of a method has long residual connections: DiverseDiT's has."""
  return 'diverse' in registry.parse(method)
