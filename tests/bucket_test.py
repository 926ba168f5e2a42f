"""What is written to a bucket, on an emulator of the storage API: objects, locks, refusals."""

from etils import epath
from helpers import bucket
import tensorstore

NOTHING = b'\2'  # TensorStore's generation of what is not there.


def test_the_emulator_keeps_the_conditions_on_which_a_lock_rests():
  store = tensorstore.KvStore.open(f'{bucket.new()}/').result()
  made = store.write('x', b'1', if_equal=NOTHING).result().generation
  assert not store.write('x', b'2', if_equal=NOTHING).result().generation
  assert store.read('x').result().stamp.generation == made
  changed = store.write('x', b'3', if_equal=made).result().generation
  assert not store.write('x', b'4', if_equal=made).result().generation
  assert not store.write('x', None, if_equal=made).result().generation
  assert store.read('x').result().value == b'3'
  assert store.write('x', None, if_equal=changed).result().generation
  assert not epath.Path(str(store.url)).exists()
