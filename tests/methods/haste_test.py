"""HASTE's attention term: values and gradients of the reference, what is cut, what is refused."""

import json

from flax import nnx
from helpers import jaxprs, networks, transformers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from diversedit_jax import experiment as experiment_lib
from diversedit_jax import types
from diversedit_jax.experiment import idle
from diversedit_jax.frozen import encoders
from diversedit_jax.frozen.encoders import base as encoders_base
from diversedit_jax.methods import base, haste
from diversedit_jax.models import block, taps

CASES = ('official', 'small', 'sharp')
KEY = jax.random.key(0)


@pytest.fixture
def tiny_vit(monkeypatch):
  known = {k: make for k, make in encoders_base._ENCODERS.items() if k != transformers.NAME}
  monkeypatch.setattr(encoders_base, '_ENCODERS', known)
  encoders.register(transformers.NAME, transformers.make)


def case_of(g, case, dtype):
  """(term, features, noisy batch) of a case of the reference: its blocks, from 1, in pairs."""
  part = {k.removeprefix(f'{case}/'): v for k, v in g.items() if k.startswith(f'{case}/')}
  number = lambda name, kind: sorted(
    int(k.split('_')[-1]) for k in part if k.startswith(f'{name}_{kind}_') and k[-1].isdigit()
  )
  students, teachers = number('student', 'q'), number('teacher', 'q')
  array = lambda name: jnp.asarray(np.swapaxes(part[name], 1, 2), dtype)  # [N, T, H, d]
  features = tuple(
    jnp.stack([array(f'student_{kind}_{k}') for k in students]) for kind in ('q', 'k')
  )
  batch = {
    f'enc/{name}/{m + 1}': array(f'teacher_{kind}_{m}')
    for name, kind in (('queries', 'q'), ('keys', 'k'))
    for m in teachers
  }
  pairs = ','.join(f'{k + 1}:{m + 1}' for k, m in zip(students, teachers, strict=True))
  return haste.Haste(pairs=pairs, encoder='enc', weight=0.5), features, batch


def value(term, features, batch):
  noisy = base.NoisyBatch(x_t=None, t=None, y=None, target=None, noise=None, batch=batch)
  context = base.Context(noisy=noisy, drawn=(), heads=None, teacher=None, step=jnp.int32(0))
  return term.loss(features, context)


@pytest.mark.parametrize('case', CASES)
def test_values_and_gradients_match_the_reference(golden, case):
  g = golden('haste')
  term, features, batch = case_of(g, case, jnp.float32)
  loss, metrics = jax.jit(lambda *args: value(term, *args))(features, batch)
  np.testing.assert_allclose(metrics['loss'], g[f'{case}/attn_loss'], rtol=1e-5)
  np.testing.assert_allclose(loss, 0.5 * metrics['loss'], rtol=1e-6)
  with jax.enable_x64(True):
    term, features, batch = case_of(g, case, jnp.float64)
    found = lambda features, batch: value(term, features, batch)[1]
    metrics = found(features, batch)
    np.testing.assert_allclose(metrics['loss'], g[f'{case}/attn_loss_f64'], rtol=1e-10)
    each = [metrics[f'pair_{k}_{m}'] for k, m in term._pairs]
    np.testing.assert_allclose(each, g[f'{case}/attn_loss_per_block_f64'], rtol=1e-10)
    of = jax.grad(lambda *args: found(*args)['loss'], argnums=(0, 1))
    grads, of_teacher = jax.jit(of)(features, batch)
  for kind, grad in zip('qk', grads, strict=True):
    for i, (k, _) in enumerate(term._pairs):
      wanted = g[f'{case}/grad_{kind}_{k - 1}']  # [N, H, T, d], of every 16th token in 'official'.
      rows = np.swapaxes(grad[i], 1, 2)[:, :, :: 16 if case == 'official' else 1]
      # Stored as float32.
      np.testing.assert_allclose(rows, wanted, rtol=2e-7, atol=2e-7 * np.abs(wanted).max())
      assert not rows[:, batch['enc/queries/' + str(term._pairs[0][1])].shape[2] :].any()
  assert not any(np.any(x) for x in jax.tree.leaves(of_teacher))


def test_logits_are_those_of_the_reference_module(golden):
  """Its fused projection and its scale, through what a tap is shown."""
  g = golden('haste')
  sizes = json.loads(str(g['config']))['modules']
  architecture, execution = networks.parts(
    input_size=(6, 6), depth=1, width=sizes['D'], heads=sizes['heads'], patch_size=2
  )
  ours = block.Attention(architecture, execution, rngs=nnx.Rngs(0))
  kernel = g['modules/student_params/qkv.weight'].T.reshape(sizes['D'], 3, sizes['D'])
  ours.qkv.kernel.set_value(kernel)
  ours.qkv.bias.set_value(g['modules/student_params/qkv.bias'].reshape(3, sizes['D']))
  shown = taps.showing(lambda x, attend: ours(x, attend), taps.attention([0]))
  _, q, k = shown(jnp.asarray(g['modules/student_x']))
  logits = jnp.einsum('nqhd,nkhd->nhqk', q, k) * q.shape[-1] ** -0.5
  wanted = g['modules/student_logits']
  np.testing.assert_allclose(logits, wanted, atol=2e-5 * np.abs(wanted).max())
  same = haste.attention_loss(q, k, q, k)
  entropy = -np.sum(
    np.exp(wanted) / np.exp(wanted).sum(-1, keepdims=True) * log_softmax(wanted), -1
  )
  np.testing.assert_allclose(same, entropy.mean((1, 2)), rtol=1e-5)


