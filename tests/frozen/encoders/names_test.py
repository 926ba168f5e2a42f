"""The encoders by name at full size, without weights: shapes, counts, cost, what they refuse."""

import math
import re

from helpers import encoder_files
import jax
import pytest

from configs import b256
from diversedit_jax import experiment as experiment_lib
from diversedit_jax import modes, types
from diversedit_jax.frozen import encoders
from diversedit_jax.frozen.encoders import clip, dinov2, ijepa, mae, mocov3, siglip2

# name -> family, width, millions of parameters in the authors' encoder as timm 1.0 lists it
NAMES = {
  'mae-vit-b': (mae, 768, 85.8),
  'mae-vit-l': (mae, 1024, 303.3),
  'mae-vit-h': (mae, 1280, 630.8),
  'mocov3-vit-s': (mocov3, 384, 21.7),
  'mocov3-vit-b': (mocov3, 768, 85.8),
  'mocov3-vit-l': (mocov3, 1024, 303.3),
  'clip-vit-l': (clip, 1024, 304.0),
  'ijepa-vit-h': (ijepa, 1280, 630.8),
  'dinov2-vit-s': (dinov2, 384, 22.1),
  'dinov2-vit-b': (dinov2, 768, 86.6),
  'dinov2-vit-l': (dinov2, 1024, 304.4),
  'dinov2reg-vit-g': (dinov2, 1536, 1136.5),
  'siglip2-vit-b': (siglip2, 768, 92.9),
  'siglip2-vit-l': (siglip2, 1024, 316.0),
  'siglip2-vit-so400m': (siglip2, 1152, 427.9),
}


@pytest.mark.parametrize('name', NAMES)
def test_published_numbers_of_parameters(name):
  module, width, millions = NAMES[name]
  count = sum(math.prod(s) for s in module.FAMILY.shapes(module.CONFIGS[name]).values())
  # What the authors' encoders have and features do without: MAE's last norm, CLIP's and its
  # projection to 768.
  count += {mae: 2 * width, clip: 2 * width + width * 768}.get(module, 0)
  assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize('name', NAMES)
def test_256_pixels_give_16x16_tokens(name):
  encoder = encoders.open_encoder(name, encoder_files.request_of((256, 256), dtype='bfloat16'))
  shapes, width = encoder.shapes(), NAMES[name][1]
  assert shapes.tokens.shape == (1, 256, width) and shapes.tokens.dtype == 'float32'
  summary = None if shapes.summary is None else shapes.summary.shape
  assert summary == (None if name == 'ijepa-vit-h' else (1, width))


def test_other_pixels_need_positions_that_are_resampled():
  encoder = encoders.open_encoder('mae-vit-l', encoder_files.request_of((512, 512)))
  assert encoder.shapes().tokens.shape[1] == 1024
  with pytest.raises(types.UserError, match='16x16 tokens.* takes 256x256 pixels; found 512x512'):
    encoders.open_encoder('clip-vit-l', encoder_files.request_of((512, 512)))
  with pytest.raises(
    types.UserError, match='3 channels and sides divisible by 16; found 250x256x3'
  ):
    encoders.open_encoder('mae-vit-l', encoder_files.request_of((250, 256)))


@pytest.mark.parametrize('name', NAMES)
def test_flops_are_the_products_of_the_traced_encoder(name):
  encoder = encoders.open_encoder(name, encoder_files.request_of((256, 256)))
  x = jax.ShapeDtypeStruct((3, 256, 256, 3), 'float32')
  jaxpr = jax.make_jaxpr(encoder.apply)(encoder.params, x).jaxpr
  assert encoder_files.dot_flops(jaxpr) == 3 * encoder.flops


def make(method, pairs):
  config = b256.get_config(f'method={method}')
  config.repa.pairs = pairs
  return experiment_lib.build(config)


def test_a_plan_lists_the_cost_of_each_encoder():
  experiment = make('repa', 'mae-vit-l@4,clip-vit-l@4,ijepa-vit-h@8')
  plan = modes.plan.run(experiment)
  for name in ('mae-vit-l', 'clip-vit-l', 'ijepa-vit-h'):
    assert f'encoder {name} +' in plan
  gib = 2 * (303.3 + 303.2 + 630.8) * 1e6 / 2**30  # In bfloat16, all but norms and positions.
  found = float(re.search(r'(\S+) GiB encoders', plan)[1])
  assert gib - 0.01 < found < 1.01 * gib


def test_reg_takes_the_class_token_of_those_that_have_one():
  for name in ('mae-vit-l', 'mocov3-vit-b', 'clip-vit-l'):
    assert make('reg', f'{name}@4').architecture.class_token == NAMES[name][1]
  with pytest.raises(
    types.UserError, match=r"class token of its encoder, and 'ijepa-vit-h' has no"
  ):
    make('reg', 'ijepa-vit-h@4')
  assert make('repa', 'ijepa-vit-h@4').architecture.class_token == 0
