"""Looks into traced functions: which products they make, and what those cost."""

import math

import jax


def equations(jaxpr):
  """All equations, those of loops and of functions within included once each."""
  for eqn in jaxpr.eqns:
    yield eqn
    for value in eqn.params.values():
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from equations(inner)


def products(function, *args):
  """Convolutions and matrix products of a function, as jaxpr equations."""
  made = equations(jax.make_jaxpr(function)(*args).jaxpr)
  return [e for e in made if e.primitive.name in ('conv_general_dilated', 'dot_general')]


def flops(equations):
  """FLOPs of products without feature groups, a multiply-add being 2."""
  total = 0
  for eqn in equations:
    kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
    if eqn.primitive.name == 'dot_general':
      (axes, _), _ = eqn.params['dimension_numbers']
      terms = math.prod(eqn.invars[0].aval.shape[axis] for axis in axes)
    else:
      terms = math.prod(kernel[:3])
    total += 2 * terms * math.prod(out)
  return float(total)
