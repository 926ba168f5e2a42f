"""Options declared once: a dataclass field is a config key, its check and its help.

  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Variance(options.Section, section='variance'):
    margin: float = options.option(1.0, above=0, doc='Least deviation over the batch.')

  options.defaults([Variance])                         ConfigDict(margin=1.0)
  options.values([Variance], given, 'variance')        [{'margin': 2.0}], unknown keys refused
  options.keys([Variance])                             {'variance.margin': Key(...)} for help

A `Section` checks its options whenever one is made, so a value is checked at one place, whether it
comes from a config, a test or a library call. Fields without `option` are no keys of the config:
code fills them in.
"""

import ast
from collections.abc import Collection, Iterable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import math
import numbers
import types as python_types
import typing
from typing import Any, ClassVar

import ml_collections

from diversedit_jax import paths, trees, types

_OPTION = 'option'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
  """What a declaration says beside name, type and default.

  doc: meaning in a line, with its source. choices: the values that there are.
  at_least, above, at_most, below: bounds of numbers, of each one in a tuple.
  finite: whether NaN and infinities are refused.
  may_change: whether a run may continue with another value; None leaves it to the section.
  decides_network: whether weights mean something else under another value; None leaves it to the
    section.
  path: whether it names a file or folder, or KIND:PATH, in which `~` is expanded.
  """

  doc: str
  choices: Collection[Any] | None = None
  at_least: float | None = None
  above: float | None = None
  at_most: float | None = None
  below: float | None = None
  finite: bool = True
  may_change: bool | None = None
  decides_network: bool | None = None
  path: bool = False

  @property
  def bounds(self) -> str:
    """The bounds in words, '' without any: 'at least 1', 'in [0, 1)'."""
    low, high = _first(self.at_least, self.above), _first(self.at_most, self.below)
    if low is not None and high is not None:
      left, right = '[('[self.at_least is None], '])'[self.at_most is None]
      return f'in {left}{_plain(low)}, {_plain(high)}{right}'
    if low is not None:
      return f'at least {_plain(low)}' if self.above is None else f'above {_plain(low)}'
    if high is not None:
      return f'at most {_plain(high)}' if self.below is None else f'below {_plain(high)}'
    return ''

  def holds(self, number: float) -> bool:
    """Whether a number is within the bounds; NaN never is where there are any."""
    return (
      (self.at_least is None or number >= self.at_least)
      and (self.above is None or number > self.above)
      and (self.at_most is None or number <= self.at_most)
      and (self.below is None or number < self.below)
    )


def option(default: Any, doc: str, **facts: Any) -> Any:
  """A dataclass field that is a key of the config.

  Args:
    default: its value in a new config; None where code decides, for a type such as `int | None`.
    doc: one line that says what it means and where it comes from.
    **facts: see `Option`.
  """
  metadata = {_OPTION: Option(doc=doc, **facts)}
  if isinstance(default, Section):
    if default != type(default)():
      raise ValueError(f'{default} must be the default {type(default).__name__}()')
    return dataclasses.field(default_factory=lambda: default, metadata=metadata)
  return dataclasses.field(default=default, metadata=metadata)


class Section:
  """A dataclass whose options are checked when it is made.

  Keyword arguments of the class:
    section: the name before the dot in its keys; '' has none.
    may_change, decides_network: for all options that do not say so themselves, see `Option`.

  Raises:
    UserError: by the key, for a value of another type, out of bounds or not among the choices.
  """

  section: ClassVar[str] = ''
  may_change: ClassVar[bool] = False
  decides_network: ClassVar[bool] = False

  def __init_subclass__(
    cls,
    section: str | None = None,
    may_change: bool | None = None,
    decides_network: bool | None = None,
    **unused: Any,
  ):
    super().__init_subclass__(**unused)
    given = {'section': section, 'may_change': may_change, 'decides_network': decides_network}
    for name, value in given.items():
      if value is not None:
        setattr(cls, name, value)

  def __post_init__(self):
    kinds = _kinds(type(self))
    for field, found in _declared(type(self)):
      value = getattr(self, field.name)
      check(_dotted(self.section, field.name), value, kinds[field.name], found)
      if found.path and value is not None:
        object.__setattr__(self, field.name, paths.expanded(value))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
  """A key of the config, for help and for comparing runs; see `Option`.

  module: dotted name of the module that declares it. type: as annotated. kind: the same in words.
  """

  name: str
  module: str
  type: Any
  kind: str
  default: Any
  option: Option
  may_change: bool
  decides_network: bool


