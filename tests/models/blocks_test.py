"""A block of one's own, in one file."""

import sys
import types

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import types as errors
from diversedit_jax.models import block, blocks, config, networks, taps
from diversedit_jax.models.blocks import sit

NAME = f'{blocks.__name__}.own'


class Double(sit.Mlp):
  """Twice what SiT's says."""

  def __call__(self, x_NTD):
    return 2 * super().__call__(x_NTD)


@pytest.fixture
def file(monkeypatch):
  """A file `own.py` among the blocks, as a module; each test says what is in it."""
  module = types.ModuleType(NAME)
  module.PARTS = sit.PARTS
  monkeypatch.setitem(sys.modules, NAME, module)
  monkeypatch.setattr(blocks, 'NAMES', (*blocks.NAMES, 'own'))
  blocks._mlps.cache_clear()
  yield module
  blocks._mlps.cache_clear()


def architecture(**fields):
  return config.Architecture(input_size=(4, 4), depth=1, width=8, heads=2, patch_size=2, **fields)


def test_its_mlp_is_known_by_its_name(file):
  file.MLPS = {'double': Double}
  assert 'double' in blocks.MLPS and {'gelu', 'swiglu'} < set(blocks.MLPS)
  model = networks.make(architecture(mlp='double'), rngs=nnx.Rngs(0))
  assert isinstance(model.blocks.layers.mlp, Double)
  file.MLPS = {'gelu': Double}
  blocks._mlps.cache_clear()
  with pytest.raises(ValueError, match="own.py: there is an MLP 'gelu' already"):
    list(blocks.MLPS)


def test_its_equations_take_the_place_of_the_blocks(file):
  class Negative(block.Block):
    def __call__(self, *args, **given):
      return -super().__call__(*args, **given)

  file.Block = Negative
  parts = {name: None for name in sit.PARTS}
  own = architecture(**parts)
  plain = networks.make(own, rngs=nnx.Rngs(0))
  object.__setattr__(own, 'block', 'own')  # Its choices were read when the key was declared.
  model = networks.make(own, rngs=nnx.Rngs(0))
  x, c = jnp.ones((1, 4, 8)), jnp.ones((1, 8))
  run = lambda m: m.blocks(x, c, tap=taps.nothing())[0]
  np.testing.assert_array_equal(run(model), -run(plain))


def test_its_equations_are_not_left_out_for_tokens(monkeypatch):
  monkeypatch.setattr(blocks, 'own_block', lambda name: block.Block)
  with pytest.raises(errors.UserError, match='model.block=sit has equations of its own'):
    architecture(head=config.Head(depth=1), conditioning='tokens')
