"""Whatever lies in a collection ends as a picture, a `BadPicture`, a `Skipped` or a `UserError`."""

from helpers import malformed
import numpy as np
import pytest

from diversedit_jax.data import pictures
from diversedit_jax.data.pictures import system

CASES = {f'{case.kind}/{k:03d}/{case.name}': case for k, case in enumerate(malformed.cases())}
NAMED = {name for name, case in CASES.items() if case.may == ('skipped',)}
SKIPPED = {system.foreign(name) or name for name in NAMED}


@pytest.fixture(scope='module', params=['', '.tar', '.zip'])
def collection(request, tmp_path_factory):
  """All cases in class folders by kind."""
  path = tmp_path_factory.mktemp('malformed') / f'all{request.param}'
  files = {name: case.data for name, case in CASES.items()}
  if request.param:
    path.write_bytes(getattr(malformed, f'{request.param[1:]}_bytes')(files))
  else:
    malformed.write_folder(path, files)
  return pictures.open_pictures(path)


def test_every_file_ends_as_it_may(collection):
  listing = collection.listing
  assert set(listing.names) == set(CASES) - NAMED
  assert {s.name for s in listing.skipped} == SKIPPED and all(s.reason for s in listing.skipped)
  for i, name in enumerate(listing.names):
    data = collection.read(i)
    assert data == CASES[name].data
    try:
      pixels = pictures.crop.crop(pictures.decode.decode(data), 16)
      assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8
      end = 'picture'
    except pictures.BadPicture as error:
      reason, end = str(error), 'bad'
      assert 0 < len(reason) < 160 and '\n' not in reason and ' at 0x' not in reason, reason
    assert end in CASES[name].may, name
