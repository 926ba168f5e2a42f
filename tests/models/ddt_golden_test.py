"""Wide heads against the references of RAE and RAEv2: blocks, outputs, guidance and gradients.

Both have our clock. Values are compared relative to the largest entry, as the files' note says.
"""

import json
import types as python_types

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import convert, types
from diversedit_jax.methods import internal
from diversedit_jax.models import config, networks, stack, taps
from diversedit_jax.sampling import guidance

TOLERANCE = 2e-5
CASES = ('ddt', 'ddt_qk_same_width', 'v2')


@pytest.fixture(scope='module')
def arrays(golden):
  return golden('ddt')


def part(arrays, name):
  return {k.removeprefix(f'{name}/'): x for k, x in arrays.items() if k.startswith(f'{name}/')}


def spec_of(arrays, name):
  specs = json.loads(str(arrays['config']))
  return next(one for one in [*specs['ddt'], specs['ddt_v2']] if one['name'] == name)


def architecture_of(spec):
  (depth, head_depth), (width, head_width), (heads, head_heads) = (
    spec[name] for name in ('depth', 'hidden', 'heads')
  )
  if spec['name'] == 'v2':
    parts = {
      'block': 'raev2',
      'qk_norm': True,
      'context': config.Context(time=spec['t_tokens'], label=spec['c_tokens']),
      'base': spec['base_depth'],
    }
  else:
    options = spec['options']
    parts = {
      'block': 'ddt',
      'norm': 'rms' if options['use_rmsnorm'] else 'layer',
      'mlp': 'swiglu' if options['use_swiglu'] else 'gelu',
      'rope': options['use_rope'],
      'position_table': options['use_pos_embed'],
      'qk_norm': options['use_qknorm'],
    }
  return config.Architecture(
    input_size=(spec['input_size'],) * 2,
    depth=depth,
    width=width,
    heads=heads,
    patch_size=1,
    channels=spec['channels'],
    num_classes=spec['num_classes'],
    mlp_ratio=spec['mlp_ratio'],
    head=config.Head(depth=head_depth, width=head_width, heads=head_heads),
    **parts,
  )


def build(arrays, name, dtype=np.float32, **execution):
  """(model, x_NHWC, t, y) of a case."""
  case, spec = part(arrays, name), spec_of(arrays, name)
  family = 'raev2' if name == 'v2' else 'ddt'
  params = convert.to_ours(part(case, 'params'), family, decoder_depth=spec['depth'][1])['model']
  architecture, how = architecture_of(spec), config.Execution(**execution)
  shapes = nnx.eval_shape(lambda: networks.make(architecture, how, rngs=nnx.Rngs(0)))
  model = nnx.merge(nnx.split(shapes)[0], jax.tree.map(lambda x: jnp.asarray(x, dtype), params))
  x = jnp.asarray(case['x'].transpose(0, 2, 3, 1), dtype)
  return model, x, jnp.asarray(case['t'], dtype), case['y'].astype(np.int32)


def close(found, expected, tolerance=TOLERANCE):
  scale = max(1, np.abs(expected).max())
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def first(x_NHWC):
  return x_NHWC.transpose(0, 3, 1, 2)


@pytest.mark.parametrize('remat', ['none', 'names'])
@pytest.mark.parametrize('name', CASES)
def test_blocks_and_output_agree(arrays, name, remat):
  model, x, t, y = build(arrays, name, remat=remat)
  output = jax.jit(lambda m: m(x, t, y, tap=taps.every()))(model)
  tokens = model.architecture.tokens  # RAEv2 has those of time and label behind them.
  close(output.features, arrays[f'{name}/encoder_blocks'][:, :, :tokens])
  close(first(output.pred), arrays[f'{name}/out_f64'])
  if name == 'v2':
    close(first(output.base), arrays['v2/base_out_f64'])


@pytest.mark.parametrize('scale', [0.0, 1.0, 1.78])
def test_internal_guidance_leads_from_the_base(arrays, scale):
  model, x, t, y = build(arrays, 'v2')
  term = internal.Internal(block=model.architecture.base, scale=scale)
  assert term.adapt(model.architecture, config.PLAIN) == (model.architecture, config.PLAIN)
  led = term.for_sampling(python_types.SimpleNamespace(model=model, heads={}))
  full, base = arrays['v2/out_f64'], arrays['v2/base_out_f64']
  found = jax.jit(lambda: led.model(x, t, y).pred)()
  close(first(found), base + scale * (full - base), TOLERANCE * max(scale, 1))


@pytest.mark.parametrize('name', CASES)
def test_output_agrees_in_float64(arrays, name):
  """Tables of positions are float32 in ours and in the files."""
  with jax.enable_x64(True):
    model, x, t, y = build(arrays, name, np.float64)
    output = jax.jit(lambda m: m(x, t, y))(model)
    close(first(output.pred), arrays[f'{name}/out_f64'], 1e-6)


@pytest.mark.parametrize('name', CASES)
def test_the_decoder_agrees(arrays, name, monkeypatch):
  run, seen = stack.Stack.__call__, []

  def noting(self, *args, tap, **options):
    out, features = run(self, *args, tap=taps.joined({'': tap, 'all': taps.every()}), **options)
    seen.append(features['all'])
    return out, features['']

  monkeypatch.setattr(stack.Stack, '__call__', noting)
  model, *given = build(arrays, name)
  model(*given)
  _, decoder = seen
  close(decoder, arrays[f'{name}/decoder_blocks'])


def test_condition_agrees(arrays):
  model, _, t, y = build(arrays, 'ddt')
  close(model.condition(t, y), arrays['ddt/encoder_condition_f64'])


def test_gradients_agree(arrays):
  model, x, t, y = build(arrays, 'ddt')
  loss = lambda m, x: jnp.mean(jnp.square(m(x, t, y).pred))
  of_params, of_x = jax.jit(jax.grad(loss, (0, 1)))(model, x)
  close(first(of_x), arrays['ddt/grad_x_f64'])
  found = convert.to_torch(
    {'model': jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.split(of_params)[1]))},
    'ddt',
    patch_size=1,
    grid=(4, 4),
    heads=2,
    decoder_heads=2,
  )
  expected = part(arrays, 'ddt/grad')
  assert len(expected) == 6
  for name, gradient in expected.items():
    close(found[name], gradient)
  assert not np.any(found['t_embedder.W'])


@pytest.mark.parametrize('place', range(3))
def test_guidance_acts_within_its_interval(arrays, place):
  case, spec = part(arrays, 'ddt'), spec_of(arrays, 'ddt')['cfg']
  model, x, t, y = build(arrays, 'ddt')
  null = jnp.full_like(y, model.architecture.num_classes)
  rule = guidance.Guidance(scale=spec['scale'], low=spec['interval'][0], high=spec['interval'][1])
  with_class, without = model(x, t, y).pred, model(x, t, null).pred
  guided = rule.combine(with_class, without) if rule.inside(case['t'][place]) else with_class
  close(first(guided)[place], case['cfg_out_f64'][place])


def test_which_blocks_are_the_decoders_is_asked_where_widths_do_not_tell(arrays):
  params = part(arrays, 'ddt_qk_same_width/params')
  with pytest.raises(types.UserError, match='all blocks have width 24.*--decoder_depth'):
    convert.to_ours(params, 'ddt')
