"""The table of parameters that is logged when training starts."""

import jax
import jax.numpy as jnp

from diversedit_jax.training import overview


def test_every_parameter_is_in_the_log(caplog):
  shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)
  with caplog.at_level('INFO'):
    overview.log({'model': {'blocks': {'kernel': shape(12, 8, 24)}}, 'head': {'bias': shape(3)}})
  (record,) = caplog.records
  # The console shows lines of this package only.
  assert 'diversedit_jax' in record.pathname
  assert '| model/blocks/kernel | (12, 8, 24) | float32 | 2,304 |' in record.getMessage()
  assert '| head/bias           | (3,)        | float32 | 3     |' in record.getMessage()
  assert record.getMessage().endswith('Total: 2,307 -- 9,228 bytes')


def test_what_is_frozen_is_counted():
  shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)
  params = {'model': {'a': shape(12, 8), 'b': shape(10)}, 'heads': {'c': shape(3)}}
  assert overview.frozen(params, {'model/a', 'heads/c'}) == (
    '99 of 109 parameters stay as they are, in 2 arrays: heads/c, model/a; 10 are trained'
  )
