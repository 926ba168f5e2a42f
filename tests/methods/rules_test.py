"""Which methods go together: every pair is known to go or is refused with its reason."""

import itertools

import pytest

from diversedit_jax import types
from diversedit_jax.methods import rules

ORDER = ('flow', 'reg', 'meanflow', 'repa', 'dispersive', 'sra', 'diverse')
# What a user reads about each pair that is refused; every other pair goes together.
REFUSED = {
  ('flow', 'reg'): 'flow and reg each make the forward pass; name one of them',
  ('flow', 'meanflow'): 'flow and meanflow each make the forward pass; name one of them',
  ('reg', 'meanflow'): 'reg and meanflow each make the forward pass; name one of them',
  ('reg', 'repa'): 'reg does not go with repa: it contains that alignment',
  ('meanflow', 'sra'): "meanflow does not go with sra: SRA's teacher sees the data at one",
}
OWNERS = {'flow', 'reg', 'meanflow'}


def test_the_table_holds_these_parts():
  assert tuple(rules.RULES) == ORDER
  assert {name for name, rule in rules.RULES.items() if rule.owns_pass} == OWNERS


@pytest.mark.parametrize('pair', [*itertools.combinations(ORDER, 2)], ids='+'.join)
def test_every_pair_is_allowed_or_refused_with_a_reason(pair):
  for names in (pair, pair[::-1]):
    method = '+'.join(names)
    if pair in REFUSED:
      reason = REFUSED[pair]
      if names != pair and 'each make' in reason:  # Named in the order of the user.
        reason = f'{names[0]} and {names[1]} each make the forward pass'
      with pytest.raises(types.UserError, match=reason) as error:
        rules.parse(method)
      assert repr(method) in str(error.value)
    else:
      owner = () if OWNERS & set(pair) else ('flow',)
      assert rules.parse(method) == tuple(sorted((*owner, *pair), key=ORDER.index))


def test_any_order_gives_the_same_parts():
  terms = ('repa', 'dispersive', 'sra', 'diverse')
  wanted = ('flow', *terms)
  for names in itertools.permutations(terms):
    assert rules.parse('+'.join(names)) == wanted
  assert rules.parse('diverse+flow') == ('flow', 'diverse')
  assert rules.parse('diverse+dispersive+reg+sra') == ('reg', 'dispersive', 'sra', 'diverse')
  assert rules.parse('flow') == ('flow',) and rules.parse('meanflow') == ('meanflow',)


def test_a_third_part_does_not_hide_a_refused_pair():
  for pair, third in ((('reg', 'repa'), 'diverse'), (('meanflow', 'sra'), 'dispersive')):
    for names in itertools.permutations((*pair, third)):
      with pytest.raises(types.UserError, match=f'{pair[0]} does not go with {pair[1]}'):
        rules.parse('+'.join(names))


@pytest.mark.parametrize(
  ('method', 'message'),
  [
    ('repaa', "method 'repaa'; did you mean 'repa'"),
    ('', 'method'),
    ('repa+', 'method'),
    ('repa+repa', "method 'repa\\+repa' names a part twice"),
    ('repa, diverse', 'method'),
  ],
)
def test_refuses_unknown_and_repeated_parts(method, message):
  with pytest.raises(types.UserError, match=message):
    rules.parse(method)


def test_needs_is_that_of_any_part():
  assert not rules.needs(('flow', 'diverse'), 'encoder')
  assert rules.needs(('flow', 'repa'), 'encoder') and rules.needs(('flow', 'repa'), 'heads')
  assert rules.needs(('reg', 'diverse'), 'encoder') and rules.needs(('reg',), 'token')
  assert rules.needs(('flow', 'sra'), 'teacher') and not rules.needs(('reg',), 'teacher')
  assert rules.needs(('meanflow',), 'interval') and not rules.needs(('flow',), 'interval')
