"""Products over all rows, and those whose kernel gradients are float32 until they are summed."""

import dataclasses

from flax import nnx
from helpers import jaxprs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax.models import layers, products, sit, stack

N, T, D, E = 3, 5, 8, 6
CONFIG = sit.SiTConfig(
  input_size=(4, 4),
  depth=2,
  width=16,
  heads=2,
  patch_size=2,
  num_classes=3,
  dtype='bfloat16',
  skip=stack.Skip(),
  remat='full',
  attention='xla',
)


def plain(x, w):
  return jax.lax.dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())))


def wide(x, w):
  return products.dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())))


def draw(*shape, dtype=np.float64):
  return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), dtype)


@pytest.mark.parametrize(
  ('product', 'e'), [(products.product, E), (products.product, 10), (wide, E)]
)
@pytest.mark.parametrize('shape', [(N, D), (N, T, D)])
def test_derivatives_are_those_of_the_product(shape, product, e):
  """In float64: value, gradient, tangent, and the gradient of a value and its tangent in x."""
  rtol = 1e-6 if product is wide else 1e-12  # The former takes float32 in between.
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
  x, w = draw(N, T, D, dtype=np.float32), draw(D, E, dtype=np.float32)
  for product, axes in ((plain, 2), (products.product, 1), (wide, 1)):
    (made,) = jaxprs.products(jax.grad(lambda w, p=product: jnp.sum(p(x, w))), w)[-1:]
    (left, right), _ = made.params['dimension_numbers']
    assert len(left) == len(right) == axes and set(made.outvars[0].aval.shape) == {D, E}


@pytest.mark.parametrize(('d', 'e'), [(D, E), (E, D)])
def test_gradients_of_tall_kernels_are_computed_turned(d, e):
  """Which the compiler keeps for the sake of a barrier; elsewhere than on a CPU there is none."""
  x, w = draw(N * T, d, dtype=np.float32), draw(d, e, dtype=np.float32)
  gradient = jax.grad(lambda w: jnp.sum(jnp.square(products.product(x, w))))
  made = jaxprs.products(gradient, w)[-1].outvars[0].aval.shape
  assert made == (e, d)
  for platform in ('cpu', 'cuda', 'tpu'):
    text = jax.jit(gradient).trace(w).lower(lowering_platforms=(platform,)).as_text()
    assert ('optimization_barrier' in text) == (platform == 'cpu' and d > e)


def test_products_of_many_kernels_at_once():
  """As gradients of each example."""
  x, w = draw(N, T, D, dtype=np.float32), draw(N, D, E, dtype=np.float32)
  gradient = lambda product: jax.vmap(jax.grad(lambda w, x: jnp.sum(jnp.sin(product(x, w)))))(w, x)
  np.testing.assert_allclose(gradient(products.product), gradient(plain), rtol=1e-5)


def test_kernel_gradients_leave_the_product_in_float32():
  """And only they."""
  x, w = draw(N, T, D, dtype=jnp.bfloat16), draw(D, E, dtype=jnp.bfloat16)
  for product, last in ((products.product, 'bfloat16'), (wide, 'float32')):
    made = jaxprs.products(jax.grad(lambda x, w, p=product: jnp.sum(p(x, w) ** 2), (0, 1)), x, w)
    of_kernel = [e.outvars[0].aval.dtype for e in made if set(e.outvars[0].aval.shape) == {D, E}]
    others = {e.outvars[0].aval.dtype for e in made if N * T in e.outvars[0].aval.shape}
    assert of_kernel == [last] and others == {jnp.dtype('bfloat16')}


