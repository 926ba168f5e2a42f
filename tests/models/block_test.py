"""Parts of a block against the same mathematics written plainly, in float64."""

from flax import nnx
from helpers import networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax.models import attention, block

N, T, D = 2, 6, 8
ARCHITECTURE, EXECUTION = networks.parts(
  input_size=(4, 6), depth=2, width=D, heads=2, patch_size=2, attention='xla'
)


def randomised(make):
  return networks.randomised(make, scale=1.0, dtype='float64')


def arrays(*shapes, dtype=np.float64):
  generator = np.random.default_rng(1)
  return [jnp.asarray(generator.normal(size=shape), dtype) for shape in shapes]


def layer_norm(x_NTD, epsilon):
  centred = x_NTD - x_NTD.mean(-1, keepdims=True)
  return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)


def linear(layer, x):
  return np.tensordot(x, np.asarray(layer.kernel[...]), 1) + np.asarray(layer.bias[...])


def plain_attention(q_NTHd, k_NTHd, v_NTHd):
  logits = jnp.einsum('nqhd,nkhd->nhqk', q_NTHd, k_NTHd) / np.sqrt(q_NTHd.shape[-1])
  return jnp.einsum('nhqk,nkhd->nqhd', jax.nn.softmax(logits), v_NTHd)


def test_a_block_is_its_equations():
  with jax.enable_x64(True):
    ours = randomised(lambda rngs: block.Block(ARCHITECTURE, EXECUTION, rngs=rngs))
    x, c = (np.asarray(a) for a in arrays((N, T, D), (N, D)))
    parts = linear(ours.adaln, c / (1 + np.exp(-c)))[:, None]
    s1, k1, g1, s2, k2, g2 = np.split(parts, 6, axis=-1)
    qkv = linear(ours.attn.qkv, layer_norm(x, 1e-6) * (1 + k1) + s1)
    attended = plain_attention(*(qkv[:, :, i].reshape(N, T, 2, D // 2) for i in range(3)))
    wanted = x + g1 * linear(ours.attn.proj, np.asarray(attended).reshape(N, T, D))
    hidden = linear(ours.mlp.fc1, layer_norm(wanted, 1e-6) * (1 + k2) + s2)
    hidden = hidden / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    wanted = wanted + g2 * linear(ours.mlp.fc2, hidden)
    np.testing.assert_allclose(ours(x, c), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('epsilon', [1e-6, 10.0])
def test_a_fusion_is_its_equation_with_its_own_modules(epsilon):
  with jax.enable_x64(True):
    fuse = randomised(lambda rngs: block.Fuse(ARCHITECTURE, EXECUTION, rngs=rngs))
    fuse.norm.epsilon = epsilon
    x, skip = (np.asarray(a) for a in arrays((N, T, D), (N, T, D)))
    skip = 3 * skip + 1  # Statistics of one half are not those of the other.
    both = layer_norm(np.concatenate([x, skip], axis=-1), epsilon)
    both = both * np.asarray(fuse.norm.scale[...]) + np.asarray(fuse.norm.bias[...])
    np.testing.assert_allclose(fuse(x, skip), linear(fuse.linear, both), rtol=1e-10, atol=1e-10)
    fuse.norm = lambda both: 2 * both
    doubled = linear(fuse.linear, 2 * np.concatenate([x, skip], axis=-1))
    np.testing.assert_allclose(fuse(x, skip), doubled, rtol=1e-10, atol=1e-10)


def test_a_residual_fusion_adds_to_x_what_the_other_would_replace_it_by():
  with jax.enable_x64(True):
    fuse = randomised(lambda rngs: block.ResidualFuse(ARCHITECTURE, EXECUTION, rngs=rngs))
    plain = randomised(lambda rngs: block.Fuse(ARCHITECTURE, EXECUTION, rngs=rngs))
    fuse.norm, fuse.update = plain.norm, plain.linear
    x, skip = arrays((N, T, D), (N, T, D))
    np.testing.assert_allclose(fuse(x, skip), x + plain(x, skip), rtol=1e-12, atol=1e-12)
  fresh = block.ResidualFuse(ARCHITECTURE, EXECUTION, rngs=nnx.Rngs(0))
  x, skip = arrays((N, T, D), (N, T, D), dtype=np.float32)
  np.testing.assert_array_equal(fresh(x, skip), x)


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
  exact = [x.astype(jnp.float32) for x in half]  # The rounded inputs, held exactly.
  wanted = plain_attention(*exact)
  error = lambda out: float(jnp.sqrt(jnp.mean(jnp.square(out.astype(jnp.float32) - wanted))))
  ours, jax_own = attention.attend(*half, 'xla'), jax.nn.dot_product_attention(*half)
  assert ours.dtype == jnp.bfloat16
  assert error(ours) <= 1.1 * error(jax_own)
