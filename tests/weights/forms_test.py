"""Weights and runs of before, whose attention held q, k and v side by side in one matrix."""

from helpers import tiny
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diversedit_jax import checkpoint, sharding, trees
from diversedit_jax.methods import base
from diversedit_jax.training import optim, state
from diversedit_jax.weights import array_files, forms

D = 16
KERNEL, BIAS = (f'model/blocks/layers/attn/qkv/{leaf}' for leaf in ('kernel', 'bias'))


def arrays_before():
  """[q | k | v] of two blocks, and what looks alike."""
  draw = lambda *shape: np.random.default_rng(0).normal(size=shape).astype(np.float32)
  others = {'model/blocks/layers/mlp/fc1/kernel': draw(2, D, 3 * D), 'count': draw()}
  return {KERNEL: draw(2, D, 3 * D), BIAS: draw(2, 3 * D), **others}


def test_q_k_and_v_of_a_file_of_before_are_told_apart_and_its_digest_is_the_same(tmp_path):
  old = arrays_before()
  array_files.save(tmp_path / 'a.safetensors', old)
  new = array_files.load(tmp_path / 'a.safetensors')
  for name in (KERNEL, BIAS):
    for i in range(3):
      np.testing.assert_array_equal(new[name][..., i, :], old[name][..., i * D : (i + 1) * D])
  assert {name for name, x in new.items() if x.shape != old[name].shape} == {KERNEL, BIAS}
  again = forms.current(new)
  assert all(again[name].shape == x.shape for name, x in new.items())
  assert array_files.digest(new.items()) == array_files.digest(old.items())
  assert trees.fingerprint(new, forms.before) == trees.fingerprint(old)
  assert trees.fingerprint(new) != trees.fingerprint(old)


def joined(tree):
  """The tree as versions before 0.4 held it."""

  def of(path, x):
    name = trees.path_name(path)
    ours = name.endswith(('attn/qkv/kernel', 'attn/qkv/bias'))
    return x.reshape(*x.shape[:-2], -1) if ours else x

  return jax.tree_util.tree_map_with_path(of, tree)


@pytest.mark.parametrize('clips', [False, True])
def test_a_checkpoint_of_before_is_restored_to_the_bit(tmp_path, clips):
  """Parameters, average and moments; also by a run that clips where that one did not."""
  tx = optim.make(optim.OptimizerConfig(clip_norm=0), 10)
  make = lambda rngs: base.Network(tiny.architecture(), tiny.EXECUTION, rngs=rngs)
  made = lambda tx: state.Trainable(make, tx, sharding.make_mesh())
  was = made(tx).init(jax.random.key(0))
  grads = jax.tree.map(
    lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), was.params
  )
  updates, moments = tx.update(grads, was.opt_state, was.params)
  was = was.replace(params=optax.apply_updates(was.params, updates), opt_state=moments)
  old = joined(was.items())
  assert old['params']['model']['blocks']['layers']['attn']['qkv']['bias'].shape == (2, 3 * D)
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c')
  checkpoints.save(1, old, {})
  checkpoints.wait()
  trainable = made(optim.make(optim.OptimizerConfig(clip_norm=1.0 * clips), 10))
  step, items, _ = checkpoints.restore(trainable.targets())
  found = trainable.assemble(step, items)
  assert jax.tree.structure(found.opt_state) == jax.tree.structure(trainable.opt_state)
  for name, x in was.items().items():
    for got, wanted in zip(jax.tree.leaves(found.items()[name]), jax.tree.leaves(x), strict=True):
      np.testing.assert_array_equal(got, wanted)
  alone = checkpoint.read(tmp_path / 'c' / '1', 'ema')
  np.testing.assert_array_equal(
    alone[KERNEL], was.ema['model']['blocks']['layers']['attn']['qkv']['kernel']
  )
