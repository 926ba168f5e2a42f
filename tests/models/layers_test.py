"""Parts of a block against the same mathematics written plainly, in float64."""

import functools

from flax import nnx
from helpers import jaxprs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import trees
from diversedit_jax.models import attention, layers, products, sit, stack

N, T, D = 2, 6, 8


def config(**fields):
  return sit.SiTConfig(
    **dict(input_size=(4, 6), depth=2, width=D, heads=2, patch_size=2, attention='xla') | fields
  )


def randomised(make, dtype=np.float64):
  """A module with random parameters and its split form; zeros and ones would hide mistakes."""
  graphdef, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
  generator = np.random.default_rng(0)
  draw = lambda x: jnp.asarray(generator.normal(size=x.shape), dtype)
  return graphdef, jax.tree.map(draw, state)


def arrays(*shapes, dtype=np.float64):
  generator = np.random.default_rng(1)
  return [jnp.asarray(generator.normal(size=shape), dtype) for shape in shapes]


def joined(fuse, x_NTD, skip_NTD):
  """(4) as it is written: one LayerNorm and one product of the concatenation."""
  both = jnp.concatenate([x_NTD, skip_NTD], axis=-1)
  both = both - jnp.mean(both, axis=-1, keepdims=True)
  both = both / jnp.sqrt(jnp.mean(both**2, axis=-1, keepdims=True) + layers.NORM_EPSILON)
  both = both * fuse.norm.scale[None, None] + fuse.norm.bias[None, None]
  return both @ fuse.linear.kernel[...] + fuse.linear.bias[None, None]


def test_fusion_without_concatenation_is_the_fusion():
  with jax.enable_x64(True):
    graphdef, state = randomised(lambda rngs: layers.Fuse(config(), rngs=rngs))
    x, skip = arrays((N, T, D), (N, T, D))
    skip = 3 * skip + 1  # Statistics of one half are not those of the other.
    loss = lambda form: lambda state, *xs: jnp.sum(jnp.sin(form(nnx.merge(graphdef, state), *xs)))
    ours = jax.value_and_grad(loss(lambda fuse, *xs: fuse(*xs)), argnums=(0, 1, 2))
    plain = jax.value_and_grad(loss(joined), argnums=(0, 1, 2))
    compared = zip(
      jax.tree.leaves(ours(state, x, skip)), jax.tree.leaves(plain(state, x, skip)), strict=True
    )
    for a, b in compared:
      np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_fusion_makes_nothing_of_twice_the_width():
  graphdef, state = randomised(lambda rngs: layers.Fuse(config(), rngs=rngs), np.float32)
  x, skip = arrays((N, T, D), (N, T, D), dtype=np.float32)
  fuse = lambda state, x, skip: jnp.sum(nnx.merge(graphdef, state)(x, skip))
  text = jax.jit(jax.grad(fuse, argnums=(0, 1, 2))).lower(state, x, skip).as_text()
  assert f'tensor<{N}x{T}x{D}xf32>' in text and f'tensor<{N}x{T}x{2 * D}xf32>' not in text


def plain_attention(q_NTHd, k_NTHd, v_NTHd):
  logits = jnp.einsum('nqhd,nkhd->nhqk', q_NTHd, k_NTHd) / np.sqrt(q_NTHd.shape[-1])
  return jnp.einsum('nhqk,nkhd->nqhd', jax.nn.softmax(logits), v_NTHd)


@pytest.mark.parametrize('size', [1.0, 100.0])
def test_xla_attention_is_attention_also_in_forward_mode(size):
  """Value, gradient and directional derivative; large logits must not overflow."""
  with jax.enable_x64(True):
    qkv, directions = arrays(*[(N, T, 2, 4)] * 3), tuple(arrays(*[(N, T, 2, 4)] * 3))
    qkv = (size * qkv[0], qkv[1], qkv[2])
    ours = lambda *qkv: attention.attend(*qkv, 'xla')
    for transform in (
      lambda f: f(*qkv),
      lambda f: jax.grad(lambda qkv: jnp.sum(jnp.sin(f(*qkv))))(qkv),
      lambda f: jax.jvp(f, qkv, directions),
    ):
      compared = zip(
        jax.tree.leaves(transform(ours)), jax.tree.leaves(transform(plain_attention)), strict=True
      )
      for a, b in compared:
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_xla_attention_in_bfloat16_is_as_good_as_jax_own():
  exact = arrays(*[(N, 64, 2, 16)] * 3, dtype=np.float32)
  half = [x.astype(jnp.bfloat16) for x in exact]
  exact = [x.astype(jnp.float32) for x in half]  # Of the rounded inputs.
  wanted = plain_attention(*exact)
  error = lambda out: float(jnp.sqrt(jnp.mean(jnp.square(out.astype(jnp.float32) - wanted))))
  ours, jax_own = attention.attend(*half, 'xla'), jax.nn.dot_product_attention(*half)
  assert ours.dtype == jnp.bfloat16
  assert error(ours) <= 1.1 * error(jax_own)