def log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def random(*shape, seed, scale=1.0):
  return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_wide_logits_stay_finite():
  """Spread over thousands, where a logarithm of a softmax would be of zero."""
  q, k = (random(2, 5, 3, 8, seed=i, scale=40.0) for i in (0, 1))
  teacher = random(2, 5, 3, 8, seed=2), random(2, 5, 3, 8, seed=3)
  total = lambda q, k: jnp.sum(haste.attention_loss(q, k, *teacher))
  loss, grads = jax.value_and_grad(total, argnums=(0, 1))(q, k)
  assert loss > 1000 and np.isfinite(loss) and all(np.isfinite(x).all() for x in grads)


def test_tokens_before_the_patches_and_further_heads_have_no_part():
  q, k = random(2, 6, 4, 8, seed=0), random(2, 6, 4, 8, seed=1)
  teacher = random(2, 5, 3, 6, seed=2), random(2, 5, 3, 6, seed=3)
  loss = haste.attention_loss(q, k, *teacher)
  np.testing.assert_array_equal(loss, haste.attention_loss(q[:, 1:, :3], k[:, 1:, :3], *teacher))
  for heads in (1, 2):
    found = haste.attention_loss(q, k, *teacher, heads=heads)
    cut = (x[:, :, :heads] for x in (q[:, 1:], k[:, 1:], *teacher))
    np.testing.assert_array_equal(found, haste.attention_loss(*cut))
    assert np.abs(found - loss).min() > 1e-4
  with pytest.raises(ValueError, match='4 tokens cannot attend as 5 patches do'):
    haste.attention_loss(q[:, :4], k[:, :4], *teacher)


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'pairs': '5-9'}, "'5-9' is no pair BLOCK:ENCODER_BLOCK"),
    ({'pairs': ''}, "'' is no pair"),
    ({'pairs': '0:9'}, "'0:9' is no pair"),
    ({'pairs': '5:9,5:9'}, 'names a pair twice'),
  ],
)
def test_what_is_no_pair_is_refused(fields, words):
  with pytest.raises(types.UserError, match=f'haste.pairs=.*{words}'):
    haste.Haste(**fields)


def make(method='repa+haste', **more):
  """An experiment on digits, four blocks of three heads."""
  made = digits.get_config(f'method={method},steps=200')
  made.model.depth, made.model.width, made.model.heads = 4, 24, 3
  made.train.batch_size = 16
  transformers.use(made)
  made.update_from_flattened_dict(more)
  return experiment_lib.build(made)


@pytest.mark.parametrize(
  ('more', 'words'),
  [
    ({'haste.pairs': '5:2'}, 'haste.pairs: block 5 is not one of 1 to 4'),
    ({'haste.pairs': '1:5'}, "haste.pairs='1:5': .*has blocks 1 to 4, .* of block 5"),
    ({'haste.encoder': 'pca'}, "haste.encoder='pca', .*'pca' has no attention to look at"),
    ({'haste.encoder': 'tiny-vi'}, "haste.encoder='tiny-vi', .*did you mean 'tiny-vit'"),
    ({'haste.heads_used': 3}, "haste.heads_used=3: the model has 3 heads and 'tiny-vit' has 2; 0"),
    ({'data.source': 'synthetic:4x4x4:10:64'}, "'haste' shows pixels to an encoder"),
  ],
)
def test_what_does_not_fit_is_refused_by_its_key(tiny_vit, more, words):
  with pytest.raises(types.UserError, match=words):
    make('haste', **more)


def test_keys_of_repa_that_it_does_not_read_are_told(tiny_vit):
  given = {'repa.hidden': 64, 'repa.dtype': 'bfloat16'}
  for method, count in (('haste', 1), ('repa+haste', 0)):
    found = idle.remarks(make(method, **given), 'train', given)
    assert found == count * ['--config.repa.hidden has no effect: method=haste does not read it']


def test_the_encoder_runs_once_for_both_terms(tiny_vit):
  objective = make().objective
  assert [term.name for term in objective.terms] == ['haste', 'repa']
  (encoder,) = objective.encoders
  assert encoder.request.attention == (2, 3, 4)
  batch = objective.encode(objective.frozen(), {'images': np.zeros((2, 8, 8, 1), np.uint8)})
  shapes = {name: x.shape for name, x in batch.items() if name.startswith('tiny-vit')}
  attention = {
    f'tiny-vit/{kind}/{m}': (2, 16, 2, 8) for kind in ('queries', 'keys') for m in (2, 3, 4)
  }
  assert shapes == attention | {'tiny-vit/tokens': (2, 16, 16), 'tiny-vit/summary': (2, 16)}


def test_products_are_as_many_as_the_plan_counts(tiny_vit):
  experiment = make('haste', **{'model.heads': 6, 'model.width': 48})
  (term,), architecture = experiment.objective.terms, experiment.architecture
  assert term.teacher == (16, 2, 8)
  qk = tuple(random(3, 4, 16, 6, 8, seed=i) for i in (0, 1))
  names = ('queries', 'keys')
  batch = {f'tiny-vit/{name}/{m}': random(4, 16, 2, 8, seed=m) for name in names for m in (2, 3, 4)}
  loss = lambda qk: value(term, qk, batch)[0]
  counted = jaxprs.flops(jaxprs.products(jax.grad(loss), qk)) / 4
  assert counted == term.flops(architecture, 4)
