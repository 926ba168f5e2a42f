"""Families by names and shapes, from either side, and the config that their weights need."""

from helpers import family_weights
import numpy as np
import pytest

from diversedit_jax import trees, types
from diversedit_jax.convert import detection, families, mapping

_KNOWN = [name for name in family_weights.FAMILIES if name not in ('sit_original', 'dit')]


@pytest.mark.parametrize('family', _KNOWN)
def test_told_from_either_side(family, golden):
  state_dict = family_weights.of(family, golden)
  params = mapping.to_ours(state_dict, family)
  assert detection.detect(state_dict) == family
  assert detection.detect(trees.named_leaves(params)) == family


def test_a_head_of_both_originals_is_refused(golden):
  state_dict = family_weights.of('dit', golden)
  for weights in (state_dict, mapping.to_ours(state_dict, 'dit')):
    with pytest.raises(types.UserError, match='--family=sit_original or --family=dit'):
      detection.detect(weights)


def test_what_is_told_by_nothing_is_a_sit(golden):
  plain = family_weights.parameters(golden('sit_plain'))
  assert detection.detect(plain) == 'sit'
  assert detection.detect({'weight': np.zeros((3, 4))}) == 'sit'
  headless = {n: x for n, x in family_weights.sra(golden).items() if not n.startswith('ap_head')}
  assert detection.detect(headless) == 'sit'


def _config_keys(family, golden, **changes):
  inferred = mapping.infer_config(family_weights.of(family, golden), family)
  return detection.config_keys(inferred | changes, families.family(family))


@pytest.mark.parametrize(
  ('family', 'expected'),
  [
    ('sit', 'depth=6 model.width=64 model.heads=? model.patch_size=2 model.skip.enabled=True'),
    (
      'reg',
      'depth=3 model.width=64 model.heads=4 model.patch_size=2 model.qk_norm=True method=reg',
    ),
    ('sra', 'depth=4 model.width=24 model.heads=? model.patch_size=2'),
    ('meanflow', 'depth=4 model.width=64 model.heads=? model.patch_size=2 method=meanflow'),
    ('rae', 'depth=4 model.width=64 model.heads=4 model.patch_size=2 model.block=ddt'),
    (
      'ddt',
      'depth=3 model.width=24 model.heads=2 model.patch_size=1 model.block=ddt model.head.depth=2 '
      'model.head.width=40 model.head.heads=2',
    ),
    (
      'raev2',
      'depth=3 model.width=24 model.heads=3 model.patch_size=1 model.qk_norm=True '
      'model.block=raev2 model.context.time=2 model.context.label=3 model.head.depth=2 '
      'model.head.width=32 model.head.heads=2 method=internal internal.block=?',
    ),
    (
      'dit',
      'depth=3 model.width=64 model.heads=? model.patch_size=2 model.learn_sigma=True '
      'model.time_input=ddpm interpolant.path=vp interpolant.prediction=noise',
    ),
  ],
)
def test_config_keys(family, expected, golden):
  assert ' '.join(_config_keys(family, golden)) == f"model.size='' model.{expected}"


def test_config_keys_of_a_published_size(golden):
  size = {'depth': 28, 'width': 1152, 'patch_size': 2}
  assert _config_keys('sra', golden, **size) == ['model.size=XL/2']
  assert _config_keys('sra', golden, **size, heads=16, mlp_ratio=3.5) == [
    'model.size=XL/2',
    'model.mlp_ratio=3.5',
  ]
  other = _config_keys('sra', golden, **size, heads=8)
  assert other[0] == "model.size=''" and 'model.heads=8' in other
