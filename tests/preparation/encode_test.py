"""Records are what the autoencoder makes of each picture, whatever else goes through with it."""

from concurrent import futures
import time
from types import SimpleNamespace

from helpers import small
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.data import latents
from diversedit_jax.data.pictures import base, crop, decode
from diversedit_jax.data.store import writer
from diversedit_jax.frozen import vae_files
from diversedit_jax.preparation import encode, making, options


@pytest.fixture(scope='module')
def autoencoder():
  return vae_files.random(small.CONFIG, 0)


@pytest.fixture(scope='module')
def encoder(autoencoder):
  return encode.Encoder(making.encoded(autoencoder, small.SIZE), 3)


@pytest.fixture(scope='module')
def pool():
  with futures.ThreadPoolExecutor(2) as pool:
    yield pool


@pytest.fixture(scope='module')
def cropped():
  """The crop of every good picture, made by hand."""
  return {
    name: crop.crop(decode.decode(data, 'exif'), small.SIZE, 'adm')
    for name, data in small.files().items()
    if data not in small.BAD.values()
  }


@pytest.fixture(scope='module')
def direct(autoencoder, cropped):
  """[mean, std] of every good picture and of its mirror image, encoded alone, by name."""

  @jax.jit
  def encoded(x_NHWC):
    return latents.mean_std(autoencoder.encode(autoencoder.params, x_NHWC))

  def moments(pixels_HWC):
    return np.asarray(encoded(jnp.asarray(pixels_HWC, jnp.float32)[None] / 127.5 - 1)[0])

  chosen = list(cropped)[::5]
  return {n: np.stack([moments(cropped[n]), moments(cropped[n][:, ::-1])]) for n in chosen}


def pipeline(autoencoder, encoder, pool, collection=None, **more):
  asked = small.asked('unused', **{'twins': True, 'store': 'both', 'dtype': 'float32'} | more)
  collection = collection or small.Memory(small.files())
  return encode.Pipeline(
    collection=collection,
    plan=options.make_plan(asked, collection, making.encoded(autoencoder, small.SIZE)),
    encoder=encoder,
    batch_size=3,
    pool=pool,
    threads=2,
  )


def split(results):
  results = list(results)
  examples = {r.key: r for r in results if isinstance(r, writer.Example)}
  return examples, [r for r in results if isinstance(r, base.Skipped)]


@pytest.fixture(scope='module')
def made(autoencoder, encoder, pool):
  """Examples of all shards by key, and what was skipped."""
  of = pipeline(autoencoder, encoder, pool)
  examples, skipped = {}, []
  for shard in range(of.plan.shards):
    found = split(of.results(shard))
    examples |= found[0]
    skipped += found[1]
  return examples, skipped


def test_moments_are_those_of_each_picture_and_of_its_mirror_image_alone(made, direct):
  """In float32; programs for other batch sizes add in another order, hence the last bits."""
  for name, expected in direct.items():
    found = made[0][name.removesuffix('.jpg')].columns['moments']
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=name)
    # Mirroring latents would not do.
    assert np.abs(found[1] - found[0][:, ::-1]).max() > 0.05


def test_pixels_keys_labels_and_bad_pictures(made, cropped):
  examples, (gone, other) = made
  assert list(examples) == sorted(name.removesuffix('.jpg') for name in cropped)
  for name, pixels in cropped.items():
    example = examples[name.removesuffix('.jpg')]
    np.testing.assert_array_equal(example.columns['pixels'], pixels[None])
    assert example.label == small.CLASSES.index(name.split('/')[0])
  assert (gone.name, gone.reason) == ('ant/005.jpg', 'is gone')
  assert other.name == 'bee/014.jpg' and other.reason.startswith('no JPEG')


def test_a_batch_that_is_too_large_for_the_device_is_told(autoencoder, encoder, pool):
  def full(pixels_NHWC):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes')

  of = pipeline(autoencoder, SimpleNamespace(start=full), pool)
  with pytest.raises(types.UserError, match='no memory for 3 pictures at once.*--batch_size'):
    list(of.results(0))


def test_float16_is_the_nearest_of_float32(autoencoder, encoder, pool, made):
  of = pipeline(autoencoder, encoder, pool, dtype='float16')
  for key, example in split(of.results(0))[0].items():
    exact = made[0][key].columns['moments']
    found = example.columns['moments']
    assert found.dtype == np.float16
    half_an_ulp = np.spacing(np.abs(found)).astype(np.float64) / 2
    assert (np.abs(found.astype(np.float64) - exact) <= half_an_ulp).all()


def test_neighbours_and_filling_change_no_bit(encoder):
  """One program for a full and for a filled batch: every row is its own."""
  pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
  full = np.asarray(encoder.start(pixels))
  np.testing.assert_array_equal(np.asarray(encoder.start(pixels[:1]))[0], full[0])
  swapped = np.concatenate([pixels[:2], pixels[:1]])
  np.testing.assert_array_equal(np.asarray(encoder.start(swapped))[:2], full[:2])


@pytest.mark.parametrize(
  'factor, dtype, words',
  [
    (np.inf, 'float32', r"'ant/000.jpg' latents that are not finite"),
    (1e6, 'float16', r"'ant/000.jpg' latents up to .*e\+0.*--dtype=float32"),
  ],
)
def test_moments_that_the_store_cannot_hold_are_refused_by_name(pool, factor, dtype, words):
  autoencoder = vae_files.random(small.CONFIG, 0)
  kernel = autoencoder.params['encoder']['conv_out']
  kernel['kernel'] = kernel['kernel'] * np.float32(factor)
  of = pipeline(
    autoencoder, encode.Encoder(making.encoded(autoencoder, small.SIZE), 3), pool, dtype=dtype
  )
  with pytest.raises(types.UserError, match=words):
    list(of.results(0))


def test_pictures_are_read_ahead_but_not_without_bound(autoencoder, encoder, pool):
  collection = small.Memory(small.files(bad={}))
  of = pipeline(autoencoder, encoder, pool, collection, records_per_shard=24)
  results = of.results(0)
  next(results)
  time.sleep(0.5)
  # Two batches were taken, and the window is 2 threads and two batches.
  assert 6 < len(collection.reads) <= 6 + 2 + 2 * 3
  results.close()
