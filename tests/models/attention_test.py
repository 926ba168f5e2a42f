"""Kernels of attention: what pads, what is chosen on which machine, and what is refused.

There is neither GPU nor TPU where these run: the machine is pretended, and so are times.
"""

from helpers import networks
import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import sharding, types
from diversedit_jax.models import attention, config

SHAPE = (128, 2, 72, 'bfloat16')


def choose(name, tokens, heads, head_dim, dtype, platform=''):
  """What a model of that shape gets; without the cache, which would outlive the pretence."""
  attention._decided.cache_clear()
  attention._fault.cache_clear()
  parts = networks.parts(
    input_size=(1, tokens),
    depth=1,
    width=heads * head_dim,
    heads=heads,
    patch_size=1,
    dtype=dtype,
    attention=name,
    platform=platform,
  )
  return attention.implementation(*parts)


def qkv(n, t, h, d, dtype=np.float32):
  generator = np.random.default_rng(0)
  return [jnp.asarray(generator.normal(size=(n, t, h, d)), dtype) for _ in range(3)]


@pytest.fixture
def machine(monkeypatch):
  """Makes a machine of a backend on which kernels run in the given seconds, others not at all."""

  def make(backend, seconds, processes=1):
    probed = []
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    monkeypatch.setattr(jax, 'process_count', lambda: processes)
    kernels = dict(attention._KERNELS)
    for name in ('cudnn', 'flash'):

      def kernel(q, k, v, scale, name=name):
        probed.append((name, q.shape[-1]))
        padded = name if q.shape[-1] == SHAPE[2] else f'{name}@{q.shape[-1]}'
        if padded not in seconds:
          raise RuntimeError('No valid engine configs')
        return attention._xla(q, k, v, scale)

      kernels[name] = kernel
    monkeypatch.setattr(attention, '_KERNELS', kernels)
    monkeypatch.setattr(attention, '_seconds', lambda name, shape: seconds[name])
    return probed

  return make


@pytest.mark.parametrize('padded', config.PADDED_HEADS)
def test_padding_changes_nothing(padded, machine):
  with jax.enable_x64(True):
    machine('gpu', {f'cudnn@{padded}': 1.0, 'cudnn': 1.0})
    inputs = qkv(2, 5, 2, 72, np.float64)
    for transform in (
      lambda f: f(*inputs),
      lambda f: jax.grad(lambda *x: jnp.sum(jnp.sin(f(*x))), argnums=(0, 1, 2))(*inputs),
    ):
      a, b = (
        transform(lambda *x, name=name: attention.attend(*x, name))
        for name in ('xla', f'cudnn@{padded}')
      )
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), a, b)


@pytest.mark.parametrize(
  ('seconds', 'chosen'),
  [
    ({'cudnn': 2.0, 'cudnn@96': 1.0, 'cudnn@128': 3.0, 'xla': 4.0}, 'cudnn@96'),
    ({'cudnn': 2.0, 'xla': 1.0}, 'xla'),
    ({'cudnn@80': 1.0, 'xla': 2.0}, 'cudnn@80'),
  ],
)
def test_auto_takes_the_fastest_that_runs_and_says_so(machine, caplog, seconds, chosen):
  machine('gpu', seconds)
  with caplog.at_level('INFO'):
    assert choose('auto', *SHAPE) == chosen
  assert f'attention: {chosen} for T=128' in caplog.text
  assert all(f'{name} {1e3 * s:.3g} ms' in caplog.text for name, s in seconds.items())
  failed = {'cudnn', 'cudnn@80', 'cudnn@96', 'cudnn@128'} - set(seconds)
  assert all(f'{name} cannot run here: RuntimeError: No valid' in caplog.text for name in failed)


@pytest.mark.parametrize(('backend', 'failed'), [('gpu', 'cudnn'), ('tpu', 'flash')])
def test_failed_probes_fall_back_loudly(machine, caplog, backend, failed):
  machine(backend, {'xla': 1.0})
  with caplog.at_level('WARNING'):
    assert choose('auto', *SHAPE) == 'xla'
  assert f'{failed} cannot run here' in caplog.text and 'FALLING BACK TO XLA' in caplog.text
  with pytest.raises(types.UserError, match='No valid engine configs'):
    choose(failed, *SHAPE)


def test_an_implementation_is_probed_outside_the_trace_and_the_mesh_of_its_caller(
  machine, monkeypatch, caplog
):
  """A model may be traced under a mesh of devices that the two examples of a probe do not fill."""
  machine('gpu', {'cudnn': 2.0, 'cudnn@96': 1.0, 'xla': 3.0})
  meshes, attend = [], attention.attend
  seen = lambda *x: meshes.append(jax.sharding.get_abstract_mesh().empty) or attend(*x)
  monkeypatch.setattr(attention, 'attend', seen)
  chosen = []
  with jax.set_mesh(sharding.make_mesh()):
    jax.eval_shape(lambda: chosen.append(choose('auto', *SHAPE)))
  assert chosen == ['cudnn@96']
  assert meshes and all(meshes) and 'Tracer' not in caplog.text


