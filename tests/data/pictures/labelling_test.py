"""Who says the classes: files beside the pictures, and files that a user names."""

import io
import json
import tarfile

from helpers import malformed
import numpy as np
import pytest
from scipy import io as scipy_io

from diversedit_jax import types
from diversedit_jax.data import pictures

PNG = malformed.sound('PNG')
EDM = {f'00000/img{i:08d}.png': PNG for i in range(3)} | {'00001/img00001000.png': PNG}
SAID = [5, 2, 0, 5]
VAL = [f'ILSVRC2012_val_{i:08d}.JPEG' for i in (1, 2, 3)]


def dataset_json(labels=SAID, names=EDM):
  said = labels and [list(pair) for pair in zip(names, labels, strict=True)]
  return json.dumps({'labels': said}).encode()


def shard(first, labels, kind='cls'):
  """A shard of WebDataset."""
  files = {}
  for i, label in enumerate(labels, first):
    text = json.dumps({'caption': 'x', 'label': label}) if kind == 'json' else f'{label}\n'
    files |= {f'{i:06d}.jpg': PNG, f'{i:06d}.{kind}': text.encode()}
  return malformed.tar_bytes(files)


@pytest.fixture
def make(tmp_path):
  """Writes files as a folder or in an archive; its path."""

  def write(files, kind='folder'):
    path = tmp_path / f'x.{kind}'
    if kind == 'folder':
      return malformed.write_folder(path, files)
    path.write_bytes(getattr(malformed, f'{kind}_bytes')(files))
    return path

  return write


def labels(collection):
  """Labels by name, and the names of all classes."""
  listing = collection.listing
  return dict(zip(listing.names, listing.labels.tolist(), strict=True)), listing.label_names


@pytest.mark.parametrize('kind', ['folder', 'zip', 'tar'])
@pytest.mark.parametrize('above', ['', 'images/'])
def test_the_layout_of_edm2_and_repa(make, kind, above):
  files = {f'{above}{name}': data for name, data in EDM.items()}
  files |= {f'{above}dataset.json': dataset_json(), 'vae-sd/00000/img-mean-std-00000000.npy': b'x'}
  found, names = labels(pictures.open_pictures(make(files, kind)))
  assert found == {f'{above}{name}': label for name, label in zip(EDM, SAID, strict=True)}
  assert names == tuple('012345')
  classes = tuple('abcdef')
  assert labels(pictures.open_pictures(make(files, kind), classes=classes)) == (found, classes)


@pytest.mark.parametrize(
  'files',
  [
    EDM | {'dataset.json': dataset_json(None)},
    EDM,  # Its file of labels is lost.
    {'00000/00000.png': PNG, '01000/01000.png': PNG},  # FFHQ.
    {'00000/000000001.jpg': PNG, '00003/000030007.jpg': PNG},  # img2dataset.
    {'000000.png': PNG, '000001.png': PNG},  # What DiT's and SiT's samplers leave.
  ],
)
def test_pictures_without_classes_are_of_one_and_it_is_said(make, caplog, files):
  found, names = labels(pictures.open_pictures(make(files)))
  assert (
    names == ('all',)
    and set(found.values()) == {0}
    and len(found) == len(files) - ('dataset.json' in files)
  )
  assert 'are of one class' in caplog.text
  caplog.clear()
  assert labels(pictures.open_pictures(make(files), labels='none')) == (found, names)
  assert labels(pictures.open_pictures(make(files), labels='any', classes=('a', 'b')))[0] == found
  assert not caplog.text
  with pytest.raises(types.UserError, match='in no class folder.*--labels=FILE'):
    pictures.open_pictures(make(files), classes=('a', 'b'))
  with pytest.raises(types.UserError, match='--classes has nothing to name; leave out one'):
    pictures.open_pictures(make(files), classes=('a', 'b'), labels='none')


def test_names_count_from_the_folder_of_dataset_json(make):
  names = ('0/a.png', '1/a.png')
  files = {f'images/{name}': PNG for name in names}
  files['images/dataset.json'] = dataset_json([1, 0], names)
  found, _ = labels(pictures.open_pictures(make(files)))
  assert found == {'images/0/a.png': 1, 'images/1/a.png': 0}


def test_other_files_by_these_names_say_nothing(make):
  files = {'a/1.png': PNG, 'b/2.png': PNG, 'dataset.json': b'{"name": "mine"}', 'a/1.json': b'[1]'}
  assert labels(pictures.open_pictures(make(files)))[1] == ('a', 'b')
  files['dataset.json'] = json.dumps({'labels': {'a/1.png': 1, 'b/2.png': 0}}).encode()
  assert labels(pictures.open_pictures(make(files)))[0] == {'a/1.png': 1, 'b/2.png': 0}
  found = labels(pictures.open_pictures(make(files), labels='folders'))
  assert found == ({'a/1.png': 0, 'b/2.png': 1}, ('a', 'b'))


