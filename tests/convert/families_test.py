"""The rules of every family: both ways, and what MeanFlow's and SRA's parameters mean."""

from flax import linen, nnx
from helpers import family_weights
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from diversedit_jax import trees, types
from diversedit_jax.convert import families, mapping
from diversedit_jax.models import config, embed, heads, networks, sit

_CLOCK = 't_embedder.mlp.0.weight'


@pytest.fixture(scope='module', params=family_weights.FAMILIES)
def case(request, golden):
  """(family, state dict)."""
  return request.param, family_weights.of(request.param, golden)


def _assert_same(found, expected):
  assert set(found) == set(expected)
  for name, array in expected.items():
    assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
    np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_every_family_is_tested():
  assert set(family_weights.FAMILIES) == set(families.FAMILIES)
  with pytest.raises(types.UserError, match="unknown family 'sitt'; did you mean 'sit'"):
    mapping.to_ours({}, 'sitt')


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
def test_round_trip(case, dtype):
  family, state_dict = case
  state_dict = {name: x.astype(dtype) for name, x in state_dict.items()}
  params = mapping.to_ours(state_dict, family)
  patch = mapping.infer_config(state_dict, family)['patch_size']
  how = family_weights.heads(family) | {'patch_size': patch}
  again = mapping.to_torch(params, family, grid=(4, 4), **how)
  if family in ('sit_original', 'selfflow', 'lightning'):
    # Their clocks come back to the bound of `layouts.reverse_clock`.
    back, given = again.pop(_CLOCK), state_dict.pop(_CLOCK).astype(np.float64)
    norms = np.tile(np.hypot(*np.split(given, 2, axis=1)), 2)
    eps = float(ml_dtypes.finfo(dtype).eps)
    assert back.dtype == dtype and (np.abs(back.astype(np.float64) - given) <= eps * norms).all()
  _assert_same(again, state_dict)
  assert all(x.flags.c_contiguous for x in again.values())
  leaves = jax.tree.leaves(params)
  assert all(leaf.flags.c_contiguous and leaf.flags.writeable for leaf in leaves)
  assert not any(np.shares_memory(leaf, x) for leaf in leaves for x in state_dict.values())


def test_infer_config(case):
  family, state_dict = case
  config = mapping.infer_config(state_dict, family)
  assert config['interval'] == (family == 'meanflow')
  assert config['class_token'] == (48 if family == 'reg' else 0)
  assert config['base'] == (family == 'raev2')
  assert config['learn_sigma'] == (family in ('sit_original', 'selfflow', 'dit'))
  assert config['tokens'] == (None if family in ('meanflow', 'raev2') else 16)
  read = config['patch_size'], config['channels'], config['num_classes'], config['mlp_ratio']
  assert read == {'ddt': (1, 10, 5, 4), 'raev2': (1, 8, 6, 4)}.get(family, (2, 4, 10, 4))


def test_imported_parameters_are_those_of_the_model(case):
  """A model built from the inferred config has the very names and shapes."""
  family, state_dict = case
  inferred = mapping.infer_config(state_dict, family)
  fields = ('depth', 'width', 'patch_size', 'channels', 'num_classes', 'qk_norm')
  fields += ('norm', 'mlp', 'rope', 'shift', 'time_features', 'position_table', 'conditioning')
  side = 4 * inferred['patch_size']
  decoder, context = inferred['decoder'] or (0, 0, 0), inferred['context'] or (4, 8)
  architecture = config.Architecture(
    input_size=(side, side),
    heads=inferred['heads'] or 4,
    **{name: inferred[name] for name in fields},
    **{name: inferred[name] for name in ('interval', 'class_token', 'learn_sigma')},
    skip=config.Skip(enabled=inferred['skips']),
    head=config.Head(**dict(zip(('depth', 'width', 'heads'), decoder, strict=True))),
    context=config.Context(time=context[0], label=context[1]),
    base=int(inferred['base']),  # Weights do not tell of which block.
  )
  model = nnx.eval_shape(lambda: networks.make(architecture, rngs=nnx.Rngs(0)))
  expected = {n: x.shape for n, x in trees.named_leaves(nnx.split(model)[1]).items()}
  params = mapping.to_ours(state_dict, family)
  assert {n: x.shape for n, x in trees.named_leaves(params['model']).items()} == expected


