"""Names of classes, in any encoding, beside a grid's rows, on cards, in stores and in data.json."""

import json
import os

from helpers import malformed, small
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.data import images, sources
from diversedit_jax.evaluation import card
from diversedit_jax.modes import run_context
from diversedit_jax.preparation import work

NAMES = ['0', 'été', '日本', 'b\udcff', 'a very long name of a class']
STORED = [os.fsdecode(name) for name in (b'caf\xe9', 'été'.encode(), b'\xff\xfe')]


def test_rows_of_a_grid_are_labelled_by_number_and_name(tmp_path, monkeypatch):
  drawn, save = [], images.save_grid
  monkeypatch.setattr(
    images, 'save_grid', lambda *a, **k: drawn.append(k['row_labels']) or save(*a, **k)
  )
  labels = np.repeat(np.arange(6), 2)  # The last is of no class.
  made = np.zeros((12, 8, 8, 3), np.uint8)
  run_context.save_grid(tmp_path / 'a.png', made, labels, 2, title='t', names=NAMES)
  run_context.save_grid(tmp_path / 'b.png', made, labels, 2, title='t')
  run_context.save_grid(tmp_path / 'c.png', made, labels, 3, title='t', names=NAMES)
  expected = ['0', *(f'{k} {NAMES[k]}' for k in (1, 2, 3))]
  assert drawn == [[*expected, '4 a very long name of…', '5 no class'], list('012345'), None]
  assert (tmp_path / 'a.png').stat().st_size > (tmp_path / 'b.png').stat().st_size


def test_cards_name_the_classes_that_occur(tmp_path):
  facts = card.label_names(np.array([3, 1, 1, 5]), NAMES)
  assert facts == {'1': 'été', '3': 'b\udcff'}
  card.write_json(tmp_path / 'x.json', facts)
  assert json.loads((tmp_path / 'x.json').read_bytes()) == facts
  assert 'été' in (tmp_path / 'x.json').read_text('utf-8')  # Whoever reads the file sees it.
  many = card.label_names(np.arange(1000), [f'n{k:08d}' for k in range(1000)])
  assert many.pop('0') == 'n00000000' and many.pop('999') == 'n00000999' and len(many) == 1


@pytest.mark.parametrize('kind', ['store', 'folder'])
def test_names_in_any_encoding_reach_a_store_and_the_facts_of_a_run(tmp_path, kind):
  png = malformed.sound('PNG')
  files = {f'{name}/{name}.png': png for name in STORED} | {f'{STORED[0]}/b\udcfe.png': b''}
  folder = malformed.write_folder(tmp_path / 'caf\udce9', files)
  if kind == 'store':
    store = {'store': 'pixels', 'vae': None, 'size': 16}
    work.run(small.asked(tmp_path / 'store', source=f'folder:{folder}', **store)).text()
    folder = tmp_path / 'store'
    assert b'/b\xfe.png' in (folder / 'skipped.csv').read_bytes()
  source = sources.open_source(f'{kind}:{folder}', size=16)
  facts = run_context.data_facts(source)
  assert facts['label_names'] == sorted(STORED)
  card.write_json(tmp_path / 'audit.json', facts)
  assert json.loads((tmp_path / 'audit.json').read_bytes()) == facts


def test_a_store_that_was_begun_in_another_order_of_classes_names_the_way_on(tmp_path):
  png = malformed.sound('PNG')
  folder = malformed.write_folder(tmp_path / 'd', {f'{k}/{k}.png': png for k in (1, 2, 10)})
  more = {'source': str(folder), 'store': 'pixels', 'vae': None, 'size': 16}
  made = work.run(small.asked(tmp_path / 'store', **more, classes='alphabetical'))
  assert made.plan.label_names == ('1', '10', '2')
  with pytest.raises(types.UserError, match='same in another order, which --classes=alphabetical'):
    work.run(small.asked(tmp_path / 'store', **more))
  work.run(small.asked(tmp_path / 'store', **more, classes='alphabetical'))