@pytest.mark.parametrize('index', [0, 1])
def test_the_first_of_several_processes_decides(machine, monkeypatch, index):
  probed = machine('gpu', {'cudnn': 2.0, 'cudnn@96': 1.0, 'xla': 3.0}, processes=2)
  monkeypatch.setattr(jax, 'process_index', lambda: index)
  sent = []
  broadcast = lambda x: sent.append(int(x)) or np.int32(config.ATTENTIONS.index('cudnn@96'))
  monkeypatch.setattr(attention.multihost_utils, 'broadcast_one_to_all', broadcast)
  assert choose('auto', *SHAPE) == 'cudnn@96'
  assert len(sent) == 1 and bool(probed) == (index == 0)
  if index == 0:
    assert config.ATTENTIONS[sent[0]] == 'cudnn@96'
  with pytest.raises(types.UserError, match='attention=cudnn cannot run here'):
    choose('cudnn', *SHAPE)  # The first process has another answer.


def test_tpu_tries_its_own_kernel_only(machine):
  probed = machine('tpu', {'flash': 1.0, 'xla': 2.0})
  assert choose('auto', *SHAPE) == 'flash'
  assert {name for name, _ in probed} == {'flash'}


def test_nothing_is_probed_on_a_cpu(machine):
  probed = machine('cpu', {'cudnn': 0.0, 'flash': 0.0, 'xla': 1.0})
  assert choose('auto', *SHAPE) == 'xla'
  with pytest.raises(types.UserError, match='needs an NVIDIA GPU'):
    choose('cudnn', *SHAPE)
  with pytest.raises(types.UserError, match='needs a TPU'):
    choose('flash', *SHAPE)
  assert probed == []


def test_impossible_kernels_are_refused_before_they_run(machine):
  probed = machine('gpu', {'cudnn': 1.0, 'cudnn@80': 1.0})
  with pytest.raises(types.UserError, match='compute dtype is float32'):
    choose('cudnn', 16, 2, 72, 'float32')
  with pytest.raises(types.UserError, match='a head has 96 values, which is more than 80'):
    choose('cudnn@80', 16, 2, 96, 'bfloat16')
  with pytest.raises(types.UserError, match='divisible by 8, and it is 12'):
    choose('cudnn', 16, 2, 12, 'bfloat16')
  assert probed == []


def test_heads_of_64_are_not_padded():
  assert attention.candidates(64, 'gpu') == attention.candidates(128, 'gpu') == ['cudnn']
  assert attention.candidates(72, 'gpu') == ['cudnn', 'cudnn@80', 'cudnn@96', 'cudnn@128']


@pytest.mark.parametrize(
  ('platform', 'shape', 'expected'),
  [
    ('gpu', SHAPE, 'cudnn'),
    ('tpu', SHAPE, 'flash'),
    ('cpu', SHAPE, 'xla'),
    ('gpu', (128, 2, 72, 'float32'), 'xla'),
    ('tpu', (128, 2, 72, 'float32'), 'flash'),
    ('gpu', (128, 2, 76, 'bfloat16'), 'cudnn@80'),
    ('tpu', (129, 2, 72, 'bfloat16'), 'xla'),
  ],
)
def test_of_a_machine_that_is_not_here_the_first_kernel_that_may_run_is_taken(
  machine, platform, shape, expected
):
  probed = machine('cpu', {})
  assert choose('auto', *shape, platform) == expected
  assert choose('auto', *shape) == 'xla' and probed == []


def test_of_a_machine_that_is_not_here_kernels_are_refused_for_what_is_known(machine):
  probed = machine('gpu', {'cudnn': 1.0})
  assert choose('flash', *SHAPE, 'tpu') == 'flash'
  assert choose('cudnn@96', *SHAPE, 'gpu') == 'cudnn@96'
  for name, shape, platform, words in (
    ('cudnn', SHAPE, 'tpu', 'there: it needs an NVIDIA GPU, and the backend is tpu'),
    ('flash', SHAPE, 'gpu', 'there: it needs a TPU'),
    ('flash', (257, 2, 72, 'bfloat16'), 'tpu', 'blocks are of 128 tokens, which do not divide 257'),
    ('cudnn', (128, 2, 72, 'float32'), 'gpu', 'the compute dtype is float32'),
  ):
    with pytest.raises(types.UserError, match=words):
      choose(name, *shape, platform)
  assert probed == []


def test_timing_runs_the_kernel_forward_and_backward():
  assert 0 < attention._seconds('xla', attention._Shape(8, 2, 8, 'float32')) < 10


def test_flash_is_attention():
  """JAX's kernel for TPU, interpreted; its blocks need 128 tokens."""
  inputs = qkv(1, 128, 1, 72)
  with pltpu.force_tpu_interpret_mode():
    for transform in (
      lambda f: f(*inputs),
      lambda f: jax.grad(lambda *x: jnp.sum(jnp.sin(f(*x))), argnums=(0, 1, 2))(*inputs),
    ):
      a, b = (
        transform(lambda *x, name=name: attention.attend(*x, name)) for name in ('xla', 'flash')
      )
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), a, b)
