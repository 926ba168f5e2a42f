"""Matrix products of tokens with kernels, [..., D] x [D, E], as all linear layers here have them.

Of a product y = x w the gradient dL/dw = x^T dL/dy is a sum over all examples, which two things
spoil. If more than one axis stands before the last, XLA copies one side transposed before the
product: so all rows are taken at once (benchmarks/NOTES.md). And JAX makes the gradient in the
dtype of w, in which the compiler adds the parts of the devices that hold the examples: in bfloat16,
each part rounded before the sum. `sum_in_float32` rounds after it. The gradient of a bias is a sum
over all rows as well, which JAX takes in bfloat16 too, and `Linear` in float32.
"""

import functools

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

OPERAND = 'operand'
"""Name of what goes into a product, in the product's dtype, for policies of `jax.checkpoint`."""

_KERNEL, _ZEROS = nnx.initializers.lecun_normal(), nnx.initializers.zeros_init()  # Flax's own.


def product(x, w, **options):
  """x [..., D] times w [D, E], over all rows; options of `jax.lax.dot_general`."""
  if w.shape[0] > w.shape[1]:
    out = jax.lax.dot_general(_flat(x), turned(w), (((1,), (1,)), ((), ())), **options)
  else:
    out = jax.lax.dot_general(_flat(x), w, _ROWS, **options)
  return out.reshape(*x.shape[:-1], w.shape[-1])


@jax.custom_jvp
def turned(x):
  """x [..., D, E] -> [..., E, D], whose gradient a CPU computes like that and turns back.

  Of a product with a tall x, XLA:CPU computes the gradient [D, E] in up to a third more time than
  its transpose (benchmarks/NOTES.md), and left alone it replaces the latter by the former.
  """
  return x.swapaxes(-1, -2)


@turned.defjvp
def _turned_jvp(primals, tangents):
  swapped = tangents[0].swapaxes(-1, -2)
  keep, leave = jax.lax.optimization_barrier, lambda x: x
  return turned(*primals), jax.lax.platform_dependent(swapped, cpu=keep, default=leave)


def rows(x, w, dimension_numbers, precision=None, preferred_element_type=None, **unused):
  """`product` as `nnx.Linear` calls it."""
  _check_plain(x, dimension_numbers, unused)
  return product(x, w, precision=precision, preferred_element_type=preferred_element_type)


class Linear(nnx.Linear):
  """`nnx.Linear` over all rows, with the gradient of its bias summed in float32 at least."""

  def __init__(
    self,
    in_features: int,
    out_features: int,
    *,
    kernel_init: nnx.Initializer = _KERNEL,
    bias_init: nnx.Initializer = _ZEROS,
    dtype: jnp.dtype | None = None,
    param_dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
  ):
    super().__init__(
      in_features,
      out_features,
      kernel_init=kernel_init,
      bias_init=bias_init,
      dtype=dtype,
      param_dtype=param_dtype,
      dot_general=rows,
      rngs=rngs,
    )

  def __call__(self, x):
    dtype = self.dtype
    x, kernel, bias = self.promote_dtype((x, self.kernel[...], self.bias[...]), dtype=dtype)
    x = checkpoint_name(x, OPERAND)
    return add_bias(self.dot_general(x, kernel, _dimensions(x)), bias)


@jax.custom_jvp
def add_bias(y, b):
  """y [..., E] + b [E], in their dtype; the gradient of b is summed in float32 at least."""
  return y + jnp.broadcast_to(b, y.shape)


@add_bias.defjvp
def _add_bias_jvp(primals, tangents):
  (y, b), (y_dot, b_dot) = primals, tangents
  if _is_narrow(b.dtype):  # Of these steps, backwards: the sum in float32, then its rounding.
    b_dot = _rounded(b_dot.astype(jnp.float32), b.dtype)
  return add_bias(y, b), y_dot + jnp.broadcast_to(b_dot, y.shape).astype(y.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def wide(x, w, dot_general=rows):
  """`product` in float32 at least, of operands that may be narrower.

  Its gradients are products in the dtype of the operands, by `dot_general` (`rows` or
  `dot_general`): JAX would make them of float32 operands.
  """
  return product(x, w, preferred_element_type=_wide_dtype(x))


def _wide_jvp(dot_general, primals, tangents):
  y = wide(*primals, dot_general)
  moving = {i: tangent for i, tangent in enumerate(tangents) if not _is_zero(tangent)}
  if not moving:
    return y, jnp.zeros_like(y)

  def narrow(*operands):
    x, w = (dict(enumerate(primals)) | dict(zip(moving, operands, strict=True))).values()
    return dot_general(x, w, _dimensions(x))

  # By the rule of `dot_general`, which has its own; the compiler drops its value.
  _, y_dot = jax.jvp(narrow, tuple(primals[i] for i in moving), tuple(moving.values()))
  return y, y_dot.astype(y.dtype)


wide.defjvp(_wide_jvp, symbolic_zeros=True)


def sum_in_float32(network: nnx.Module, devices: int) -> nnx.Module:
  """Makes the linear layers that compute in less than float32 use `dot_general`, in place.

  devices: of the mesh that the network is traced for, which need not be those that are here. On one
  device nothing is added up, and the layers stay as they are: a product in float32 would only be a
  longer array to write.
  """
  if devices > 1:
    for _, module in nnx.iter_modules(network):
      if isinstance(module, nnx.Linear) and _is_narrow(module.dtype):
        module.dot_general = dot_general
  return network


def dot_general(x, w, dimension_numbers, precision=None, **unused):
  """`rows` with a gradient towards w that is float32 until it is summed.

  Its rule is one for JVPs, so that MeanFlow can differentiate both ways.
  """
  _check_plain(x, dimension_numbers, unused)
  return _product(_flat(x), w, precision).reshape(*x.shape[:-1], w.shape[-1])


_ROWS = (((1,), (0,)), ((), ()))


def _flat(x):
  return x.reshape(-1, x.shape[-1])


def _dimensions(x):
  """Of x [..., D] times [D, E], as `jax.lax.dot_general` has them."""
  return ((x.ndim - 1,), (0,)), ((), ())


def _check_plain(x, dimension_numbers, unused):
  expected = _dimensions(x)
  if dimension_numbers != expected or any(value is not None for value in unused.values()):
    raise ValueError(f'{dimension_numbers=} and {unused}, expected those of a plain linear layer')


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _product(x, w, precision):
  return jax.lax.dot_general(x, w, _ROWS, precision=precision)


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
  summed = jax.lax.dot_general(
    x, g, (((0,), (0,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
  )
  return _rounded(summed, x.dtype).astype(x.dtype)


def _rounded(x, dtype):
  """x with the bits of a dtype, in its own.

  Before a cast to that dtype it is the same rounding twice. The compiler for TPUs moves the cast up
  through the sum over devices, which it then makes in bfloat16, but not this (libtpu 0.0.52).
  """
  found = jnp.finfo(dtype)
  return jax.lax.reduce_precision(x, found.nexp, found.nmant)


def _wide_dtype(x):
  return jnp.promote_types(x.dtype, jnp.float32)


def _is_zero(tangent):
  return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _is_narrow(dtype):
  return dtype is not None and jnp.finfo(dtype).bits < 32
