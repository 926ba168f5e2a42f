"""Whose heads the tables of rotary positions are made for."""

import pytest

from diversedit_jax import types
from diversedit_jax.convert import families, plans, tables


def _widths(family, blocks, decoder, letters=None, **heads):
  """Widths of the tables of cosines, the decoder's last; blocks, decoder: (depth, width)."""
  counts = {'blocks': blocks[0], 'decoder': decoder[0], 'skips': 0, 'heads': 0}
  sizes = {'D': blocks[1], 'W': decoder[1], 'I': 4, 'J': 8} | (letters or {})
  counts = plans.Counts(**counts, parts=frozenset())
  plan = plans.Plan(counts=counts, entries=(), sizes=sizes)
  given = {'D': heads.get('heads'), 'W': heads.get('decoder_heads')}
  made = tables.of(families.family(family), plan, (2, 2), given)
  return [table.shape[1] for name, table in made.items() if name.endswith('cos')]


@pytest.mark.parametrize(
  ('family', 'blocks', 'decoder', 'expected'),
  [
    ('lightning', (28, 1152), (0, 0), [72]),
    ('ddt', (12, 384), (2, 2048), [64, 128]),
    ('raev2', (28, 1440), (2, 2048), [72, 128]),
  ],
)
def test_a_published_depth_and_width_tell_the_heads(family, blocks, decoder, expected):
  assert _widths(family, blocks, decoder) == expected


@pytest.mark.parametrize(
  ('family', 'blocks', 'decoder', 'key'),
  [
    ('lightning', (2, 384), (0, 0), 'heads'),
    ('lightning', (24, 2048), (0, 0), 'heads'),
    ('raev2', (12, 1440), (2, 2048), 'heads'),
    ('ddt', (28, 1152), (3, 2048), 'decoder_heads'),
    ('ddt', (28, 1152), (2, 1152), 'decoder_heads'),
  ],
)
def test_others_are_asked_for(family, blocks, decoder, key):
  depth, width = blocks if key == 'heads' else decoder
  message = f'{depth} blocks of width {width} are of no published size: .*, --{key}, '
  with pytest.raises(types.UserError, match=message):
    _widths(family, blocks, decoder)
  assert width // 8 in _widths(family, blocks, decoder, **{key: 8})
  with pytest.raises(types.UserError, match=f'--{key}=7 does not divide the width {width}'):
    _widths(family, blocks, decoder, **{key: 7})


def test_norms_of_queries_tell_more_than_a_published_size():
  """As with heads of 192 in a B."""
  sizes = (12, 768), (0, 0), {'E': 192}
  assert _widths('lightning', *sizes) == _widths('lightning', *sizes, heads=4) == [192]
  with pytest.raises(types.UserError, match='--heads=12 does not fit: .* are of 4 heads'):
    _widths('lightning', *sizes, heads=12)
