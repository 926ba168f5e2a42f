"""The networks of FDr6 and CMMD against timm, transformers and Pillow, from pixels to features."""

from helpers import panel_weights
import jax
import numpy as np
from PIL import Image
import pytest

from diversedit_jax import types
from diversedit_jax.evaluation import representations
from diversedit_jax.frozen.encoders import preprocess

# Features reach 3; timm's own float32 pass is up to 4e-6 from its float64 pass.
ATOL = 2e-5


@pytest.fixture
def tiny(monkeypatch):
  panel_weights.patch(monkeypatch)


def features(network, x_NHWC):
  return np.asarray(jax.jit(network.features)(network.params, x_NHWC)['pool'])


def of_256(arrays):
  return arrays['in/raw_uint8_32'].repeat(8, 1).repeat(8, 2)


@pytest.mark.parametrize('name', panel_weights.CHANGES)
def test_features_are_those_of_the_released_evaluator(golden, tiny, tmp_path, name):
  arrays = golden('summaries_tiny')
  panel_weights.write(tmp_path, arrays, name)
  network = representations.open_representation(name, str(tmp_path))
  for x, expected in ((of_256(arrays), 'summary'), (arrays['in/raw_uint8_32'], 'summary_of_32')):
    found = features(network, x)
    np.testing.assert_allclose(found, arrays[f'{name}/out/{expected}'], rtol=0, atol=ATOL)


def test_projections_are_those_of_cmmd(golden, tiny, tmp_path):
  arrays = golden('summaries_tiny')
  panel_weights.write(tmp_path, arrays, 'clip336')
  network = representations.open_cmmd(str(tmp_path))
  found = features(network, of_256(arrays))
  np.testing.assert_allclose(found, arrays['clip336/out/embeds'], rtol=0, atol=ATOL)
  np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(('side', 'to'), [(256, 336), (32, 336), (512, 336), (336, 336), (700, 99)])
def test_bytes_are_resized_as_pillow_does(side, to):
  x = np.random.default_rng(side).integers(0, 256, (1, side, side, 3), np.uint8)
  x[0, : side // 2] = np.where(x[0, : side // 2] > 127, 255, 0)  # So that values overshoot.
  expected = np.asarray(Image.fromarray(x[0]).resize((to, to), Image.Resampling.BICUBIC))
  np.testing.assert_array_equal(preprocess.as_pillow(x, to)[0], expected)


def test_a_missing_file_is_named_with_its_place(tmp_path):
  for name, texts in {
    'siglip': ['vit_so400m_patch16_siglip_256.v2_webli/model.safetensors', '1632 MB', 'timm/vit_'],
    'mae': ['mae_pretrain_vit_large.pth', 'dl.fbaipublicfiles.com/mae'],
    'convnext': ['convnextv2_base_22k_224_ema.pt', 'dl.fbaipublicfiles.com/convnext'],
  }.items():
    with pytest.raises(types.UserError) as error:
      representations.open_representation(name, str(tmp_path))
    assert all(text in str(error.value) for text in ['eval.fdr_weights=', *texts])
  with pytest.raises(types.UserError, match=r'eval\.cmmd=.* needs ViT-L-14-336px\.pt \(about 890'):
    representations.open_cmmd(str(tmp_path))
