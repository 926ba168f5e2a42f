"""Faults of named arrays, in words."""

import ml_dtypes
import numpy as np

from diversedit_jax.weights import misfits

_X = np.ones((2, 3), np.float32)


def test_every_kind_of_fault():
  expected = {'a': (2, 3), 'b': (2, 'D'), 'c': (2, 3), 'd': (2, 3), 'e': (4,)}
  arrays = {
    'a': _X.astype(ml_dtypes.bfloat16),
    'b': _X,
    'c': _X.astype(np.int32),
    'd': _X * np.nan,
    'f': _X,
    'skipped': _X,
  }
  assert misfits.find(arrays, expected, unused='skipped'.__eq__, finite=True) == [
    'missing: e',
    'not expected: f',
    'b has shape (2, 3) instead of (2, D), c has dtype int32 instead of floating-point numbers, '
    'd holds values that are not finite in float32',
  ]
  assert misfits.find({'d': arrays['d']}, {'d': (2, 3)}) == []


def test_names_steer_no_terminal():
  assert misfits.first_few(['a\x1b[2J', 'b\nc', 'é']) == r'a\x1b[2J, b\nc, é'


def test_long_lists_are_cut():
  strays = {f'x{i}': _X for i in range(12)}
  assert misfits.find(strays, {}) == ['not expected: x0, x1, x2, x3, x4, and 7 more']


def test_arrays_of_which_none_fits_are_named():
  """One name of each kind is told; half-fitting weights are of the right kind."""
  expected = {'x_embedder.proj.weight': (2, 3), 'x': (2, 3)}
  for name, kind in {
    'model/patch_embed/kernel': 'a model of this project: give them as --checkpoint',
    'first_stage_model.decoder.up.0.block.0.conv1.weight': "CompVis' names of an autoencoder",
    'encoder.down_blocks.0.resnets.0.conv1.weight': "diffusers' names of an autoencoder",
    'decoder.up_blocks.2.1.conv1.weight': "diffusers' names of a DC-AE: give it, with its config",
    'down_blocks.0.resnets.0.conv1.weight': "diffusers' names of a U-Net",
    'blocks.0.attn.to_q.lora_A.weight': 'LoRA',
    'adaln_single.linear.weight': 'PixArt',
    'transformer_blocks.0.norm1.emb.timestep_embedder.linear_1.bias': 'convert it: python -m',
    'model.x_embedder.proj.weight': 'the names of SiT and DiT; convert it: python -m',
    'Mixed_5b.branch1x1.conv.weight': 'Inception: give it as eval.inception',
    'patch_embed.proj.weight': 'a vision transformer',
  }.items():
    (_, found) = misfits.find({name: _X}, expected)
    assert found.startswith(f'not expected: {name} (these look like ') and kind in found
  assert misfits.find({'x': _X, 'Mixed_5b.conv.weight': _X}, expected) == [
    'missing: x_embedder.proj.weight',
    'not expected: Mixed_5b.conv.weight',
  ]
  assert misfits.find({'y': _X}, expected)[1] == 'not expected: y'