def test_the_gradient_of_a_bias_is_summed_in_float32():
  """Where 65,536 rows add up, the 8 bits of bfloat16 would lose all but the largest."""
  layer = products.Linear(D, E, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  graphdef, params = nnx.split(layer)
  x = draw(N, T, D, dtype=jnp.bfloat16)
  loss = lambda params: jnp.sum(nnx.merge(graphdef, params)(x) ** 2)
  sums = [
    e.invars[0].aval
    for e in jaxprs.equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
    if e.primitive.name == 'reduce_sum' and e.outvars[0].aval.shape == (E,)
  ]
  assert [(a.shape, a.dtype) for a in sums] == [((N, T, E), jnp.dtype('float32'))]


@pytest.mark.parametrize(
  ('dot_general', 'kernel'), [(products.rows, 'bfloat16'), (products.dot_general, 'float32')]
)
def test_a_wide_product_has_narrow_gradients(dot_general, kernel):
  """Forwards float32 of bfloat16; backwards products of bfloat16, as those of other layers."""
  x, w = draw(N, T, D, dtype=jnp.bfloat16), draw(D, E, dtype=jnp.bfloat16)
  loss = lambda x, w: jnp.sum(products.wide(x, w, dot_general) ** 2)
  forward, *backward = jaxprs.products(jax.grad(loss, (0, 1)), x, w)
  assert forward.outvars[0].aval.dtype == jnp.float32
  assert {v.aval.dtype for e in backward for v in e.invars} == {jnp.dtype('bfloat16')}
  of_kernel, of_x = (
    [e.outvars[0].aval.dtype for e in backward if (N * T in e.outvars[0].aval.shape) == is_x]
    for is_x in (False, True)
  )
  # Beside the gradient towards x a narrow product that nothing uses, which the compiler drops.
  assert of_kernel == [jnp.dtype(kernel)] and set(of_x) == {jnp.dtype('bfloat16')}


def test_gradients_of_each_example():
  """As some analyses of training ask for them."""
  config = dataclasses.replace(CONFIG, dtype='float32', remat='none')
  graphdef, params = nnx.split(sit.SiT(config, rngs=nnx.Rngs(0)))
  noise = lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape)
  params = jax.tree.map(noise, params)
  x, t, y = draw(N, 4, 4, 4, dtype=np.float32), jnp.linspace(0.1, 0.9, N), jnp.arange(N)

  def loss(params, x, t, y):
    return jnp.mean(nnx.merge(graphdef, params)(x[None], t[None], y[None]).pred ** 2)

  each = jax.vmap(jax.grad(loss), (None, 0, 0, 0))(params, x, t, y)
  mean = jax.grad(lambda p: jnp.mean(jax.vmap(loss, (None, 0, 0, 0))(p, x, t, y)))(params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a.mean(0), b, rtol=1e-4, atol=1e-6), each, mean
  )


def test_a_layer_is_the_linear_layer_of_flax_with_its_derivatives():
  """In float64, in forward mode too and of a gradient through a tangent."""
  with jax.enable_x64(True):
    x, x_dot = draw(N, T, D), draw(T, N, D).swapaxes(0, 1)
    ours = products.Linear(D, E, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    flax = nnx.Linear(D, E, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    ours.bias[...] = flax.bias[...] = draw(E)

    def found(layer):
      graphdef, params = nnx.split(layer)
      call = lambda params, x: nnx.merge(graphdef, params)(jnp.sin(x))
      tangent = lambda params, x: jax.jvp(call, (params, x), (params, x_dot))[1]
      objective = lambda params, x: jnp.sum(jnp.sin(call(params, x)) + tangent(params, x) ** 2)
      return call(params, x), tangent(params, x), jax.grad(objective, (0, 1))(params, x)

    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found(ours), found(flax)
    )


def test_kernel_gradients_are_rounded_once():
  """A second rounding, for the compiler for TPUs, changes no bit."""
  x, w = draw(64, D, dtype=jnp.bfloat16), draw(D, E, dtype=jnp.bfloat16)
  made = jax.grad(lambda w: jnp.sum(jnp.sin(wide(x, w).astype(jnp.float32))))(w)
  g = jax.grad(lambda y: jnp.sum(jnp.sin(y.astype(jnp.float32))))(products.product(x, w))
  once = jnp.einsum('nd,ne->de', x, g, preferred_element_type=jnp.float32).astype(jnp.bfloat16)
  np.testing.assert_array_equal(made, once)


@pytest.mark.parametrize(
  ('devices', 'dtype', 'used'), [(8, 'bfloat16', 6), (1, 'bfloat16', 0), (8, 'float32', 0)]
)
def test_a_network_uses_them_where_parts_are_rounded_and_added(devices, dtype, used):
  """Whatever is here, which is one device."""
  make = lambda: sit.SiT(dataclasses.replace(CONFIG, dtype=dtype, skip=None), rngs=nnx.Rngs(0))
  network = products.sum_in_float32(nnx.eval_shape(make), devices)
  linear = [m for _, m in nnx.iter_modules(network) if isinstance(m, nnx.Linear)]
  # Of the stack qkv, proj, fc1, fc2 and adaln; of the last layer its adaln.
  assert sum(m.dot_general is products.dot_general for m in linear) == used < len(linear)


def test_gradients_of_a_network_move_by_roundings_alone():
  """With long skips, scans and recomputation."""
  network = nnx.eval_shape(lambda: sit.SiT(CONFIG, rngs=nnx.Rngs(0)))
  graphdef, state = nnx.split(network)
  generator = np.random.default_rng(0)
  state = jax.tree.map(lambda x: 0.2 * generator.standard_normal(x.shape, np.float32), state)
  x, t, y = draw(2, 4, 4, 4, dtype=np.float32), jnp.asarray([0.1, 0.9]), jnp.arange(2)

  def loss(state, change):
    network = change(layers.cast_products(nnx.merge(graphdef, state)))
    return jnp.mean(jnp.square(network(x, t, y).pred))

  ours, expected = (
    jax.jit(jax.grad(lambda state, change=change: loss(state, change)))(state)
    for change in (lambda network: products.sum_in_float32(network, 8), lambda network: network)
  )
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    assert np.linalg.norm(a - b) <= 4 * 2**-8 * np.linalg.norm(b)
