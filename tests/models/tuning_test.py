"""What is done for compilers changes no value, and is seen in the traced program."""

import dataclasses
import functools

from flax import nnx
from helpers import jaxprs, networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import trees
from diversedit_jax.models import linear, sit, tuning

N, T, D, E = 3, 5, 8, 6
WIDE = 512  # Rows that share lines of a CPU's cache.
SIZES = dict(input_size=(4, 4), depth=4, width=16, heads=2, patch_size=2, num_classes=3)


def plain(x, w):
  return jax.lax.dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())))


def narrow(x, w):
  """The product of narrow dtypes, in whatever dtype."""
  return tuning._narrow_matmul(x.reshape(-1, D), w).reshape(*x.shape[:-1], w.shape[-1])


def draw(*shape, dtype=np.float64):
  return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), dtype)


def layer(**options):
  return linear.Linear(D, E, (None, None), rngs=nnx.Rngs(0), **options)


def network(**fields):
  """(graphdef, random state) of a small model."""
  parts = networks.parts(**SIZES | {'attention': 'xla'} | fields)
  graphdef, state = nnx.split(nnx.eval_shape(lambda: sit.SiT(*parts, rngs=nnx.Rngs(0))))
  generator = np.random.default_rng(0)
  noise = lambda x: jnp.asarray(0.2 * generator.standard_normal(x.shape), np.float32)
  return graphdef, jax.tree.map(noise, state)


def inputs(n=N):
  return draw(n, 4, 4, 4, dtype=np.float32), jnp.linspace(0.1, 0.9, n), jnp.arange(n)


@pytest.mark.parametrize(
  ('product', 'e'), [(tuning.matmul, E), (tuning.matmul, 10), (tuning.matmul, WIDE), (narrow, E)]
)
@pytest.mark.parametrize('shape', [(N, D), (N, T, D)])
def test_derivatives_are_those_of_the_product(shape, product, e):
  """In float64: value, gradient, tangent, and the gradient of a value and its tangent in x."""
  rtol = 1e-6 if product is narrow else 1e-12  # The former takes float32 in between.
  with jax.enable_x64(True):
    x, w, x_dot = draw(*shape), draw(D, e), draw(*shape[::-1]).T

    def both(product, x, w):
      y, y_dot = jax.jvp(lambda x: product(jnp.sin(x), w), (x,), (x_dot,))
      return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.square(y_dot))

    for function in (
      lambda product: product(x, w),
      lambda product: jax.grad(lambda x, w: jnp.sum(jnp.sin(product(x, w))), (0, 1))(x, w),
      lambda product: jax.jvp(product, (x, w), (x_dot, w)),
      lambda product: jax.grad(lambda x, w: both(product, x, w), (0, 1))(x, w),
    ):
      ours, expected = function(product), function(plain)
      for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol)


def test_all_rows_are_one_axis_of_the_kernel_gradient():
  """With two, XLA copies one side transposed."""
  for dtype in ('float32', 'bfloat16'):
    x, w = draw(N, T, D, dtype=dtype), draw(D, E, dtype=dtype)
    for product, axes in ((plain, 2), (tuning.matmul, 1)):
      (made,) = jaxprs.products(jax.grad(lambda w, p=product, x=x: jnp.sum(p(x, w))), w)[-1:]
      (left, right), _ = made.params['dimension_numbers']
      assert len(left) == len(right) == axes and set(made.outvars[0].aval.shape) == {D, E}


@pytest.mark.parametrize(('d', 'e'), [(D, E), (E, D), (D, WIDE)])
def test_gradients_of_some_kernels_are_computed_transposed(d, e):
  """Tall ones, and one side of wide ones, which the compiler keeps for the sake of a barrier.

  Elsewhere than on a CPU there is none.
  """
  x, w = draw(N * T, d, dtype=np.float32), draw(d, e, dtype=np.float32)
  gradient = jax.grad(lambda w: jnp.sum(jnp.square(tuning.matmul(x, w))))
  made = jaxprs.products(gradient, w)[-1].outvars[0].aval.shape
  assert made == (e, d)
  for platform in ('cpu', 'cuda', 'tpu'):
    text = jax.jit(gradient).trace(w).lower(lowering_platforms=(platform,)).as_text()
    assert ('optimization_barrier' in text) == (platform == 'cpu' and (d > e or e == WIDE))


