"""The heads: reference values, and as many parameters as the released models have."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import trees
from diversedit_jax.models import heads


def test_alignment_head_matches_reference(golden):
  g = golden('sra')
  head = heads.AlignmentHead(24, rngs=nnx.Rngs(0))
  params = {
    ours: {
      'kernel': jnp.asarray(g[f'params/ap_head.{theirs}.weight'].T),
      'bias': jnp.asarray(g[f'params/ap_head.{theirs}.bias']),
    }
    for ours, theirs in (('fc1', 'linear1'), ('fc2', 'linear2'))
  }
  head = nnx.merge(nnx.split(head)[0], params)
  found = jax.jit(lambda x: head(x))(jnp.asarray(g['student']))
  np.testing.assert_allclose(found, g['ap_head_out'], rtol=0, atol=2e-5)


def count(make):
  return trees.count(nnx.state(nnx.eval_shape(lambda: make(nnx.Rngs(0)))))


@pytest.mark.parametrize(
  ('width', 'projector', 'alignment'),
  [(768, 7_344_896, 2.36e6), (1024, 7_869_184, 4.20e6), (1152, 8_131_328, 5.31e6)],
)
def test_parameter_counts(width, projector, alignment):
  """REPA's B, L and XL with DINOv2-B, exactly; SRA's as printed, to three digits."""
  assert count(lambda rngs: heads.Projector(width, 2048, 768, rngs=rngs)) == projector
  found = count(lambda rngs: heads.AlignmentHead(width, rngs=rngs))
  assert abs(found - alignment) < 0.006e6
