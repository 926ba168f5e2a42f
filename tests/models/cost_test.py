"""FLOPs and bytes: published numbers, the traced program, the compiler's own count."""

import math

from flax import nnx
from helpers import networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax.models import config as config_lib
from diversedit_jax.models import config_parts, cost, sizes
from diversedit_jax.models import networks as networks_lib


def xl(pixels, **fields):
  """SiT-XL/2 for pictures of that size: latents of an eighth, 4 channels."""
  return sizes.architecture('XL/2', input_size=(pixels // 8, pixels // 8), **fields)


def small(**fields):
  defaults = dict(
    input_size=(8, 8), channels=3, num_classes=5, depth=4, width=16, heads=2, patch_size=2
  )
  return networks.parts(**(defaults | fields))


def abstract(parts, n):
  """(model state, x, t, y) as shapes, and the graph definition."""
  graphdef, state = nnx.split(nnx.eval_shape(lambda: networks_lib.make(*parts, rngs=nnx.Rngs(0))))
  x = jax.ShapeDtypeStruct((n, *parts[0].shape), jnp.float32)
  t, y = (jax.ShapeDtypeStruct((n,), d) for d in (jnp.float32, jnp.int32))
  return graphdef, (state, x, t, y)


def equations(jaxpr, times=1):
  """(equation, how often it runs) of a jaxpr and all it calls; a scan repeats its body."""
  for equation in jaxpr.eqns:
    yield equation, times
    inside = times * equation.params.get('length', 1)
    name, values = equation.primitive.name, list(equation.params.values())
    if equation.params.get('branches_platforms'):  # The program is lowered with one of them.
      values = [equation.params['branches'][0]]
    else:
      assert name not in ('while', 'cond'), 'how often it runs is not known'
    for value in values:
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from equations(inner, inside)


def dot_flops(closed):
  """2 x multiply-adds of all matrix products."""
  total = 0
  for equation, times in equations(closed.jaxpr):
    if equation.primitive.name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      left = equation.invars[0].aval.shape
      inner = math.prod(left[axis] for axis in contracted)
      total += times * 2 * math.prod(equation.outvars[0].aval.shape) * inner
  return total


@pytest.mark.parametrize(
  ('pixels', 'tokens', 'published_gmac'), [(256, 256, 118.621), (512, 1024, 524.538)]
)
def test_xl2_costs_what_dit_publishes(pixels, tokens, published_gmac):
  architecture = xl(pixels)
  assert architecture.tokens == tokens
  # DiT's head also predicts 4 channels of variance: 4 more values for each of the 2 x 2 pixels of a
  # token, D multiply-adds each. SiT drops them.
  wider_head_gmac = tokens * 1152 * 4 * 4 / 1e9
  # The published numbers have three decimals.
  np.testing.assert_allclose(
    cost.forward_flops(architecture) / 2e9 + wider_head_gmac, published_gmac, atol=6e-4, rtol=0
  )


@pytest.mark.parametrize('placement', config_parts.SKIP_PLACEMENTS)
def test_every_long_skip_costs_one_product_of_2d_by_d(placement):
  with_skips, without = xl(256, skip=config_lib.Skip(enabled=True, placement=placement)), xl(256)
  more = cost.forward_flops(with_skips) - cost.forward_flops(without)
  assert more == 14 * 2 * 256 * (2 * 1152) * 1152


@pytest.mark.parametrize(
  'fields',
  [
    {},
    dict(depth=3),
    dict(skip=networks.SKIP),
    dict(unroll=4),
    dict(mlp_ratio=2.5),
    dict(input_size=(4, 12), patch_size=4, qk_norm=True),
    dict(num_classes=0, heads=4),
    dict(dtype='bfloat16'),
    dict(block='lightning', qk_norm=True),
    dict(block='ddt', head=config_lib.Head(depth=2, width=24), skip=networks.SKIP),
    dict(block='sit', head=config_lib.Head(depth=1)),
    dict(block='raev2', head=config_lib.Head(depth=1, width=32, heads=4), skip=networks.SKIP),
  ],
)
def test_forward_flops_are_the_products_of_the_traced_model(fields):
  parts, n = small(**fields), 3
  graphdef, arguments = abstract(parts, n)
  forward = lambda state, x, t, y: nnx.merge(graphdef, state)(x, t, y).pred
  # Only matrix products are counted, on both sides: the numbers are equal.
  assert dot_flops(jax.make_jaxpr(forward)(*arguments)) == n * cost.forward_flops(parts[0])


@pytest.mark.parametrize(('remat', 'passes'), [('none', 3), ('full', 4)])
def test_training_flops_are_three_forward_passes_and_four_with_full_remat(remat, passes):
  parts = small(depth=8, width=64, remat=remat)
  graphdef, arguments = abstract(parts, 2)
  counted = cost.cost(*parts)
  assert counted.training == passes * counted.forward
  loss = lambda state, x, t, y: jnp.sum(nnx.merge(graphdef, state)(x, t, y).pred)
  traced = dot_flops(jax.make_jaxpr(jax.grad(loss))(*arguments)) / 2
  # Gradients towards x and t do not exist, and the ends are not recomputed: a little less.
  assert 0.97 * counted.training < traced <= counted.training


def test_parameters_of_xl_are_those_that_dit_counts():
  counted = cost.cost(xl(256), config_lib.Execution(dtype='bfloat16'))
  # 675,111,184 by DiT's count, less its fixed table of positions.
  assert counted.parameters == 675_111_184 - 256 * 1152


def test_parameters_of_a_wide_head_are_those_of_rae():
  """DiT^DH-XL on latents of DINOv2-B, 839 M by the paper (2510.11690), with a fixed table."""
  architecture = config_lib.Architecture(
    input_size=(16, 16),
    channels=768,
    depth=28,
    width=1152,
    heads=16,
    patch_size=1,
    block='ddt',
    head=config_lib.Head(depth=2, width=2048, heads=16),
  )
  counted = cost.cost(architecture, config_lib.Execution())
  assert round((counted.parameters + 256 * 1152) / 1e6) == 839


@pytest.mark.parametrize('attention', ['cudnn@80', 'cudnn'])
def test_a_wide_head_is_planned_with_the_attention_that_it_will_have(attention):
  plain = xl(256)
  wide = xl(256, head=config_lib.Head(depth=2, width=2048, heads=16))
  how = config_lib.Execution(dtype='bfloat16', attention=attention, platform='gpu')
  for bytes_of in (cost.activation_bytes, cost.postponed_bytes):
    assert bytes_of(wide, how) > bytes_of(plain, how)
  assert cost.encoder_flops(plain) == cost.forward_flops(plain)
  assert cost.encoder_flops(wide) < cost.forward_flops(wide)


# By the compiler for an H200, XL/2 at 256 pixels without a loop over blocks, cuDNN attention, bytes
# of the step at batch 128 less those at batch 64 or less the constant part (benchmarks/ahead.py).
GIB_OF_64 = {'none': 20.0, 'dots': 11.4, 'names': 10.4, 'full': 2.8}


@pytest.mark.parametrize('remat', GIB_OF_64)
def test_activation_estimate_is_the_compilers_for_a_gpu(remat):
  execution = config_lib.Execution(dtype='bfloat16', remat=remat, platform='gpu')
  estimate = 64 * cost.activation_bytes(xl(256), execution) / 2**30
  np.testing.assert_allclose(estimate, GIB_OF_64[remat], rtol=0.15)


# By the compiler for eight H200s, XL/2's shapes with 32 examples of 1,024 tokens on each: GiB of
# temporaries with 8 blocks, less those with 4; of those with 4 where blocks are computed again.
GIB_OF_FOUR_BLOCKS = {
  (networks.SKIP, 'none', (4, 8)): 18.05 - 9.47,
  (networks.NO_SKIP, 'none', (4, 8)): 15.37 - 7.88,
  (networks.SKIP, 'names', (0, 4)): 8.65,
}


@pytest.mark.parametrize(('skip', 'remat', 'depths'), GIB_OF_FOUR_BLOCKS)
def test_what_waits_for_gradients_of_others_is_the_compilers_for_gpus(skip, remat, depths):
  execution = config_lib.Execution(dtype='bfloat16', platform='gpu', remat=remat)
  shapes = dict(input_size=(64, 64), channels=4, num_classes=1000, width=1152, heads=16)
  of = lambda depth: cost.postponed_bytes(
    config_lib.Architecture(depth=depth, patch_size=2, skip=skip, **shapes), execution
  )
  few, many = (of(depth) if depth else 0 for depth in depths)
  expected = GIB_OF_FOUR_BLOCKS[skip, remat, depths]
  np.testing.assert_allclose(32 * (many - few) / 2**30, expected, rtol=0.15)


@pytest.mark.parametrize('skip', [networks.NO_SKIP, networks.SKIP])
def test_activation_estimate_is_within_a_factor_of_two_of_the_compiler(skip):
  """The whole working memory of a compiled gradient, on the CPU and so in float32 only."""
  parts, n = small(input_size=(16, 16), channels=4, width=128, heads=4, skip=skip), 8
  assert parts[0].tokens == 64
  graphdef, arguments = abstract(parts, n)
  loss = lambda state, x, t, y: jnp.mean(nnx.merge(graphdef, state)(x, t, y).pred ** 2)
  compiled = jax.jit(jax.grad(loss)).lower(*arguments).compile()
  ratio = n * cost.activation_bytes(*parts) / compiled.memory_analysis().temp_size_in_bytes
  assert 0.5 < ratio < 2, ratio
