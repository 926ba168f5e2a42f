"""Matrix products whose kernel gradients are summed over devices in float32.

Of a product y = x w the gradient dL/dw = x^T dL/dy is a sum over all examples, and so over the
devices that hold them. JAX makes it in the dtype of w, and the compiler adds the devices' parts in
the dtype of that product: in bfloat16, each part rounded before the sum. Here the product leaves in
float32 and is rounded when the sum is done.
"""

import functools

from flax import nnx
import jax
import jax.numpy as jnp


def sum_in_float32(network: nnx.Module) -> nnx.Module:
  """Makes the linear layers that compute in less than float32 use `dot_general`, in place.

  On one device nothing is added up, and the layers stay as they are: a product in float32 would
  only be a longer array to write. Vectors, as biases, are added in the compute dtype.
  """
  if jax.device_count() > 1:
    for _, module in nnx.iter_modules(network):
      if isinstance(module, nnx.Linear) and _is_narrow(module.dtype):
        module.dot_general = dot_general
  return network


def dot_general(x, w, dimension_numbers, precision=None, **unused):
  """`jax.lax.dot_general` of x [..., D] and w [D, E] as `nnx.Linear` calls it.

  Its rule is one for JVPs, so that MeanFlow can differentiate both ways.
  """
  expected = (((x.ndim - 1,), (0,)), ((), ()))
  if dimension_numbers != expected or any(value is not None for value in unused.values()):
    raise ValueError(f'{dimension_numbers=} and {unused}, expected those of a plain linear layer')
  return _product(x, w, precision)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _product(x, w, precision):
  return jax.lax.dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())), precision=precision)


def _jvp(precision, primals, tangents):
  (x, w), (x_dot, w_dot) = primals, tangents
  y = _product(x, w, precision)
  moved = []
  if not _is_zero(x_dot):
    moved.append(_product(x_dot, w, precision))
  if not _is_zero(w_dot):  # Without it x may have a tangent itself, which `linear_call` refuses.
    forward = lambda x, w_dot: _product(x, w_dot, precision)
    transpose = functools.partial(_kernel_gradient, precision=precision)
    moved.append(jax.custom_derivatives.linear_call(forward, transpose, x, w_dot))
  return y, sum(moved[1:], start=moved[0]) if moved else jnp.zeros_like(y)


_product.defjvp(_jvp, symbolic_zeros=True)


def _kernel_gradient(x, g, *, precision):
  """x^T g, in float32 until the devices' parts are added."""
  every = tuple(range(x.ndim - 1))
  wide = jax.lax.dot_general(
    x, g, ((every, every), ((), ())), precision=precision, preferred_element_type=jnp.float32
  )
  return wide.astype(x.dtype)


def _is_zero(tangent):
  return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _is_narrow(dtype):
  return dtype is not None and jnp.finfo(dtype).bits < 32