@pytest.mark.parametrize(
  'name,data,message',
  [
    ('dataset.json', dataset_json()[:40], 'dataset.json: damaged, not JSON: .*--labels=folders'),
    (
      'dataset.json',
      dataset_json([[0, 1], 1, 1, 1]),
      r'img00000000.png: the label \[0, 1\] is nei',
    ),
    ('00000/img00000000.cls', b'-1', 'img00000000.cls: the label -1 is out of range'),
    ('00000/img00000000.cls', b'\xff', 'img00000000.cls: not UTF-8'),
  ],
)
def test_labels_that_cannot_be_read_are_no_reason_to_guess(make, name, data, message):
  with pytest.raises(types.UserError, match=message):
    pictures.open_pictures(make(EDM | {name: data}))


@pytest.mark.parametrize('kind', ['cls', 'json'])
@pytest.mark.parametrize('form', ['', '/shard-{00000..00001}.tar', '/shard-*.tar', 'one'])
def test_shards_of_webdataset(tmp_path, kind, form):
  """The same keys in every shard are different pictures."""
  for k, said in enumerate(([3, 1], [0, 12])):
    malformed.write_folder(tmp_path, {f'shard-{k:05d}.tar': shard(0, said, kind)})
  spec = f'tar:{tmp_path}{form}' if form != 'one' else f'tar:{tmp_path}/shard-00001.tar'
  collection = pictures.open_pictures(spec)
  assert not collection.listing.skipped  # What says labels is not left out.
  found = {f'shard-{k:05d}/{i:06d}.jpg': y for k, i, y in [(0, 0, 3), (0, 1, 1), (1, 0, 0)]}
  found |= {'shard-00001/000001.jpg': 12}
  if form == 'one':
    found = {'000000.jpg': 0, '000001.jpg': 12}
  assert labels(collection) == (found, tuple(str(k) for k in range(13)))
  assert all(collection.read(i) == PNG for i in range(len(found)))
  if not form:
    assert labels(pictures.open_pictures(tmp_path)) == labels(collection)


def test_several_tars_may_hold_class_folders_or_be_classes(tmp_path):
  malformed.write_folder(
    tmp_path,
    {
      'a/0.tar': malformed.tar_bytes({'./cat/1.png': PNG, 'dog/1.png': PNG}),
      'a/1.tar': malformed.tar_bytes({'dog/1.png': PNG}),
      'b/n00000001.tar': malformed.tar_bytes({'n00000001_1.JPEG': PNG}),
      'b/n00000002.tar': malformed.tar_bytes({'x.JPEG': PNG}),
      'c/train-0.tar': shard(0, [1]),
      'c/val-0.tar': shard(0, [1]),
      'd/00000.tar': malformed.tar_bytes({'000000000.jpg': PNG, '000000000.txt': b'a dog'}),
      'd/00001.tar': malformed.tar_bytes({'000010000.jpg': PNG}),
    },
  )
  open_tar = lambda name: labels(pictures.open_pictures(f'tar:{tmp_path}/{name}'))
  assert open_tar('a') == ({'0/cat/1.png': 0, '0/dog/1.png': 1, '1/dog/1.png': 1}, ('cat', 'dog'))
  assert open_tar('b')[1] == ('n00000001', 'n00000002')
  assert open_tar('d')[1] == ('all',)
  with pytest.raises(
    types.UserError, match=r'the splits train, val; name one, as in .*/train\*.tar'
  ):
    open_tar('c')
  assert open_tar('c/val*.tar')[0] == {'val-0/000000.jpg': 1}
  with pytest.raises(
    types.UserError, match='names 3 files, but 1 of them are missing, first .*2.tar'
  ):
    open_tar('a/{0..2}.tar')


def test_entries_of_json_that_may_be_meant_are_named(make):
  write = lambda *said: make(
    {f'{k}.jpg': PNG for k in range(2)}
    | {f'{k}.json': json.dumps(x).encode() for k, x in enumerate(said)},
    'tar',
  )
  found = labels(
    pictures.open_pictures(write(*({'caption': 'x', 'fine_label': k} for k in (1, 0))))
  )
  assert found == ({'0.jpg': 1, '1.jpg': 0}, ('0', '1'))
  path = write(*({'fine_label': k, 'coarse_label': 0} for k in (1, 0)))
  with pytest.raises(types.UserError, match="'coarse_label', 'fine_label' may be the label; name"):
    pictures.open_pictures(path)
  assert labels(pictures.open_pictures(path, labels='fine_label')) == found
  assert labels(pictures.open_pictures(path, labels='any'))[1] == ('all',)
  with pytest.raises(types.UserError, match="'cls', 'label' may be the label"):
    pictures.open_pictures(write({'label': 1}, {'cls': 0}))


