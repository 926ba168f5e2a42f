"""Which methods go together: every pair is known to go or is refused with its reason."""

import itertools
import re

import pytest

from diversedit_jax import types
from diversedit_jax.methods import base, registry

FLOWS, TERMS = (
  tuple(sorted(n for n, part in registry.METHODS.items() if issubclass(part, kind)))
  for kind in (base.Flow, base.Term)
)
# What a user reads about some pairs that are refused.
REFUSED = {
  ('reg', 'repa'): 'reg does not go with repa: it contains that alignment',
  ('meanflow', 'contrastive'): "contrastive does not go with meanflow: an average velocity's",
  ('meanflow', 'sra'): "meanflow does not go with sra: SRA's teacher sees the data at one",
  ('meanflow', 'direction'): 'direction does not go with meanflow: it predicts averages',
  ('selfflow', 'sra'): 'selfflow does not go with sra: it brings that alignment',
}


def test_a_name_is_taken_once():
  with pytest.raises(ValueError, match="a method 'flow' exists already"):
    registry.register('flow')(type('Another', (), {}))


@pytest.mark.parametrize('pair', [*itertools.combinations((*FLOWS, *TERMS), 2)], ids='+'.join)
def test_every_pair_is_allowed_or_refused_with_a_reason(pair):
  first, second = pair
  declared = registry.METHODS[first].not_with.get(second)
  declared = declared or registry.METHODS[second].not_with.get(first)
  for names in (pair, pair[::-1]):
    method = '+'.join(names)
    if set(pair) <= set(FLOWS):
      reason = f'{names[0]} and {names[1]} each make the forward pass; name one of them'
    else:
      reason = REFUSED.get(pair, declared)
    if reason is None:
      flow = first if first in FLOWS else 'flow'
      assert registry.parse(method) == (flow, *(name for name in pair if name in TERMS))
      continue
    with pytest.raises(types.UserError, match=re.escape(reason)) as error:
      registry.parse(method)
    assert repr(method) in str(error.value)


def test_any_order_gives_the_same_parts():
  for i in range(len(TERMS)):
    names = (*TERMS[i:], *TERMS[:i])[::-1]
    assert registry.parse('+'.join(names)) == ('flow', *TERMS)
  assert registry.parse('sra+dispersive+reg') == ('reg', 'dispersive', 'sra')


def test_a_third_part_does_not_hide_a_refused_pair():
  for pair, third in ((('reg', 'repa'), 'diverse'), (('meanflow', 'sra'), 'dispersive')):
    for names in itertools.permutations((*pair, third)):
      with pytest.raises(types.UserError, match=re.escape(REFUSED[pair])):
        registry.parse('+'.join(names))


@pytest.mark.parametrize(
  ('method', 'message'),
  [
    ('repaa', "unknown method 'repaa'"),
    ('', "unknown method ''"),
    ('repa+', "unknown method ''"),
    ('repa+repa', "method 'repa\\+repa' names a part twice"),
  ],
)
def test_refuses_unknown_and_repeated_parts(method, message):
  with pytest.raises(types.UserError, match=message):
    registry.parse(method)


def test_traits_are_those_of_any_part():
  for trait, having, lacking in (
    ('needs_pixels', ('haste', 'repa', 'reg'), ('flow', 'diverse', 'sra')),
    ('needs_teacher', ('sra', 'selfflow'), ('flow', 'repa', 'layersync')),
    ('couples_examples', ('contrastive', 'diverse', 'dispersive'), ('flow', 'repa', 'direction')),
  ):
    assert all(registry.needs(name, trait) for name in having), trait
    assert not any(registry.needs(name, trait) for name in lacking), trait
  assert registry.needs('flow+diverse+sra', 'needs_teacher')
  assert registry.trained_parts('sra+diverse+repa+dispersive') == ('flow', 'repa', 'sra')
  assert registry.trained_parts('internal+diverse') == ('flow', 'internal')
  for method, key, read in (
    ('haste', 'haste.pairs', True),
    ('haste', 'repa.weights', True),
    ('haste', 'repa.pairs', False),
    ('reg+sra', 'repa.pairs', True),
    ('reg+sra', 'sra.kind', True),
    ('reg+sra', 'diversity.lo', False),
  ):
    assert registry.reads(method, key) == read, (method, key)