def check(name: str, value: Any, kind: Any, facts: Option) -> None:
  """Refuses a value that its declaration does not allow.

  Args:
    name: the whole key, for the message. value: to check. kind: the annotated type.
    facts: bounds and choices.

  Raises:
    UserError: naming the key, what was found and what was expected.
  """
  allowed = _alternatives(kind)
  if value is None and python_types.NoneType in allowed:
    return
  if not any(_is_a(value, one) for one in allowed):
    raise types.UserError(f'{name} must be {_words(kind)}, got {value!r}')
  if facts.choices is not None:
    trees.check_known(name, value, facts.choices)
  for number in value if isinstance(value, tuple | list) else (value,):
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
      continue
    if facts.finite and not math.isfinite(number):
      raise types.UserError(f'{name} must be finite, got {value}')
    if not facts.holds(number):
      raise types.UserError(f'{name} must be {_must(facts)}, got {value}')


def read(key: Key, text: str) -> Any:
  """The value that a text of the command line stands for: 'None', 'true', '1e-4', '(1, 2)', '1,2'.

  Raises:
    UserError: it is of another type; bounds and choices are left to the section.
  """
  allowed = _alternatives(key.type)
  # Where any text may be given, as in data.labels=none, only Python's None is none.
  is_none = text == 'None' or (text.lower() == 'none' and str not in allowed)
  if is_none and python_types.NoneType in allowed:
    return None
  for kind in sorted(allowed, key=lambda kind: kind is str):  # Every text is a text.
    with contextlib.suppress(ValueError, SyntaxError, KeyError, TypeError):
      read_one = READ.get(kind) or READ[typing.get_origin(kind)]
      value = read_one(text)
      if _is_a(value, kind):
        return value
  raise types.UserError(f'{key.name} must be {key.kind}, got {text!r}')


def _read_texts(text):
  """Python's form, or without its quotes: "('a', 'b')", 'a,b'."""
  with contextlib.suppress(ValueError, SyntaxError):
    if _is_a(value := _read_tuple(text), tuple[str, ...]):
      return value
  return tuple(part for one in text.strip('()[]').split(',') if (part := one.strip(' \'"')))


def _read_tuple(text):
  value = ast.literal_eval(text)
  return tuple(value) if isinstance(value, list | tuple) else (value,)


_SWITCH = {'true': True, 't': True, '1': True, 'false': False, 'f': False, '0': False}
READ = {
  bool: lambda text: _SWITCH[text.lower()],
  int: lambda text: int(text, 0) if text[:2].lower() == '0x' else int(text),
  float: float,
  tuple: _read_tuple,
  tuple[str, ...]: _read_texts,
  str: str,
}
"""How a text becomes a value of a type; ValueError or KeyError if it is none."""


def defaults(classes: Iterable[type[Section]]) -> ml_collections.ConfigDict:
  """A config section with every key of some declarations at its default."""
  config = ml_collections.ConfigDict()
  for cls in classes:
    for field, _ in _declared(cls):
      default = _default(field)
      if isinstance(default, Section):
        config[field.name] = defaults([type(default)])
      elif default is None:
        kinds = set(_alternatives(_kinds(cls)[field.name])) - {python_types.NoneType}
        kind = kinds.pop() if len(kinds) == 1 else object
        config[field.name] = ml_collections.config_dict.placeholder(kind)
      else:
        config[field.name] = default
  return config


