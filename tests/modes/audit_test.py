"""`--mode=audit`: its report on digits and on stores, audit.json, remarks, faults that end it."""

import hashlib
import json

from helpers import small, small_runs
import numpy as np
import pytest

from diversedit_jax import modes, types
from diversedit_jax.data import order
from diversedit_jax.frozen import vae_files
from diversedit_jax.preparation import encode, making, work


def make(**changes):
  return small_runs.make(method='flow', **changes)


def lines(text):
  """{first word: the rest} of a report; remarks in one list."""
  named = {}
  for line in text.splitlines():
    name, rest = line[:12].strip(), line[12:]
    named.setdefault(name, []).append(rest)
  return {name: rest if name == 'remark' else rest[0] for name, rest in named.items()}


@pytest.fixture(scope='module')
def stores(tmp_path_factory):
  """A store of moments with twins, made of 24 pictures of which two are bad, and one of pixels."""
  root = tmp_path_factory.mktemp('stores')
  collection = small.Memory(small.files())
  autoencoder = vae_files.random(small.CONFIG, 0)
  asked = small.asked(root / 'moments', twins=True)
  work.prepare(asked, collection, making.encoded(autoencoder, small.SIZE))
  work.prepare(small.asked(root / 'pixels', store='pixels', vae=None), collection, None)
  return root


def of_store(stores, name, **changes):
  more = {'data__size': small.SIZE, 'data__flip': True, 'train__batch_size': 8, **changes}
  return make(data__source=f'store:{stores}/{name}', **more)


def test_a_store_is_audited_in_its_copy(stores, tmp_path):
  report = lambda **more: [
    line
    for line in modes.audit.run(of_store(stores, 'moments', **more), '').splitlines()
    if 'examples/s' not in line
  ]
  assert report(data__cache=str(tmp_path)) == report()
  assert list(tmp_path.glob('moments-*/shards/moments-*'))


def test_digits():
  found = lines(modes.audit.run(make(seed=3), ''))
  assert found['data'] == 'digits/train, 1,442 examples, batch 32'
  for epoch in (0, 1):
    indices = order.permutation(3, epoch, 1442).astype('<i8')
    expected = hashlib.sha256(indices.tobytes()).hexdigest()[:16]
    line = f'sha256 {expected}, each example once, 0.0% mirrored'
    assert found[f'epoch {epoch}'] == line
  assert found['processes'] == '1, 2, 4, 8: the same global batches'
  labels = make().source.labels
  least, most = np.bincount(labels).min(), np.bincount(labels).max()
  assert found['labels'] == f'10 classes of {least} to {most} examples, 0 empty'
  assert found['range'] == '-1.000 to 1.000'
  assert 'remark' not in found and 'shards' not in found


def test_the_report_is_kept_in_the_workdir(tmp_path):
  experiment = make(seed=3, data__flip=True)
  text = lines(modes.audit.run(experiment, str(tmp_path / 'run')))
  assert [path.name for path in (tmp_path / 'run').iterdir()] == ['audit.json']
  facts = json.loads((tmp_path / 'run' / 'audit.json').read_text())
  assert (facts['data'], facts['name'], facts['seed']) == ('digits', 'digits/train', 3)
  assert (facts['batch_size'], facts['faults'], facts['remarks']) == (32, [], [])
  assert facts['order']['processes'] == {'1': True, '2': True, '4': True, '8': True}
  for epoch in facts['order']['epochs']:
    assert epoch['seen'] == [1, 1] and 0.4 < epoch['mirrored'] < 0.6
    assert epoch['sha256'][:16] in text[f'epoch {epoch["epoch"]}']
    assert f'{epoch["mirrored"]:.1%} mirrored' in text[f'epoch {epoch["epoch"]}']
  # Whole batches of 32 are read: 45 of the 1,442 digits.
  source = experiment.source
  some = np.concatenate([order.batch_indices(3, step, 32, 1442) for step in range(45)])
  values = source.data[some].astype(np.float64)
  assert facts['values']['examples'] == 45 * 32
  np.testing.assert_allclose(facts['values']['mean'], values.mean(), rtol=1e-12)
  np.testing.assert_allclose(facts['values']['std'], values.std(), rtol=1e-12)


def test_a_store_of_moments(stores, tmp_path):
  experiment = of_store(stores, 'moments')
  found = lines(modes.audit.run(experiment, str(tmp_path)))
  assert found['data'] == 'store/moments, 22 examples, batch 8'
  assert found['labels'] == '3 classes of 7 to 8 examples, 0 empty'
  assert found['values'].startswith('16 examples, ')
  manifest = experiment.source.store.manifest
  assert found['source'] == f'memory/small, content {manifest.content_sha256[:16]}'
  assert found['crop'] == 'adm to 32, orientation exif'
  sha256 = vae_files.random(small.CONFIG, 0).encoder_sha256
  assert found['vae'] == f'random-0, encoder {sha256[:16]}'
  assert found['shards'] == '6, 22 examples, 2 skipped'
  assert json.loads((tmp_path / 'audit.json').read_text())['store'] == {
    name: found[name] for name in ('source', 'crop', 'vae', 'shards')
  }


