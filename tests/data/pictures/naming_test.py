"""The one rule of folders and archives: which files are pictures, and of which class."""

import pytest

from diversedit_jax import types
from diversedit_jax.data.pictures import labelling, naming


def arrange(*names, classes=None, folders=(), labels=None):
  listing, order, top = naming.arrange(
    [(n, 5) for n in names], (), folders, classes, 'X', labels=labels
  )
  assert [names[i].removeprefix(top) for i in order] == list(listing.names)
  return {
    name: listing.label_names[label]
    for name, label in zip(listing.names, listing.labels, strict=True)
  }, listing


@pytest.mark.parametrize(
  'names,expected',
  [
    (['b/1.png', 'a/2.png'], {'a/2.png': 'a', 'b/1.png': 'b'}),
    (['a/x/1.png', 'b/y/z/1.png'], {'a/x/1.png': 'a', 'b/y/z/1.png': 'b'}),
    (['train/a/1.png', 'train/b/1.png'], {'a/1.png': 'a', 'b/1.png': 'b'}),
    # Only one folder is left out, and none that holds pictures itself.
    (['x/train/a/1.png', 'x/train/b/1.png'], {'train/a/1.png': 'train', 'train/b/1.png': 'train'}),
    (['a/1.png', 'a/x/2.png'], {'a/1.png': 'a', 'a/x/2.png': 'a'}),
    # Named by WordNet ids, without folders or in one that is no class.
    (
      ['all/n00000002_1.JPEG', 'all/n00000001_1.JPEG'],
      {'n00000001_1.JPEG': 'n00000001', 'n00000002_1.JPEG': 'n00000002'},
    ),
    (['n00000002/n00000002_1.JPEG'], {'n00000002/n00000002_1.JPEG': 'n00000002'}),
    (
      ['n00000002/a.JPEG', 'n00000001_1.JPEG'],
      {'n00000001_1.JPEG': 'n00000001', 'n00000002/a.JPEG': 'n00000002'},
    ),
  ],
)
def test_classes_and_names(names, expected):
  assert arrange(*names)[0] == expected


def test_a_picture_without_a_class_is_skipped_by_name():
  found, listing = arrange('b.png', 'a/1.png', 'n123_1.png', 'n00000001.png')
  assert found == {'a/1.png': 'a'}
  assert [s.name for s in listing.skipped] == ['b.png', 'n00000001.png', 'n123_1.png']
  assert {s.reason for s in listing.skipped} == {'in no class folder'}


@pytest.mark.parametrize('above', ['', 'data/'])
@pytest.mark.parametrize(
  'splits', ['train,val', 'Train,Val', 'train2017,val2017', 'train,val,extra']
)
def test_splits_are_no_classes(above, splits):
  splits = splits.split(',')
  names = [f'{above}{split}/{c}/1.png' for split in splits for c in 'ab']
  words = f'holds the splits {", ".join(splits[:2])}, .* X/{above}{splits[1]}, or say --labels=fol'
  with pytest.raises(types.UserError, match=words):
    arrange(*names)
  found, _ = arrange(*names, labels=labelling.Labels(given='folders'))
  assert {*found.values()} == {*splits}
  assert arrange('train/1.png', 'bus/1.png')[0] == {'bus/1.png': 'bus', 'train/1.png': 'train'}


def test_one_class_of_nothing_but_folders_is_remarked_on(caplog):
  arrange('x/y/a/1.png', 'x/y/b/2.png')
  assert (
    "class, 'y', and lie in its folders a, b; if these are the classes, give X/x/y" in caplog.text
  )
  caplog.clear()
  arrange('x/a/1.png', 'x/a/2.png')
  assert not caplog.text


@pytest.mark.parametrize(
  'folders,skipped,words',
  [
    (['a', 'b', 'b/x', 'c'], [], r"nothing in 'b' can be listed \(an empty folder\)"),
    (['a', 'b', 'c'], ['b/.DS_Store'], "nothing in 'b' can be listed"),
    (['a', 'b', 'c'], ['b/1.png', 'b/boxes.txt'], r"nothing in 'b' can be listed \(why\)"),
    (['a', 'b', 'c', 'd'], [], "nothing in 'b' and 1 more can"),
  ],
)
@pytest.mark.parametrize('top', ['', 'train/'])
def test_a_lost_class_is_refused_unless_the_classes_are_named(top, folders, skipped, words):
  """The labels of all that come after it would be others."""
  found = [(f'{top}{name}', 5) for name in ('a/1.png', 'c/1.png')]
  folders = [*([top[:-1]] if top else []), *(top + name for name in folders)]
  lost = [naming.skip(top + name, 'why') for name in skipped]
  with pytest.raises(types.UserError, match=words.replace("in '", f"in '{top}") + '.*--classes'):
    naming.arrange(found, lost, folders, None, 'X')
  listing, *_ = naming.arrange(found, lost, folders, ('a', 'b', 'c'), 'X')
  assert listing.labels.tolist() == [0, 2]


def test_folders_that_are_no_classes_may_lie_beside_them():
  folders = ['a', 'boxes', '.git', '.git/refs', 'a/empty']
  skipped = [naming.skip('boxes/1.xml', 'not named as a picture'), naming.skip('a/2.png', 'why')]
  listing, *_ = naming.arrange([('a/1.png', 5)], skipped, folders, None, 'X')
  assert listing.label_names == ('a',)


def test_given_classes_decide_the_labels():
  listing = arrange('cat/1.png', 'ant/1.png', classes=('bee', 'cat', 'ant'))[1]
  assert listing.labels.tolist() == [2, 1] and listing.label_names == ('bee', 'cat', 'ant')
  with pytest.raises(types.UserError, match="class 'cat', which is not one of the 2 classes"):
    arrange('cat/1.png', classes=('cats', 'dogs'))
  with pytest.raises(types.UserError, match='two files for one key.*a/1.jpg.*a/1.png'):
    arrange('a/1.jpg', 'a/1.png')
