"""Which network of a checkpoint is read, and what becomes of the names that wrappers give it."""

import re

from helpers import torch_zip
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.weights import array_files, parts

_NAMES = ('x_embedder.proj.weight', 'blocks.0.mlp.fc1.weight', 'blocks.1.mlp.fc1.weight')
_X = np.arange(6, dtype=np.float32).reshape(2, 3)


def named(form):
  """The names of a network, each in a form as 'model.{}'."""
  return [form.format(name) for name in _NAMES]


def chosen(names, given=('',), **options):
  """What becomes of names: those of the network, or the beginning of them in the file."""
  choice = parts.choose(names, given, **options)
  assert list(choice.names) == list(_NAMES)
  return [name.removesuffix(its) for its, name in choice.names.items()]


@pytest.mark.parametrize(
  'form',
  [
    '{}',
    'module.{}',  # DDP
    'model.{}',  # Lightning
    'model.module.{}',
    '_orig_mod.{}',  # torch.compile
    'module._orig_mod.{}',
    '_fsdp_wrapped_module.{}',
    'ema_model.{}',
    'diffusion.net.model.{}',
  ],
)
def test_what_all_names_begin_with_is_dropped(form):
  assert chosen(named(form)) == [form.format('')] * 3


def test_names_of_wrappers_within_names_are_dropped():
  names = [
    '_fsdp_wrapped_module.x_embedder._orig_mod.proj.weight',
    '_fsdp_wrapped_module.blocks.0._fpw_module._checkpoint_wrapped_module.mlp.fc1.weight',
    '_fsdp_wrapped_module.blocks.1._fsdp_wrapped_module._checkpoint_wrapped_module.mlp.fc1.weight',
  ]
  choice = parts.choose(names)
  assert choice.names == dict(zip(_NAMES, names, strict=True))
  assert choice.notes == (
    "dropped '_checkpoint_wrapped_module.', '_fpw_module.', '_fsdp_wrapped_module.', '_orig_mod.' "
    'from 3 names',
  )
  mixed = {'module.a': 'module.a', 'b': '_orig_mod.b', 'd.weight': 'd._orig_mod.weight'}
  mixed |= {'e.module.weight': 'e.module.weight'}
  assert parts.choose(mixed.values()).names == mixed
  with pytest.raises(types.UserError, match='twice, with and without a prefix'):
    parts.choose(['b', '_orig_mod.b'])


@pytest.mark.parametrize(
  ('given', 'best'),
  [
    (['model.', 'ema.', 'opt.state.0.'], 'ema.'),
    (['model.', 'model_ema.'], 'model_ema.'),
    (['state_dict.', 'state_dict_ema.', 'optimizer.state.0.'], 'state_dict_ema.'),
    (['discriminator.', 'model.'], 'model.'),
    (['ema.model.', 'model.model.'], 'ema.model.'),
    (['opt.state.0.', 'my_weights.'], 'my_weights.'),
    (['', 'meta.'], ''),
  ],
)
def test_the_best_part_is_taken(given, best):
  names = [n for part in given for n in named(f'{part}{{}}')[: 3 if part == best else 2]]
  assert chosen(names, given) == [best] * 3
  if best == 'my_weights.':
    assert not parts.choose(names, given).notes  # Nobody takes an optimizer's state for a network.


def test_several_networks_must_be_chosen_from():
  names = named('generator.{}') + named('disc.{}')
  message = r"several networks: 'generator' \(3 arrays\), 'disc' .*; say which, as with --key=gen"
  with pytest.raises(types.UserError, match=message):
    parts.choose(names, ['generator.', 'disc.'])
  assert chosen(names, ['generator.', 'disc.'], key='disc') == ['disc.'] * 3
  nested = [f'state.{name}' for name in names]
  given = ['state.generator.', 'state.disc.']
  for key in ('disc', 'state.disc'):
    assert chosen(nested, given, key=key) == ['state.disc.'] * 3
  with pytest.raises(types.UserError, match="no part 'ema'; its parts: 'generator', 'disc'"):
    parts.choose(names, ['generator.', 'disc.'], key='ema')


def test_anchors_find_a_network_among_others():
  """Checkpoints of Lightning have losses and frozen networks beside the one that counts."""
  anchor = _NAMES[:1]
  names = ['loss.logvar', 'initted', *named('model.{}'), 'vae.conv.weight']
  choice = parts.choose(names, anchors=anchor)
  assert list(choice.names) == list(_NAMES)
  assert choice.notes == (
    "dropped 'model.', with which all its names begin",
    'left out what lies beside it: loss.logvar, initted, vae.conv.weight',
  )
  pair = [*named('online_model.{}'), *named('ema_model.{}'), 'step']
  assert chosen(pair, anchors=anchor) == ['ema_model.'] * 3
  assert chosen(pair, anchors=anchor, key='online_model') == ['online_model.'] * 3
  assert chosen([*named('{}'), *named('ema.{}')], anchors=anchor) == ['ema.'] * 3
  assert chosen([*named('{}'), *named('teacher.{}')], anchors=anchor) == [''] * 3
  with pytest.raises(types.UserError, match="several networks: 'student' .*, 'teacher'"):
    parts.choose([*named('student.{}'), *named('teacher.{}')], anchors=anchor)


def test_parts_of_a_checkpoint(tmp_path):
  part = lambda factor: torch_zip.tensors({'x': factor * _X})
  checkpoint = {'model': part(1), 'ema': part(2), 'other': part(3), 'steps': 7}

  def loaded(names, **options):
    torch_zip.write(tmp_path / 'a.pt', {name: checkpoint[name] for name in names})
    return array_files.load(tmp_path / 'a.pt', **options)['x'][0, 1]

  assert loaded(['model', 'ema', 'steps']) == 2
  assert loaded(['model', 'ema', 'steps'], key='model') == 1
  assert loaded(['model', 'ema', 'other'], prefer=('none', 'other')) == 3
  assert loaded(['model', 'other', 'steps']) == 1
  assert loaded(['other', 'steps']) == 3
  with pytest.raises(
    types.UserError, match=r"a\.pt has no part 'ema'; its parts: 'model', 'other'"
  ):
    loaded(['model', 'other', 'steps'], key='ema')
  # A number that is a tensor makes no state dict of what holds it, nor does a generator's state.
  rng = torch_zip.tensor(np.zeros(9, np.uint8))
  best = {'best_acc1': torch_zip.tensor(np.float32(3)), 'rng': rng, 'network_of_mine': part(4)}
  torch_zip.write(tmp_path / 'a.pt', best)
  np.testing.assert_array_equal(array_files.load(tmp_path / 'a.pt')['x'], 4 * _X)
  array_files.save(tmp_path / 'a.npz', {'x': _X})
  with pytest.raises(types.UserError, match=re.escape("a.npz has no part 'ema'; its parts: none")):
    array_files.load(tmp_path / 'a.npz', key='ema')