def test_a_picture_that_nobody_labels_is_left_out_and_said(make, tmp_path, caplog):
  files = {'0.jpg': PNG, '0.cls': b'1', '1.jpg': PNG, '2.jpg': PNG, '2.cls': b'0'}
  (tmp_path / 'x.tar').write_bytes(malformed.tar_bytes(files))
  assert labels(pictures.open_pictures(tmp_path / 'x.tar'))[0] == {'0.jpg': 1, '2.jpg': 0}
  assert "1 pictures or folders are left out, first '1.jpg': it has no label" in caplog.text
  assert len(pictures.open_pictures(tmp_path / 'x.tar', labels='any').listing) == 3
  with pytest.raises(
    types.UserError, match='none of its 1 pictures can be labelled.*--labels=none'
  ):
    pictures.open_pictures(make({'a.png': PNG, 'dataset.json': dataset_json([1], ['b.png'])}))


def devkit():
  """A development kit of four classes, whose numbers are not in the order of the WordNet ids."""
  kind = [('ILSVRC2012_ID', 'O'), ('WNID', 'O'), ('words', 'O'), ('num_children', 'O')]
  ids = ['n00000003', 'n00000001', 'n00000004', 'n00000002', 'n99999999']
  synsets = np.array([(k, wnid, 'x', 3 * (k == 5)) for k, wnid in enumerate(ids, 1)], kind)
  buffer = io.BytesIO()
  scipy_io.savemat(buffer, {'synsets': synsets.reshape(-1, 1)})
  return {
    'ILSVRC2012_devkit_t12/data/meta.mat': buffer.getvalue(),
    'ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt': b'3\n1\n4\n',
  }


def _gzipped(files):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
    for name, data in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  return buffer.getvalue()


LABELLED = list(zip(VAL, (4, 3, 2), strict=True))
LISTS = {
  'kaggle.csv': 'ImageId,PredictionString\n'
  + ''.join(f'{VAL[i][:-5]},n0000000{c} 1 2 3 4 \n' for i, c in ((2, 2), (0, 4), (1, 3))),
  'mine.csv': 'filename;label\n' + ''.join(f'{n};n0000000{c}\n' for n, c in LABELLED),
  'synsets.txt': 'n00000004\nn00000003\nn00000002\n',
  'table.txt': 'image|label\n' + ''.join(f'{n}|n0000000{c}\n' for n, c in LABELLED),
  'commas.txt': ''.join(f'{n},n0000000{c}\n' for n, c in LABELLED),
  'caffe.txt': ''.join(f'{n} n0000000{c}\n' for n, c in LABELLED),
}


@pytest.mark.parametrize('form', ['devkit', 'devkit.tar.gz', *LISTS])
@pytest.mark.parametrize('above', ['', 'ILSVRC2012_img_val/'])
def test_ilsvrcs_validation_pictures(tmp_path, form, above):
  path = tmp_path / 'val.tar'
  path.write_bytes(malformed.tar_bytes({f'{above}{name}': PNG for name in reversed(VAL)}))
  if form == 'devkit':
    malformed.write_folder(tmp_path / form, devkit())
  else:
    data = LISTS[form].encode() if form in LISTS else _gzipped(devkit())
    (tmp_path / form).write_bytes(data)
  found, names = labels(pictures.open_pictures(path, labels=str(tmp_path / form)))
  assert [names[y] for y in found.values()] == ['n00000004', 'n00000003', 'n00000002']
  assert names[-3:] == ('n00000002', 'n00000003', 'n00000004')
  with pytest.raises(types.UserError, match='whose names do not say .*devkit_t12.tar.gz.*=none'):
    pictures.open_pictures(path)
  assert len(labels(pictures.open_pictures(path, labels='any'))[0]) == 3


@pytest.mark.parametrize(
  'text,message',
  [
    ('1\n2\n', 'holds 2 labels, but .* holds 3 pictures'),
    ('\n'.join(map(str, range(1, 1001))), 'not that of the WordNet ids; give the kit itself'),
    ('a.png 1\nb.png 2\n', 'names no picture of .*: it names a.png, b.png, and there are ILSVRC'),
    (f'{VAL[0]} 1\n{VAL[0]} 2\n', 'val_00000001.JPEG has two labels, 1 and 2; remove one'),
    ('1\nx y\n', 'one label a line, or a name and a label'),
    ('1\n2.5\n1\n', ':2: the label 2.5 is a number, but not a whole one'),
    ('1\ncat\n1\n', "'cat'.*labels are all numbers or all names"),
  ],
)
def test_lists_that_do_not_fit_say_why(make, tmp_path, text, message):
  (tmp_path / 'labels.txt').write_text(text)
  with pytest.raises(types.UserError, match=message):
    pictures.open_pictures(make(dict.fromkeys(VAL, PNG)), labels=str(tmp_path / 'labels.txt'))


def test_a_prefix_is_the_class_as_in_guided_diffusion(make):
  files = make({'cat_1.png': PNG, 'dog_2_x.png': PNG, 'none.png': PNG})
  found = labels(pictures.open_pictures(files, labels='prefix'))
  assert found == ({'cat_1.png': 0, 'dog_2_x.png': 1}, ('cat', 'dog'))
  with pytest.raises(
    types.UserError, match='no such file, and no such entry .* expected one of none, folders, pre'
  ):
    pictures.open_pictures(files, labels='prefixes')
