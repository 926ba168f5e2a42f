"""REG's SiT with a class token (arXiv 2507.01467) against the reference implementation.

Tolerances as in `sit_golden_test`: 2e-5 in float32, 1e-6 in float64.
"""

import json

from flax import nnx
from helpers import networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import convert
from diversedit_jax.models import embed, heads, sit, taps

TOLERANCE = 2e-5


def load_params(arrays, dtype):
  names = [name for name in arrays if name.startswith('params/')]
  return convert.to_ours({n.removeprefix('params/'): arrays[n].astype(dtype) for n in names}, 'reg')


def merge(make, params):
  return nnx.merge(nnx.split(nnx.eval_shape(make))[0], params)


def build(arrays, dtype):
  """(model, projector), with the parameters of the file."""
  spec, params = json.loads(str(arrays['config'])), load_params(arrays, dtype)
  architecture = networks.of_golden(arrays, class_token=arrays['cls_token'].shape[1])
  widths = spec['hidden_size'], spec['projector_dim'], spec['z_dims'][0]
  return (
    merge(lambda: sit.SiT(architecture, rngs=nnx.Rngs(0)), params['model']),
    merge(lambda: heads.Projector(*widths, rngs=nnx.Rngs(0)), params['heads']['repa']['0']),
  )


def forward(model, arrays, dtype):
  """The output with the features of every block."""
  x = jnp.asarray(arrays['x'].transpose(0, 2, 3, 1), dtype)
  token = jnp.asarray(arrays['cls_token'], dtype)
  t, y = arrays['t'], arrays['y'].astype(np.int32)
  call = lambda m, x, token: m(x, t, y, class_token_NZ=token, tap=taps.every())
  return jax.jit(call)(model, x, token)


@pytest.fixture(scope='module')
def arrays(golden):
  return golden('reg')


def close(found, expected, tolerance=TOLERANCE):
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_every_stored_value_agrees(arrays):
  spec = json.loads(str(arrays['config']))
  model, projector = build(arrays, np.float32)
  t, y = jnp.asarray(arrays['t']), arrays['y'].astype(np.int32)
  x = jnp.asarray(arrays['x'].transpose(0, 2, 3, 1))
  close(model.patch_embed(embed.patchify(x, spec['patch_size'])), arrays['patch_tokens'])
  close(model.time_embed(t), arrays['t_emb'])
  close(model.label_embed(y), arrays['y_emb'])
  close(model.class_token_embed(jnp.asarray(arrays['cls_token'])), arrays['cls_embedded'])
  output = forward(model, arrays, np.float32)
  close(output.features, arrays['blocks'])
  close(output.pred.transpose(0, 3, 1, 2), arrays['x_out'])
  close(output.class_token, arrays['cls_out'])
  patches, token = model.final(output.features[-1], model.condition(t, y))
  close(patches, arrays['final_tokens'])
  close(token, arrays['cls_out'])
  close(projector(output.features[spec['encoder_depth'] - 1]), arrays['zs_0'])


def test_float64_agrees(arrays):
  """In float64 only the float32 sinusoids and softmax differ."""
  spec = json.loads(str(arrays['config']))
  with jax.enable_x64(True):
    model, projector = build(arrays, np.float64)
    output = forward(model, arrays, np.float64)
    assert output.pred.dtype == output.class_token.dtype == jnp.float64
    close(output.pred.transpose(0, 3, 1, 2), arrays['x_out_f64'], 1e-6)
    close(output.class_token, arrays['cls_out_f64'], 1e-6)
    close(output.features, arrays['blocks_f64'], 1e-6)
    close(projector(output.features[spec['encoder_depth'] - 1]), arrays['zs_0_f64'], 1e-6)