@pytest.mark.parametrize('family', ['sit', 'lightning'])
def test_a_block_that_predicts_too_is_read_as_the_last_one(family, golden):
  """Internal guidance's SiT and LightningDiT name the layer `final_layer_xr`."""
  state_dict = family_weights.of(family, golden)
  twin = {n.replace('l_layer', 'l_layer_xr'): x for n, x in state_dict.items() if 'l_layer' in n}
  both = state_dict | twin
  params = mapping.to_ours(both, family)
  jax.tree.map(np.testing.assert_array_equal, params['model']['base'], params['model']['final'])
  assert mapping.infer_config(both, family)['base']
  again = mapping.to_torch(params, family, grid=(4, 4), **family_weights.heads(family))
  _assert_same({n: again[n] for n in twin}, twin)
  with pytest.raises(types.UserError, match='final_layer_xr.linear.bias'):
    mapping.to_ours({n: x for n, x in both.items() if n != 'final_layer_xr.linear.bias'}, family)


def test_one_family_is_not_taken_for_another(case, golden):
  family, state_dict = case
  alike = ('sit_original', 'dit')
  for other in family_weights.FAMILIES:
    if other != family and not (family in alike and other in alike):
      with pytest.raises(types.UserError, match=f'does not fit family {other!r}'):
        mapping.to_ours(state_dict, other)


def test_original_differs_from_dit_in_two_layers(golden):
  state_dict = family_weights.of('dit', golden)
  dit, original = (
    trees.named_leaves(mapping.to_ours(state_dict, family)) for family in ('dit', 'sit_original')
  )
  differing = {name for name in dit if not np.array_equal(dit[name], original[name])}
  head = {'model/final/linear/kernel', 'model/final/linear/bias'}
  assert differing == head | {'model/time_embed/fc1/kernel'}
  signs = np.array([-1] * 4 + [1] * 4)
  for name in head:
    np.testing.assert_array_equal(original[name], dit[name] * np.tile(signs, 4))


def test_sra_head(golden):
  """It gives the reference's output, and a file without it has no heads."""
  archive, state_dict = golden('sra'), family_weights.sra(golden)
  params = mapping.to_ours(state_dict, 'sra')
  width = archive['student'].shape[-1]
  head = nnx.eval_shape(lambda: heads.AlignmentHead(width, rngs=nnx.Rngs(0)))
  head = nnx.merge(nnx.split(head)[0], params['heads']['sra'])
  found = head(jnp.asarray(archive['student']))
  np.testing.assert_allclose(found, archive['ap_head_out'], rtol=0, atol=2e-5)
  teacher = {name: x for name, x in state_dict.items() if not name.startswith('ap_head')}
  assert set(mapping.to_ours(teacher, 'sra')) == {'model'}


def test_meanflow_patches_are_those_of_a_flax_convolution(golden):
  archive = golden('sit_plain')
  flat = family_weights.of('meanflow', golden)
  params = mapping.to_ours(flat, 'meanflow')['model']['patch_embed']
  x = jnp.asarray(archive['x'].transpose(0, 2, 3, 1))
  theirs = {name: flat[f'net/x_embedder/proj/{name}'] for name in ('kernel', 'bias')}
  expected = linen.Conv(64, (2, 2), strides=(2, 2)).apply({'params': theirs}, x)
  found = embed.patchify(x, 2) @ params['kernel'] + params['bias'][None, None]
  np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=0, atol=2e-5)
  np.testing.assert_allclose(found, archive['patch_tokens'], rtol=0, atol=2e-5)


def test_meanflow_feeds_its_two_clocks(golden):
  """If h_embedder has the weights of t, and t_embedder has zeros, h does what t did."""
  archive = golden('sit_plain')
  flat = family_weights.of('meanflow', golden)
  swapped = dict(flat)
  for name in [name for name in flat if '/t_embedder/' in name]:
    swapped[name.replace('/t_embedder/', '/h_embedder/')] = flat[name]
    swapped[name] = np.zeros_like(flat[name])
  architecture = config.Architecture(
    input_size=(8, 8), depth=4, width=64, heads=4, patch_size=2, num_classes=10, interval=True
  )
  graphdef = nnx.split(nnx.eval_shape(lambda: sit.SiT(architecture, rngs=nnx.Rngs(0))))[0]
  model = nnx.merge(graphdef, mapping.to_ours(swapped, 'meanflow')['model'])
  x, h = jnp.asarray(archive['x'].transpose(0, 2, 3, 1)), jnp.asarray(archive['t'])
  y = archive['y'].astype(np.int32)
  pred = jax.jit(lambda m: m(x, jnp.full_like(h, 0.7), y, h_N=h).pred)(model)
  np.testing.assert_allclose(pred.transpose(0, 3, 1, 2), archive['x_out'], rtol=0, atol=2e-5)
