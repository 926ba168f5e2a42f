"""Runs planned for devices that are not here, and what their compilers say."""

import jax

from configs import digits
from diversedit_jax.planning import devices

# Written by libtpu 0.0.52 for a program for v5e.
REFUSED = (
  'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory '
  'required for HLO temporaries (26.25G) exceeds available HBM (15.75G). HLO module: jit_step.\n'
  'See https://openxla.org/xla/errors/error_1000 for more details.'
)


def here(**fields):
  """A target of this machine."""
  facts = dict(name='here', platform='cpu', devices=tuple(jax.devices()[:1]), memory=2.0**30)
  return devices.Target(**(facts | fields))


def config(method='repa+diverse', **changes):
  """A small run with all that a step may have: long skips, an encoder, microbatches."""
  made = digits.get_config(f'method={method}')
  made.model.update(dict(depth=4, width=32, heads=2, unroll=1))
  made.train.update(dict(batch_size=32, accumulate=2))
  made.data.resident = 'device'
  made.plan.update(dict(devices=None, compile_for='h200') | changes)
  return made
