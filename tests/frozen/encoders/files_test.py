"""Weight files by their published names: found, read in every format, refused, explained."""

import dataclasses

from helpers import encoder_files, torch_zip
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.frozen import encoders
from diversedit_jax.frozen.encoders import clip, dinov2, files, ijepa, mae, mocov3

SMALL = {'width': 8, 'depth': 2, 'heads': 2, 'hidden': 12, 'patch_size': 2, 'table': 3}
META = 'https://dl.fbaipublicfiles.com'
OPENAI = 'https://openaipublic.azureedge.net/clip/models'
TRAINING = 'the state of its training included'
# name -> family, prefix in the file, part of the checkpoint, what the file holds besides
KINDS = {
  'mae-vit-l': (mae, '', 'model', {'norm.weight': (8,), 'norm.bias': (8,)}),
  'mocov3-vit-b': (
    mocov3,
    'module.base_encoder.',
    'state_dict',
    {
      'module.base_encoder.head.0.weight': (4, 8),
      'module.base_encoder.head.1.running_mean': (4,),
      'module.momentum_encoder.cls_token': (1, 1, 8),
      'module.predictor.0.weight': (4, 4),
    },
  ),
  'clip-vit-l': (
    clip,
    'visual.',
    None,
    {
      'visual.ln_post.weight': (8,),
      'visual.proj': (8, 4),
      'logit_scale': (),
      'positional_embedding': (7, 4),
      'transformer.resblocks.0.ln_1.weight': (4,),
    },
  ),
  'ijepa-vit-h': (ijepa, 'module.', 'encoder', {}),
  'dinov2reg-vit-b': (dinov2, '', None, {'mask_token': (1, 8)}),
}


def small(name):
  family = KINDS[name][0].FAMILY
  return family, dataclasses.replace(family.configs[name], **SMALL)


def published(name):
  """Random arrays by the names of a published file."""
  family, config = small(name)
  _, prefix, _, others = KINDS[name]
  shapes = {f'{prefix}{its}': shape for its, shape in family.shapes(config).items()}
  return encoder_files.random_arrays(shapes | others)


def load(name, path):
  family, config = small(name)
  return family.load(name, config, str(path), (3, 3), 'float32')


def write(name, path, weights):
  encoder_files.write(path, weights, key=KINDS[name][2])


CASES = [(name, '.pth') for name in KINDS] + [
  ('mae-vit-l', s) for s in files.SUFFIXES if s != '.pth'
]


@pytest.mark.parametrize(('name', 'suffix'), CASES)
def test_published_names_in_every_kind_of_file(tmp_path, name, suffix):
  weights, prefix = published(name), KINDS[name][1]
  family, config = small(name)
  own = family.published(name).file
  stem = next(own.removesuffix(s) for s in files.SUFFIXES if own.endswith(s))
  write(name, tmp_path / f'{stem}{suffix}', weights)
  params = load(name, tmp_path)
  names = family.layout(config).names
  equal = np.testing.assert_array_equal
  equal(params['positions'], weights[prefix + names['positions']].reshape(-1, 8))
  assert ('class_token' in params) == (name != 'ijepa-vit-h')
  for i in range(config.depth):
    its = lambda ours, i=i: weights[prefix + names[f'blocks/{ours}'].format(i)]
    equal(params['blocks']['qkv']['kernel'][i], its('qkv/kernel').T)
    equal(params['blocks']['fc1']['bias'][i], its('fc1/bias'))
    equal(params['blocks']['norm2']['scale'][i], its('norm2/scale'))
  kernel = weights[prefix + names['patches/kernel']]
  for row, col, channel, out in ((0, 1, 2, 7), (1, 0, 0, 3)):
    assert params['patches']['kernel'][row, col, channel, out] == kernel[out, channel, row, col]


@pytest.mark.parametrize('name', ['mocov3-vit-b', 'clip-vit-l'])
def test_a_bare_state_dict_of_the_encoder_is_read_too(tmp_path, name):
  whole, prefix = published(name), KINDS[name][1]
  write(name, tmp_path / 'whole.pth', whole)
  bare = encoder_files.part(whole, prefix)
  encoder_files.write(tmp_path / 'bare.pth', bare)
  one, other = load(name, tmp_path / 'whole.pth'), load(name, tmp_path / 'bare.pth')
  np.testing.assert_array_equal(one['blocks']['fc2']['kernel'], other['blocks']['fc2']['kernel'])


