"""The published Self-Flow network, imported, against its own program: in one time, and in many.

Its interface is on our clock and gives our velocity, while its inner clock and head are turned:
both are in the imported weights. Tolerances as in `sit_golden_test`.
"""

import json

from flax import nnx
from helpers import family_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import convert
from diversedit_jax.models import config, groups, heads, sit, taps

EACH = groups.grouped(jnp.tile(jnp.arange(16), (3, 1)), (1,) * 16)  # Each token is a group.


@pytest.fixture(scope='module')
def arrays(golden):
  return golden('self_flow_model')


def imported(arrays):
  """(model, heads): by the program's names, under the family that these tell."""
  spec, state = json.loads(str(arrays['config']))['bfl'], family_weights.parameters(arrays)
  assert convert.detect(state) == 'selfflow'
  assert convert.detect({k: v for k, v in state.items() if 'projector' not in k}) == 'selfflow'
  inferred = convert.infer_config(state, 'selfflow')
  architecture = config.Architecture(
    input_size=(spec['input_size'],) * 2,
    heads=spec['heads'],
    **{
      name: inferred[name]
      for name in ('depth', 'width', 'mlp_ratio', 'patch_size', 'channels', 'learn_sigma')
    },
    num_classes=inferred['num_classes'],
  )
  assert (architecture.channels, architecture.num_classes) == (4, spec['num_classes'] - 1)
  params = convert.to_ours(state, 'selfflow')
  assert convert.detect(params) == 'selfflow'
  merge = lambda make, params: nnx.merge(nnx.split(nnx.eval_shape(make))[0], params)
  return (
    merge(lambda: sit.SiT(architecture, rngs=nnx.Rngs(0)), params['model']),
    merge(lambda: heads.AlignmentHead(spec['D'], rngs=nnx.Rngs(0)), params['heads']['sra']),
    spec,
  )


@pytest.mark.parametrize(
  ('case', 'times', 'tokens'), [('sample', 't_sample', groups.WHOLE), ('token', 't_token', EACH)]
)
def test_every_stored_value_agrees(arrays, case, times, tokens):
  model, head, spec = imported(arrays)
  x, t = jnp.asarray(arrays['image'].transpose(0, 2, 3, 1)), jnp.asarray(arrays[times])
  y = jnp.asarray(arrays['labels'], jnp.int32)
  output = jax.jit(lambda m: m(x, t, y, tokens=tokens, tap=taps.every()))(model)
  close = lambda found, name: np.testing.assert_allclose(
    found, arrays[f'{case}/{name}'], rtol=0, atol=2e-5
  )
  close(output.features, 'blocks')
  close(output.pred.transpose(0, 3, 1, 2), 'out_image')
  if case == 'token':
    conditioning = model.condition(*tokens.rows(t, y))
    close(conditioning.reshape(3, 16, -1), 'conditioning')
    close(head(output.features[spec['student_depth'] - 1]), 'projected')
