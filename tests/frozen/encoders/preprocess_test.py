"""Pixels and position tables against REPA's preprocessing and timm's resampling."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax.frozen.encoders import preprocess


def pixels(raw_NCHW):
  return raw_NCHW.transpose(0, 2, 3, 1).astype(np.float64) / 127.5 - 1


@pytest.mark.parametrize(
  ('name', 'size'),
  [('dinov2', 224), ('jepa', 224), ('clip', 224), ('mae', 256), ('mocov3', 256), ('dinov1', 256)],
)
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_every_encoder_of_repa(golden, name, size, dtype):
  arrays = golden('encoder_preprocess')
  pipeline = preprocess.clip if name == 'clip' else preprocess.imagenet
  with jax.enable_x64(True):
    x = jnp.asarray(pixels(arrays['in/raw_uint8']), dtype)
    y = pipeline(x, (size, size))
    y = np.asarray(y).transpose(0, 3, 1, 2)
  assert y.dtype == dtype and y.shape == tuple(arrays[f'out/{name}_shape'])
  index = arrays[f'idx_{size}']
  # The reference's own float32 coordinates make 1e-4; its statistics are of its float64 pass.
  tolerance = 2e-6 if size == 256 else 2e-4
  np.testing.assert_allclose(
    y[:, :, index][..., index], arrays[f'out/{name}_sub'], rtol=0, atol=tolerance
  )
  for statistic in ('mean', 'std', 'min', 'max'):
    found = getattr(np, statistic)(y.astype(np.float64), axis=(2, 3))
    tolerance = 1e-10 if dtype == 'float64' else 5e-6
    np.testing.assert_allclose(found, arrays[f'out/{name}_{statistic}'], rtol=0, atol=tolerance)


@pytest.mark.parametrize('case', range(7))
def test_position_tables_of_timm(golden, case):
  arrays = golden('dinov2_tiny')
  (name,) = [
    key.removeprefix('resample/').removesuffix('_src')
    for key in arrays
    if key.startswith(f'resample/{case}_') and key.endswith('_src')
  ]
  source, size = (int(n) for n in name.partition('_')[2].split('to'))
  table, expected = (arrays[f'resample/{name}_{end}'][0] for end in ('src', 'dst'))
  prefix = json.loads(str(arrays['meta']))['resample_cases'][name]['num_prefix_tokens']
  assert len(table) == prefix + source**2
  found = preprocess.resample_table(table, (source, source), (size, size))
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
  np.testing.assert_array_equal(found[:prefix], table[:prefix])


def test_a_table_for_a_grid_that_is_not_square():
  rng = np.random.default_rng(0)
  row, col, token = rng.standard_normal(37), rng.standard_normal(37), np.full((1, 1), 9.0)
  table = np.concatenate([token, (row[:, None] + col[None]).reshape(-1, 1)])
  found = preprocess.resample_table(table, (37, 37), (4, 8))
  assert found[0] == 9
  rows = preprocess.antialiased_weights(37, 4) @ row
  cols = preprocess.antialiased_weights(37, 8) @ col
  np.testing.assert_allclose(found[1:, 0].reshape(4, 8), rows[:, None] + cols[None], atol=1e-12)
