"""Encoders by name."""

import jax
import jax.numpy as jnp
import pytest

from diversedit_jax import types
from diversedit_jax.data import sources
from diversedit_jax.frozen import encoders
from diversedit_jax.frozen.encoders import base


@pytest.fixture
def registry(monkeypatch):
  monkeypatch.setattr(base, '_ENCODERS', dict(base._ENCODERS))


def request_of(grid=(4, 4)):
  source = sources.digits('train')
  return encoders.Request(source=source, grid=grid, image_shape=source.shape)


def mean_of_rows(request):
  """An encoder whose tokens are always those of the rows of an 8 x 8 image."""

  def apply(params, x_NHWC):
    tokens = jnp.mean(x_NHWC, axis=2) * params['scale']
    return encoders.Features(tokens=tokens, summary=jnp.mean(tokens, axis=1))

  return encoders.Encoder(
    name='rows',
    params={'scale': jax.ShapeDtypeStruct((), 'float32')},
    apply=apply,
    load=lambda: {'scale': jnp.ones(())},
    image_shape=request.image_shape,
    flops=0.0,
  )


def test_a_registered_encoder_is_opened(registry):
  encoders.register('rows', mean_of_rows)
  encoders.register('rows', mean_of_rows)  # Importing a file twice is no mistake.
  encoder = encoders.open_encoder('rows', request_of((2, 4)))
  assert encoder.shapes().tokens.shape == (1, 8, 1)
  assert encoder.shapes().summary.shape == (1, 1)


def test_a_taken_name_is_refused(registry):
  with pytest.raises(ValueError, match="'pca' exists already"):
    encoders.register('pca', mean_of_rows)


def test_reserved_characters_are_refused(registry):
  with pytest.raises(ValueError, match='reserved'):
    encoders.register('a@b', mean_of_rows)


def test_an_unknown_name_names_the_nearest():
  with pytest.raises(
    types.UserError, match=r"no encoder 'dinov2-vitb'; did you mean 'dinov2-vit-b"
  ):
    encoders.open_encoder('dinov2-vitb', request_of())


def test_another_number_of_tokens_is_refused(registry):
  encoders.register('rows', mean_of_rows)
  with pytest.raises(types.UserError, match="'rows' gives 8 tokens, but the model has 4x4 patches"):
    encoders.open_encoder('rows', request_of((4, 4)))
