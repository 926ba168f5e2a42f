"""The published sizes have the published numbers of parameters."""

import dataclasses

import pytest

from diversedit_jax import types
from diversedit_jax.models import config, cost, sizes

# MeanFlow's networks at 32x32x4 with 1000 classes, millions (2505.13447); they embed a
# second time.
MEANFLOW = {'B/4': 131.2, 'B/2': 131.1, 'M/2': 308.0, 'L/2': 459.1, 'XL/2': 676.4}


def parameters(name, **fields):
  architecture = sizes.architecture(name, input_size=(32, 32), **fields)
  return cost.cost(architecture, config.Execution()).parameters


@pytest.mark.parametrize(('name', 'millions'), MEANFLOW.items())
def test_meanflow_parameters(name, millions):
  assert round(parameters(name, interval=True) / 1e6, 1) == millions


def test_every_shape_has_four_patch_sizes():
  assert sorted(sizes.SIZES) == sorted(
    f'{s}/{p}' for s in ('S', 'B', 'M', 'L', 'XL') for p in (1, 2, 4, 8)
  )
  shape = lambda name: dataclasses.astuple(sizes.size(name))
  assert shape('M/2') == (16, 1024, 16, 2)
  for name in sizes.SIZES:
    assert shape(name) == (*shape(name.split('/')[0] + '/2')[:3], int(name.split('/')[1]))


def test_unknown_size_is_refused_with_the_nearest():
  with pytest.raises(types.UserError, match="unknown model size 'M/3'; did you mean 'M/"):
    sizes.size('M/3')
