"""Whatever lies in a collection ends in a picture, a `BadPicture`, a `Skipped` or a `UserError`."""

from helpers import malformed
import numpy as np
import pytest

from diversedit_jax.data import pictures

# Nothing may leak out, a warning as little as an exception of another type.
pytestmark = pytest.mark.filterwarnings('error')

CASES = malformed.cases()
KINDS = sorted({case.kind for case in CASES})


def test_there_are_three_hundred_of_them():
  assert len(CASES) >= 300
  assert len({(case.kind, case.name) for case in CASES}) == len(CASES)


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
  """All cases in class folders by kind: as a folder, a tar and a zip."""
  root = tmp_path_factory.mktemp('malformed')
  files = {f'{case.kind}/{k:03d}/{case.name}': case.data for k, case in enumerate(CASES)}
  malformed.write_folder(root / 'all', files)
  (root / 'all.tar').write_bytes(malformed.tar_bytes(files))
  (root / 'all.zip').write_bytes(malformed.zip_bytes(files))
  found = {kind: pictures.open_pictures(root / f'all{kind}') for kind in ('', '.tar', '.zip')}
  return files, found


@pytest.mark.parametrize('collection', ['', '.tar', '.zip'])
def test_listed_and_skipped_are_all_that_was_put_in(opened, collection):
  files, found = opened
  listing = found[collection].listing
  names = [*listing.names, *(s.name for s in listing.skipped)]
  assert sorted(names) == sorted(files)
  assert all(skipped.reason for skipped in listing.skipped)
  for k, case in enumerate(CASES):
    skipped = f'{case.kind}/{k:03d}/{case.name}' in {s.name for s in listing.skipped}
    assert skipped == (case.may == ('skipped',)), case.name


@pytest.mark.parametrize('kind', KINDS)
def test_a_case_ends_as_it_may(opened, kind):
  files, found = opened
  collection = found['.tar']
  ends = {}
  for i, name in enumerate(collection.listing.names):
    if not name.startswith(f'{kind}/'):
      continue
    data = collection.read(i)
    assert data == files[name]
    try:
      image = pictures.decode.decode(data)
      assert image.mode == 'RGB'
      pixels = pictures.crop.crop(image, 16)
      assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8
      ends[name] = 'picture', ''
    except pictures.BadPicture as error:
      reason = str(error)
      assert 0 < len(reason) < 160 and '\n' not in reason and ' at 0x' not in reason, reason
      ends[name] = 'bad', reason
  expected = {
    f'{case.kind}/{k:03d}/{case.name}': case.may
    for k, case in enumerate(CASES)
    if case.kind == kind and case.may != ('skipped',)
  }
  assert set(ends) == set(expected)
  wrong = {name: end for name, end in ends.items() if end[0] not in expected[name]}
  assert not wrong