def test_clip_is_read_from_the_program_that_openai_publishes(tmp_path):
  weights = published('clip-vit-l')
  half = {its: array.astype(np.float16) for its, array in weights.items()}
  torch_zip.write_program(tmp_path / 'ViT-L-14.pt', half)
  params = load('clip-vit-l', tmp_path)
  found = params['blocks']['proj']['kernel'][1]
  assert found.dtype == np.float32
  expected = half['visual.transformer.resblocks.1.attn.out_proj.weight'].T
  np.testing.assert_array_equal(found, expected.astype(np.float32))


@pytest.mark.parametrize(
  ('name', 'file'),
  [
    ('mae-vit-l', 'mae_vitl.pth'),
    ('mocov3-vit-b', 'mocov3_vitb.pth'),
    ('mocov3-vit-b', 'vitb.pth.tar'),
    ('ijepa-vit-h', 'ijepa_vith.pth'),
  ],
)
def test_a_folder_of_repa_or_rcg_will_do(tmp_path, name, file):
  write(name, tmp_path / file, published(name))
  assert load(name, tmp_path)['blocks']['norm1']['bias'].shape == (2, 8)


@pytest.mark.parametrize(
  ('name', 'change', 'message'),
  [
    ('mae-vit-l', {'pos_embed': (1, 17, 8)}, r'has shape \(1, 17, 8\) instead of \(1, 10, 8\)'),
    ('mocov3-vit-b', {'module.base_encoder.norm.bias': None}, 'missing: norm.bias$'),
    ('clip-vit-l', {'visual.projection': (8, 4)}, 'not expected: projection'),
    ('ijepa-vit-h', {'module.cls_token': (1, 1, 8)}, 'not expected: cls_token'),
  ],
)
def test_foreign_weights_are_refused_by_name(tmp_path, name, change, message):
  weights = published(name)
  for its, shape in change.items():
    weights.pop(its, None)
    if shape is not None:
      weights[its] = np.zeros(shape, np.float32)
  write(name, tmp_path / 'w.pth', weights)
  with pytest.raises(types.UserError, match=message) as error:
    load(name, tmp_path / 'w.pth')
  assert f'does not hold the weights of {name!r}' in str(error.value)


@pytest.mark.parametrize(
  ('name', 'file', 'size', 'url'),
  [
    # Sizes of the published files, where they hold nothing else or are known.
    ('mae-vit-l', 'mae_pretrain_vit_large.pth', 'about 1157 MB;', f'{META}/mae/pretrain/'),
    (
      'dinov2reg-vit-b',
      'dinov2_vitb14_reg4_pretrain.pth',
      'about 330 MB;',
      f'{META}/dinov2/dinov2_vitb14/',
    ),
    (
      'mocov3-vit-b',
      'vit-b-300ep.pth.tar',
      f'more than 327 MB, {TRAINING};',
      f'{META}/moco-v3/vit-b-300ep/',
    ),
    ('clip-vit-l', 'ViT-L-14.pt', 'about 890 MB;', f'{OPENAI}/'),
  ],
)
def test_a_missing_file_is_explained(tmp_path, name, file, size, url):
  for weights, found in (
    ('', 'no folder is given'),
    (tmp_path, f'{tmp_path} does not hold it'),
    (tmp_path / 'x', f'there is no {tmp_path / "x"}'),
  ):
    encoder = encoders.open_encoder(name, encoder_files.request_of((256, 256), weights=weights))
    with pytest.raises(types.UserError) as caught:
      encoder.load()
    for text in (f'{name!r} needs {file} ({size}', found, f'at {url}', 'and give that folder'):
      assert text in str(caught.value)
  (tmp_path / file).touch()
  encoder = encoders.open_encoder(name, encoder_files.request_of((256, 256), weights=tmp_path))
  assert encoder.file() == file
