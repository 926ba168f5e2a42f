"""Options: types, bounds, choices and finiteness are checked where a section is made."""

import dataclasses

import ml_collections
import pytest

from diversedit_jax import options, types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner(options.Section, section='net.inner', decides_network=True):
  """A section within a section."""

  on: bool = options.option(False, doc='A switch.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Net(options.Section, section='net', may_change=True):
  """One option of every type; `shape` is filled in by code."""

  depth: int = options.option(2, at_least=1, may_change=False, doc='A whole number.')
  rate: float = options.option(0.5, above=0, below=1, doc='A number.')
  endless: float = options.option(1.0, finite=False, doc='A number that may be infinite.')
  kind: str = options.option('plain', choices=('plain', 'fancy'), doc='A choice.')
  scale: float | tuple[float, ...] | None = options.option(None, above=0, doc='One, many or none.')
  weights: tuple[float, float] = options.option((0.5, 0.5), doc='Exactly two.')
  inner: Inner = options.option(Inner(), doc='Nested.')
  shape: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rest(options.Section, section='net'):
  """Further keys of the same section."""

  size: str | None = options.option(None, doc='A text or none.')


NAN, INF = float('nan'), float('inf')


@pytest.mark.parametrize(
  ('name', 'value', 'message'),
  [
    ('depth', 0, 'net.depth must be at least 1, got 0'),
    ('depth', 2.0, 'net.depth must be a whole number, got 2.0'),
    ('depth', True, 'net.depth must be a whole number, got True'),
    ('depth', '2', "net.depth must be a whole number, got '2'"),
    ('depth', None, 'net.depth must be a whole number, got None'),
    ('rate', 0.0, r'net.rate must be in \(0, 1\), got 0.0'),
    ('rate', 1, r'net.rate must be in \(0, 1\), got 1'),
    ('rate', NAN, 'net.rate must be finite, got nan'),
    ('rate', False, 'net.rate must be a number, got False'),
    ('kind', 'fancier', "unknown net.kind 'fancier'; did you mean 'fancy'"),
    ('kind', 1, 'net.kind must be text, got 1'),
    ('scale', 0.0, 'net.scale must be positive, got 0.0'),
    ('scale', (1.0, -1.0), r'net.scale must be positive, got \(1.0, -1.0\)'),
    ('scale', (1.0, INF), r'net.scale must be finite, got \(1.0, inf\)'),
    ('scale', 'wide', "net.scale must be a number or numbers or None, got 'wide'"),
    ('weights', (0.5,), r'net.weights must be 2 numbers, got \(0.5,\)'),
    ('weights', (0.5, '1'), 'net.weights must be 2 numbers'),
    ('inner', True, 'net.inner must be Inner, got True'),
  ],
)
def test_a_value_that_is_not_allowed_is_refused_by_its_key(name, value, message):
  with pytest.raises(types.UserError, match=message):
    Net(**{name: value})


def test_allowed_values_are_kept():
  given = dict(depth=1, rate=0.25, endless=INF, kind='fancy', scale=(1, 2.5), weights=(0, -1.5))
  net = Net(**given, shape=(4, 4))
  assert {name: getattr(net, name) for name in given} == given
  assert Net(scale=3).scale == 3 and Net(scale=None).scale is None


@pytest.mark.parametrize(
  ('bounds', 'words'),
  [
    ({}, ''),
    ({'at_least': 0}, 'at least 0'),
    ({'above': 0}, 'above 0'),
    ({'at_most': 1}, 'at most 1'),
    ({'below': 2**32}, 'below 4294967296'),
    ({'at_least': 0, 'at_most': 1}, 'in [0, 1]'),
    ({'above': 0.5, 'below': 1}, 'in (0.5, 1)'),
  ],
)
def test_bounds_in_words(bounds, words):
  assert options.Option(doc='', **bounds).bounds == words


def test_defaults_are_a_section_of_the_config():
  config = options.defaults([Net, Rest])
  assert config.to_dict() == {
    'depth': 2,
    'rate': 0.5,
    'endless': 1.0,
    'kind': 'plain',
    'scale': None,
    'weights': (0.5, 0.5),
    'inner': {'on': False},
    'size': None,
  }
  with pytest.raises(TypeError):
    config.depth = 'deep'  # ConfigDict keeps the types of its values.
  config.scale, config.size = 0.5, 'S/2'  # A key without a value takes its declared type.


def test_values_go_to_their_classes_and_missing_ones_keep_their_defaults():
  given = ml_collections.ConfigDict({'weights': [1.0, 2.0], 'inner': {'on': True}, 'size': 'S'})
  net, rest = options.values([Net, Rest], given, 'net')
  assert Net(**net) == Net(weights=(1.0, 2.0), inner=Inner(on=True))
  assert Rest(**rest) == Rest(size='S')


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'dept': 3}, "unknown key config.net.dept; did you mean 'depth'"),
    ({'shape': (1, 2)}, 'unknown key config.net.shape'),  # Code fills it in.
    ({'inner': {'onn': True}}, "unknown key config.net.inner.onn; did you mean 'on'"),
  ],
)
def test_an_unknown_key_is_refused_with_the_nearest(given, message):
  with pytest.raises(types.UserError, match=message):
    options.values([Net, Rest], given, 'net')


def test_keys_tell_kind_default_and_what_a_change_means():
  found = options.keys([Net, Rest])
  assert list(found) == [
    *(f'net.{name}' for name in ('depth', 'rate', 'endless', 'kind', 'scale', 'weights')),
    'net.inner.on',
    'net.size',
  ]
  facts = {name: (key.kind, key.may_change, key.decides_network) for name, key in found.items()}
  assert facts['net.depth'] == ('a whole number', False, False)
  assert facts['net.scale'] == ('a number or numbers or None', True, False)
  assert facts['net.inner.on'] == ('True or False', False, True)
  assert facts['net.size'] == ('text or None', False, False)
  assert found['net.weights'].default == (0.5, 0.5)