def test_parts_of_an_axis_come_back_as_a_concatenation():
  """A sum of padded parts asks at each place which part it is in."""
  y = draw(N, T, 2, E, dtype=np.float32)
  np.testing.assert_array_equal(jnp.stack(tuning.taken_apart(y), axis=2), y)
  parts, back = jax.vjp(tuning.taken_apart, y)
  text = jax.jit(back).lower(parts).as_text()
  assert 'stablehlo.pad' not in text and 'concatenate' in text


def test_kernel_gradients_leave_the_product_in_float32_and_are_rounded_once():
  """A second rounding, for the compiler for TPUs, changes no bit."""
  x, w = draw(64, D, dtype=jnp.bfloat16), draw(D, E, dtype=jnp.bfloat16)
  loss = lambda x, w: jnp.sum(jnp.sin(tuning.matmul(x, w).astype(jnp.float32)))
  made = jaxprs.products(jax.grad(loss, (0, 1)), x, w)
  dtypes = {e.outvars[0].aval.shape: str(e.outvars[0].aval.dtype) for e in made}
  assert dtypes == {(64, E): 'bfloat16', (64, D): 'bfloat16', (D, E): 'float32'}
  g = jax.grad(lambda y: jnp.sum(jnp.sin(y.astype(jnp.float32))))(tuning.matmul(x, w))
  once = jnp.einsum('nd,ne->de', x, g, preferred_element_type=jnp.float32).astype(jnp.bfloat16)
  np.testing.assert_array_equal(jax.grad(loss, 1)(x, w), once)


def test_the_gradient_of_a_bias_is_summed_in_float32():
  """Where 65,536 rows add up, the 8 bits of bfloat16 would lose all but the largest."""
  graphdef, params = nnx.split(layer(dtype=jnp.bfloat16))
  x = draw(N, T, D, dtype=jnp.bfloat16)
  loss = lambda params: jnp.sum(nnx.merge(graphdef, params)(x) ** 2)
  sums = [
    e.invars[0].aval
    for e in jaxprs.equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
    if e.primitive.name == 'reduce_sum' and e.outvars[0].aval.shape == (E,)
  ]
  assert [(a.shape, a.dtype) for a in sums] == [((N, T, E), jnp.dtype('float32'))]


def test_a_layer_is_the_linear_layer_of_flax_with_its_derivatives():
  """In float64, in forward mode too and of a gradient through a tangent."""
  with jax.enable_x64(True):
    x, x_dot = draw(N, T, D), draw(T, N, D).swapaxes(0, 1)
    ours, flax = layer(), nnx.Linear(D, E, rngs=nnx.Rngs(0))
    for made in (ours, flax):
      made.kernel, made.bias = nnx.Param(draw(D, E)), nnx.Param(draw(E))

    def found(layer):
      graphdef, params = nnx.split(layer)
      call = lambda params, x: nnx.merge(graphdef, params)(jnp.sin(x))
      tangent = lambda params, x: jax.jvp(call, (params, x), (params, x_dot))[1]
      objective = lambda params, x: jnp.sum(jnp.sin(call(params, x)) + tangent(params, x) ** 2)
      return call(params, x), tangent(params, x), jax.grad(objective, (0, 1))(params, x)

    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found(ours), found(flax)
    )


