"""The original SiT and DiT, one state dict read in two ways, against the reference implementations.

Both have a head of 2C channels. SiT's data lie at t = 1; imported, it obeys our clock:

  (1)  v_ours(x, t) = -v_SiT(x, 1 - t)

The reference feeds DiT the same times in [0, 1], unscaled, so its model here has `time_input` unit.
Tolerances as in `sit_golden_test`: 2e-5 in float32, 1e-6 in float64.
"""

from flax import nnx
from helpers import networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import convert
from diversedit_jax.models import embed, sit, taps
from diversedit_jax.sampling import guidance

TOLERANCE = 2e-5
FAMILIES = ('sit_original', 'dit')


def build(arrays, family, dtype=np.float32):
  names = [name for name in arrays if name.startswith('params/')]
  state_dict = {name.removeprefix('params/'): arrays[name].astype(dtype) for name in names}
  architecture = networks.of_golden(arrays)
  graphdef = nnx.split(nnx.eval_shape(lambda: sit.SiT(architecture, rngs=nnx.Rngs(0))))[0]
  return nnx.merge(graphdef, convert.to_ours(state_dict, family)['model'])


def predict(model, family, x_NCHW, t, y, dtype=np.float32):
  """Their prediction [N, C, H, W] at their times, and the features of every block."""
  x = jnp.asarray(x_NCHW.transpose(0, 2, 3, 1), dtype)
  t = jnp.asarray(our_time(family, t.astype(dtype)))
  output = jax.jit(lambda m, x, t: m(x, t, y.astype(np.int32), tap=taps.every()))(model, x, t)
  assert output.pred.dtype == dtype
  return sign(family) * output.pred.transpose(0, 3, 1, 2), output.features


def our_time(family, t):
  return 1 - t if family == 'sit_original' else t


def sign(family):
  return -1 if family == 'sit_original' else 1


def close(found, expected, tolerance=TOLERANCE):
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.fixture(scope='module')
def arrays(golden):
  return golden('dit_sit_original')


@pytest.mark.parametrize('family', FAMILIES)
def test_every_stored_value_agrees(family, arrays):
  """(1) for SiT; the second C channels, which only DiT trains, keep their sign for both."""
  model = build(arrays, family)
  t, y = jnp.asarray(our_time(family, arrays['t'])), arrays['y'].astype(np.int32)
  close(model.time_embed(t), arrays['t_emb'])
  close(model.label_embed(y), arrays['y_emb'])
  pred, features = predict(model, family, arrays['x'], arrays['t'], arrays['y'])
  close(features, arrays['blocks'])
  close(pred, arrays['x_out'])
  out, _ = model.final(features[-1], model.condition(t, y))
  both = embed.unpatchify(out, 2, 8, 8).transpose(0, 3, 1, 2)
  close(sign(family) * both[:, :4], arrays['x_out_dit'][:, :4])
  close(both[:, 4:], arrays['x_out_dit'][:, 4:])


@pytest.mark.parametrize('family', FAMILIES)
def test_float64_agrees(family, arrays):
  """In float64 only the float32 sinusoids and softmax differ."""
  with jax.enable_x64(True):
    model = build(arrays, family, np.float64)
    pred, features = predict(model, family, arrays['x'], arrays['t'], arrays['y'], np.float64)
    close(pred, arrays['x_out_f64'], 1e-6)
    close(pred, arrays['x_out_dit_f64'][:, :4], 1e-6)
    close(features, arrays['blocks_f64'], 1e-6)


@pytest.mark.parametrize('family', FAMILIES)
def test_guidance_of_three_channels(family, arrays):
  """Rows of one half with their labels, the same rows with the null label, mixed as SiT does."""
  half = arrays['x_cfg'].shape[0] // 2
  x, t = (np.concatenate([arrays[name][:half]] * 2) for name in ('x_cfg', 't_cfg'))
  pred, _ = predict(build(arrays, family), family, x, t, arrays['y_cfg'])
  class_NHWC, null_NHWC = jnp.split(pred.transpose(0, 2, 3, 1), 2)
  for i, scale in enumerate(arrays['cfg_scales']):
    combine = guidance.Guidance(scale=float(scale), channels=3).combine
    guided_NCHW = combine(class_NHWC, null_NHWC).transpose(0, 3, 1, 2)
    close(guided_NCHW, arrays['x_out_cfg'][i][:half])
    close(guided_NCHW, arrays['x_out_cfg_dit'][i][:half, :4])
    close(guided_NCHW[:, :3], arrays['x_out_cfg'][i][half:, :3])


def test_the_families_differ(arrays):
  """A file of one read as the other is wrong by far more than rounding."""
  wrong = predict(build(arrays, 'dit'), 'sit_original', arrays['x'], arrays['t'], arrays['y'])[0]
  assert np.abs(wrong - arrays['x_out']).max() > 0.1