@pytest.mark.parametrize('skip', [None, stack.Skip()])
def test_casting_products_once_is_casting_at_every_use(skip):
  """In value and gradient; norms, tables and the two ends stay in float32."""
  small = config(qk_norm=True, dtype='bfloat16', skip=skip)
  graphdef, state = randomised(lambda rngs: sit.SiT(small, rngs=rngs), np.float32)
  state = jax.tree.map(lambda x: 0.3 * x, state)
  x, t, y = *arrays((N, 4, 6, 4), dtype=np.float32), jnp.asarray([0.1, 0.9]), jnp.arange(N)

  def loss(state, cast):
    return jnp.sum(jnp.sin(cast(nnx.merge(graphdef, state))(x, t, y).pred))

  once, each = (
    jax.jit(jax.value_and_grad(lambda state, cast=cast: loss(state, cast)))(state)
    for cast in (layers.cast_products, lambda model: model)
  )
  once, each = trees.named_leaves(once), trees.named_leaves(each)
  assert {leaf.dtype for leaf in once.values()} == {jnp.dtype('float32')}
  if skip is None:
    for name, leaf in once.items():
      np.testing.assert_array_equal(leaf, each[name], err_msg=name)
  else:  # Where the product is in float32, the CPU's compiler leaves out one rounding of two.
    apart = {name: leaf - each[name] for name, leaf in once.items()}
    assert trees.global_norm(apart) <= 4 * 2**-8 * trees.global_norm(each)

  cast = nnx.state(layers.cast_products(nnx.merge(graphdef, state)))
  half = {n for n, leaf in trees.named_leaves(cast).items() if leaf.dtype == jnp.bfloat16}
  linear = ('attn/qkv', 'attn/proj', 'mlp/fc1', 'mlp/fc2', 'adaln', 'fuse/linear')
  for name in trees.named_leaves(cast):
    inside = name.startswith(('blocks', 'final/adaln')) and any(f'{k}/' in name for k in linear)
    assert (name in half) == inside, name


def test_nothing_is_cast_without_a_compute_dtype():
  model = sit.SiT(config(), rngs=nnx.Rngs(0))
  assert layers.cast_products(model) is model


@pytest.mark.parametrize('skip', [None, stack.Skip()])
def test_an_unrolled_block_finds_its_statistics_and_a_loop_makes_them_anew(skip):
  counts = {}
  for unroll in (1, 4):
    model = config(depth=4, unroll=unroll, dtype='bfloat16', skip=skip)
    graphdef, state = nnx.split(nnx.eval_shape(lambda m=model: sit.SiT(m, rngs=nnx.Rngs(0))))
    loss = lambda state, x, t, y, g=graphdef: jnp.sum(nnx.merge(g, state)(x, t, y).pred)
    x, t, y = jnp.zeros((N, 4, 6, 4)), jnp.zeros(N), jnp.zeros(N, jnp.int32)
    traced = jax.make_jaxpr(jax.grad(loss))(state, x, t, y)
    counts[unroll] = sum(e.primitive.name == 'square' for e in jaxprs.equations(traced.jaxpr))
  # Of the bodies of the loops: two in each block, one of each half of a fusion; one at the end.
  forward = 2 if skip is None else 2 + 4
  assert counts == {1: 2 * forward + 1, 4: forward + 1}


def test_kernel_gradients_of_a_fusion_are_those_of_its_layer():
  """Where devices add them up, in float32, as all others."""
  make = lambda rngs: layers.Fuse(config(dtype='bfloat16'), rngs=rngs)
  graphdef, state = randomised(make, np.float32)
  x, skip = arrays((N, T, D), (N, T, D), dtype=np.float32)

  def loss(state, devices):
    fuse = products.sum_in_float32(nnx.merge(graphdef, state), devices)
    return jnp.sum(fuse(x, skip))

  for devices, dtype in ((1, 'bfloat16'), (8, 'float32')):
    made = jaxprs.products(jax.grad(functools.partial(loss, devices=devices)), state)
    of_kernel = [e.outvars[0].aval.dtype for e in made if e.outvars[0].aval.shape == (D, D)]
    assert of_kernel == [jnp.dtype(dtype)] * 2


def test_blocks_go_back_into_a_loop_only_where_the_config_leaves_it_open():
  for unroll, platform, before, after in ((0, 'gpu', 4, 1), (4, 'gpu', 4, 4), (0, '', 1, 1)):
    model = sit.SiT(config(depth=4, unroll=unroll, platform=platform), rngs=nnx.Rngs(0))
    assert model.blocks.config.blocks_per_step == before
    assert stack.looped(model).blocks.config.blocks_per_step == after
    arguments = jnp.zeros((N, 4, 6, 4)), jnp.zeros(N), jnp.zeros(N, jnp.int32)
    (scan,) = [
      e
      for e in jaxprs.equations(jax.make_jaxpr(model)(*arguments).jaxpr)
      if e.primitive.name == 'scan'
    ]
    assert scan.params['unroll'] == after