def test_gradients_of_each_example():
  """As some analyses of training ask for them."""
  (graphdef, params), (x, t, y) = network(skip=networks.SKIP), inputs()

  def loss(params, x, t, y):
    return jnp.mean(nnx.merge(graphdef, params)(x[None], t[None], y[None]).pred ** 2)

  each = jax.vmap(jax.grad(loss), (None, 0, 0, 0))(params, x, t, y)
  mean = jax.grad(lambda p: jnp.mean(jax.vmap(loss, (None, 0, 0, 0))(p, x, t, y)))(params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a.mean(0), b, rtol=1e-4, atol=1e-6), each, mean
  )


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('unroll', [1, 4])
def test_the_backward_pass_makes_no_product_again(unroll, dtype):
  """It finds those of the forward pass; without a loop also the statistics of normalisations."""
  graphdef, state = network(skip=networks.SKIP, unroll=unroll, dtype=dtype)
  loss = lambda state, *batch: jnp.sum(nnx.merge(graphdef, state)(*batch).pred ** 2)
  traced = jax.make_jaxpr(jax.grad(loss))(state, *inputs())
  made = [e.primitive.name for e in jaxprs.equations(traced.jaxpr)]
  forward = [
    e.primitive.name for e in jaxprs.equations(jax.make_jaxpr(loss)(state, *inputs()).jaxpr)
  ]
  # One gradient for each of the two factors, but of the network's inputs.
  inputs_of_the_network = 2
  assert made.count('dot_general') == 3 * forward.count('dot_general') - inputs_of_the_network
  # One for each normalisation; that of the last layer is not in a block.
  again = forward.count('square') - 1 if unroll == 1 else 0
  assert made.count('square') - forward.count('square') == again


def test_the_backward_pass_runs_no_fused_attention_again():
  """One kernel forwards, and two of the gradient."""
  fields = dict(input_size=(32, 32), width=128, attention='flash', platform='tpu')
  graphdef, state = network(dtype='bfloat16', **fields)
  x, t, y = jnp.zeros((N, 32, 32, 4)), jnp.zeros(N), jnp.zeros(N, jnp.int32)
  loss = lambda state: jnp.sum(nnx.merge(graphdef, state)(x, t, y).pred ** 2)
  traced = jax.make_jaxpr(jax.grad(loss))(state)
  made = [e.primitive.name for e in jaxprs.equations(traced.jaxpr)]
  assert made.count('pallas_call') == 3


@pytest.mark.parametrize('skip', [networks.NO_SKIP, networks.SKIP])
def test_casting_products_once_is_casting_at_every_use(skip):
  """In value and gradient; norms, tables and the two ends stay in float32."""
  graphdef, state = network(qk_norm=True, dtype='bfloat16', skip=skip)
  loss = lambda state, cast: jnp.sum(jnp.sin(cast(nnx.merge(graphdef, state))(*inputs()).pred))
  once, each = (
    jax.jit(jax.value_and_grad(functools.partial(loss, cast=cast)))(state)
    for cast in (tuning.cast_products, lambda model: model)
  )
  once, each = trees.named_leaves(once), trees.named_leaves(each)
  assert {leaf.dtype for leaf in once.values()} == {jnp.dtype('float32')}
  for name, leaf in once.items():
    np.testing.assert_array_equal(leaf, each[name], err_msg=name)

  cast = nnx.state(tuning.cast_products(nnx.merge(graphdef, state)))
  half = {n for n, leaf in trees.named_leaves(cast).items() if leaf.dtype == jnp.bfloat16}
  products = ('attn/qkv', 'attn/proj', 'mlp/fc1', 'mlp/fc2', 'adaln', 'fuse/linear')
  for name in trees.named_leaves(cast):
    inside = name.startswith(('blocks', 'final/adaln')) and any(f'{k}/' in name for k in products)
    assert (name in half) == inside, name


def test_sampling_loops_over_blocks_only_where_the_config_leaves_it_open():
  for unroll, platform, before, after in ((0, 'gpu', 4, 1), (4, 'gpu', 4, 4), (0, '', 1, 1)):
    model = nnx.merge(*network(unroll=unroll, platform=platform))
    sampled = tuning.for_sampling(model)
    for network_, expected in ((model, before), (sampled, after)):
      jaxpr = jax.make_jaxpr(network_)(*inputs()).jaxpr
      (scan,) = [e for e in jaxprs.equations(jaxpr) if e.primitive.name == 'scan']
      assert scan.params['unroll'] == expected
    same = dataclasses.replace(model.execution, unroll=sampled.execution.unroll)
    assert sampled.execution == same
