"""Which parameters a pattern names, and what is said of one that names none."""

import pytest

from diversedit_jax import types
from diversedit_jax.training import patterns

NAMES = (
  'heads/repa/0/fc1/bias',
  'model/blocks/layers/attn/qkv/bias',
  'model/blocks/layers/attn/qkv/kernel',
  'model/final/linear/bias',
  'model/label_embed/embedding',
)
QKV = set(NAMES[1:3])


@pytest.mark.parametrize(
  ('given', 'chosen'),
  [
    ('', set()),
    ('blocks/*', QKV),
    ('model/blocks', QKV),
    (' blocks/ , label_embed', {*QKV, NAMES[4]}),
    ('blocks/*/qkv', QKV),
    ('*,!*/bias', {NAMES[2], NAMES[4]}),
    ('*/bias,!blocks/*,blocks/*/kernel', {NAMES[0], NAMES[2], NAMES[3]}),
    ('heads', {NAMES[0]}),
  ],
)
def test_patterns(given, chosen):
  assert patterns.matching(given, NAMES, 'optimizer.freeze') == chosen


@pytest.mark.parametrize(
  ('given', 'words'),
  [
    ('block/*', "optimizer.freeze: 'block/*' matches no parameter; did you mean 'blocks'?"),
    ('final,!finl/*', "'!finl/*' matches no parameter; did you mean 'final'"),
    ('blocks/layers/attn/qvk/*', "did you mean 'blocks/layers/attn/qkv'"),
    ('encoder', 'there are heads/repa/*, blocks/*, final/*, label_embed/*'),
    ('blocks/3/*', 'matches no parameter; did you mean'),
    ('!final', "'!final' leaves out of nothing; put '*,' before it for all"),
  ],
)
def test_a_pattern_without_effect_is_refused_with_what_may_be_meant(given, words):
  with pytest.raises(types.UserError) as error:
    patterns.matching(given, NAMES, 'optimizer.freeze')
  assert words in str(error.value)


def test_patterns_of_names_are_the_shortest_that_choose_no_others():
  assert patterns.of(QKV, NAMES) == 'blocks'
  assert patterns.of({NAMES[2], NAMES[0]}, NAMES) == 'blocks/layers/attn/qkv/kernel,heads/repa'
  for chosen in (QKV, {NAMES[2], NAMES[0]}):
    assert patterns.matching(patterns.of(chosen, NAMES), NAMES, 'init.new') == chosen