def test_values_are_those_of_scaled_samples(stores, tmp_path):
  """Mean and deviation of latents as the model sees them, of the 16 that are read."""
  experiment = of_store(stores, 'moments')
  modes.audit.run(experiment, str(tmp_path))
  found = json.loads((tmp_path / 'audit.json').read_text())['values']
  steps = [order.batch_indices(0, step, 8, 22) for step in range(2)]
  flips = [order.batch_flips(0, step, 8, 22) for step in range(2)]
  moments = experiment.source.gather(np.concatenate(steps), np.concatenate(flips))['moments']
  mean, std = np.split(moments.astype(np.float64), 2, axis=-1)
  # Var(z) = Var(mean) + E[std^2]; the noise of 1,024 draws is within 5 of its standard errors.
  expected = np.sqrt(mean.var(axis=(0, 1, 2)) + (std**2).mean(axis=(0, 1, 2)))
  n = mean[..., 0].size
  np.testing.assert_allclose(found['std'], expected * small.CONFIG.scale, rtol=5 / np.sqrt(2 * n))
  error = 5 * std.max() / np.sqrt(n) * small.CONFIG.scale
  expected = (mean.mean(axis=(0, 1, 2)) - small.CONFIG.shift) * small.CONFIG.scale
  np.testing.assert_allclose(found['mean'], expected, atol=error)


def test_a_store_of_pixels(stores):
  found = lines(modes.audit.run(of_store(stores, 'pixels'), ''))
  assert found['vae'] == 'none, pixels'
  low, _, high = found['range'].split()
  assert -1 <= float(low) < -0.5 and 0 < float(high) <= 1  # Not 0 to 255.
  assert 'remark' not in found


@pytest.mark.parametrize(('scale', 'remarked'), [(1.0, False), (5.489, True)])
def test_latents_of_another_scale_are_remarked(tmp_path, scale, remarked):
  latents = np.random.default_rng(0).normal(size=(64, 4, 4, 2)).astype(np.float32) * scale
  np.savez(tmp_path / 'x.npz', latents=latents, labels=np.arange(64) % 3)
  experiment = make(data__source=f'arrays:{tmp_path}/x.npz')
  found = lines(modes.audit.run(experiment, ''))
  assert ('remark' in found) == remarked
  if remarked:
    (remark,) = found['remark']
    assert remark.startswith(f'channels have standard deviations {latents[..., 0].std():.2f}, ')
    assert 'the scale may not be that of the autoencoder' in remark


@pytest.mark.parametrize(
  ('first', 'top', 'remarks'),
  [
    (0, 0, ['2 of 5 classes have no example']),
    (1, 0, ['labels begin at 1, so class 0 has no', '2 of 5 classes have no example']),
    (
      2,
      1,
      ['values lie in [0.00, 1.00], expected about [-1, 1]', '2 of 5 classes have no example'],
    ),
  ],
)
def test_odd_labels_and_values_are_remarked(tmp_path, first, top, remarks):
  images = np.zeros((64, 8, 8, 1), np.float32)
  images[:, 0] = top
  np.savez(tmp_path / 'x.npz', images=images, labels=first + np.arange(64) % 3)
  experiment = make(data__source=f'arrays:{tmp_path}/x.npz', data__num_classes=5)
  found = lines(modes.audit.run(experiment, ''))
  assert found['labels'] == '5 classes of 0 to 22 examples, 2 empty'
  assert len(found['remark']) == len(remarks)
  assert all(map(str.startswith, found['remark'], remarks))


def test_an_order_with_faults_raises_and_names_all_of_them(tmp_path, monkeypatch):
  first = lambda seed, step, batch_size, n: np.arange(batch_size)
  monkeypatch.setattr(order, 'batch_indices', first)
  with pytest.raises(types.UserError) as error:
    modes.audit.run(make(), str(tmp_path))
  message = str(error.value)
  assert message.startswith('digits/train: epoch 0 shows examples [0, ')
  assert '; epoch 1 shows examples ' in message and 'expected once' in message
  kept = json.loads((tmp_path / 'audit.json').read_text())
  assert f'digits/train: {"; ".join(kept["faults"])}' == message


@pytest.mark.parametrize(
  ('name', 'part', 'flip', 'message'),
  [
    ('009', slice(None), False, '64 positions of the data are not finite'),
    ('', slice(1, 2), True, '[0-9]+ positions of the data are not finite'),
  ],
  ids=['one picture', 'mirror images'],
)
def test_values_that_are_not_finite_raise(tmp_path, monkeypatch, name, part, flip, message):
  """A store that another program has written."""

  def broken(moments, dtype, of):
    stored = np.ones_like(moments, dtype)
    stored[part] = np.inf if name in of else 1
    return stored

  monkeypatch.setattr(encode, '_stored', broken)
  collection = small.Memory(small.files(bad={}))
  asked = small.asked(tmp_path / 'broken', twins=True)
  made = making.encoded(vae_files.random(small.CONFIG, 0), small.SIZE)
  work.prepare(asked, collection, made)
  source = {'data__source': f'store:{tmp_path}/broken', 'data__flip': flip}
  with pytest.raises(types.UserError, match=message):
    modes.audit.run(make(**source, train__batch_size=24), str(tmp_path / 'run'))


def test_bad_pictures_alone_are_named(tmp_path):
  """Then there are no values to describe."""
  for name in ('a/1.png', 'a/2.png', 'b/3.png'):
    (tmp_path / 'pictures' / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / 'pictures' / name).write_bytes(b'no picture')
  experiment = make(data__source=f'folder:{tmp_path}/pictures', data__size=8, train__batch_size=2)
  with pytest.raises(types.UserError, match='3 of 3 pictures that were read are bad.*a/1.png: no'):
    modes.audit.run(experiment, str(tmp_path / 'run'))
  facts = json.loads((tmp_path / 'run' / 'audit.json').read_text())
  assert facts['values'] == {
    'examples': 0,
    'per_second': None,
    'nonfinite': 0,
    'mean': [],
    'std': [],
    'min': None,
    'max': None,
  }