def values(
  classes: Sequence[type[Section]], given: Mapping[str, Any], name: str
) -> list[dict[str, Any]]:
  """The given values of each declaration's own options; a missing key keeps its default.

  Args:
    classes: the declarations of the section. given: what a config says. name: its name.

  Raises:
    UserError: for an unknown key, naming the nearest.
  """
  fields = [{field.name: field for field, _ in _declared(cls)} for cls in classes]
  known = [key for of_one in fields for key in of_one]
  if not isinstance(given, Mapping | ml_collections.ConfigDict):
    raise types.UserError(f'{_dotted("config", name)} is a section of keys, got {given!r}')
  for key in given:
    if key not in known:
      where = _dotted('config', name)
      raise types.UserError(f'unknown key {where}.{key}{trees.did_you_mean(key, known)}')
  return [
    {key: _value(field, given[key], name) for key, field in of_one.items() if key in given}
    for of_one in fields
  ]


def keys(classes: Iterable[type[Section]]) -> dict[str, Key]:
  """All keys of some declarations by their whole name, in the order in which they are declared."""
  found = {}
  for cls in classes:
    for field, facts in _declared(cls):
      name, default = _dotted(cls.section, field.name), _default(field)
      if isinstance(default, Section):
        found |= keys([type(default)])
        continue
      found[name] = Key(
        name=name,
        module=next(
          c.__module__ for c in cls.__mro__ if field.name in vars(c).get('__annotations__', ())
        ),
        type=_kinds(cls)[field.name],
        kind=_words(_kinds(cls)[field.name]),
        default=default,
        option=facts,
        may_change=_first(facts.may_change, cls.may_change),
        decides_network=_first(facts.decides_network, cls.decides_network),
      )
  return found


def _declared(cls) -> list[tuple[dataclasses.Field, Option]]:
  return [(f, f.metadata[_OPTION]) for f in dataclasses.fields(cls) if _OPTION in f.metadata]


@functools.cache
def _kinds(cls) -> dict[str, Any]:
  return typing.get_type_hints(cls)


def _default(field):
  factory = field.default_factory
  return field.default if factory is dataclasses.MISSING else factory()


def _value(field, given, name):
  """A given value as the dataclass holds it: tuples for lists, sections for dicts."""
  default = _default(field)
  if isinstance(default, Section):
    (found,) = values([type(default)], given, _dotted(name, field.name))
    return type(default)(**found)
  return tuple(given) if isinstance(given, list | tuple) else given


def _alternatives(kind) -> tuple[Any, ...]:
  is_union = typing.get_origin(kind) in (python_types.UnionType, typing.Union)
  return typing.get_args(kind) if is_union else (kind,)


def _is_a(value, kind) -> bool:
  if typing.get_origin(kind) is tuple:
    inside = [one for one in typing.get_args(kind) if one is not Ellipsis]
    open_end = Ellipsis in typing.get_args(kind)
    if not isinstance(value, tuple | list) or not (open_end or len(value) == len(inside)):
      return False
    return all(_is_a(one, inside[0 if open_end else i]) for i, one in enumerate(value))
  if kind is float:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
  if kind is int:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
  return isinstance(value, kind)


def _words(kind) -> str:
  """A type for people: 'a number', 'a whole number or None'."""
  plain = {
    bool: 'True or False',
    int: 'a whole number',
    float: 'a number',
    str: 'text',
    python_types.NoneType: 'None',
  }
  words = []
  for one in _alternatives(kind):
    if typing.get_origin(one) is tuple:
      args = typing.get_args(one)
      count = '' if Ellipsis in args else f'{len(args)} '
      named = {int: 'numbers', float: 'numbers', str: 'texts'}
      words.append(f'{count}{named.get(args[0], "values")}')
    else:
      words.append(plain.get(one) or one.__name__)
  return ' or '.join(words)


def _must(facts: Option) -> str:
  return 'positive' if facts.bounds == 'above 0' else facts.bounds


def _plain(number):
  return f'{number:g}' if isinstance(number, float) else str(number)


def _first(*candidates):
  return next((one for one in candidates if one is not None), None)


def _dotted(*names: str) -> str:
  return '.'.join(filter(None, names))
