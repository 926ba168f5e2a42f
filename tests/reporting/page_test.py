"""The page of a report, read as a browser reads it: by Python's own parser of HTML."""

import base64
import datetime
import hashlib
import html.parser
import json
import re

from helpers import recorded_runs
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.modes import report
from diversedit_jax.reporting import markup, page, pictures, runs

VOID = {'br', 'img', 'input', 'link', 'meta', 'hr'}
HOSTILE = '<img src=x onerror=alert(1)>"\'& </script><script>alert(2)</script>'


class Read(html.parser.HTMLParser):
  """Elements in order, their text, and whether each is closed where it should be."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.text, self.scripts, self._open = [], [], [], []
    self.feed(text)
    self.close()
    assert not self._open, self._open

  def handle_starttag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))
    assert len(dict(attributes)) == len(attributes)
    if tag not in VOID:
      self._open.append(tag)
    if tag == 'script':
      self.scripts.append((dict(attributes), ''))

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    if self._open and self._open[-1] == 'script':
      self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
    elif self._open and self._open[-1] != 'style':
      self.text.append(data)

  def words(self):
    return ' '.join(' '.join(self.text).split())


def read_all(*paths, frames=12):
  found = runs.find([str(path) for path in paths])
  return runs.read_all(found, frames)


def write(*paths, frames=12):
  return page.write(read_all(*paths, frames=frames), 'T', datetime.datetime(2026, 12, 1, 6, 0))


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs')
  a = recorded_runs.write(folder / 'a')
  b = recorded_runs.write(folder / 'b', config={'optimizer': {'learning_rate': 0.5}})
  (b / 'eval' / 'final.json').write_text(
    json.dumps({'scores': {'fid': 7.0}, 'protocol': {**recorded_runs.PROTOCOL, 'nfe': 16}})
  )
  return a, b


def test_the_page_needs_nothing_but_itself(two):
  text = write(*two)
  found = Read(text)
  for tag, attributes in found.elements:
    assert tag not in ('link', 'iframe', 'object', 'base')
    source = attributes.get('src', '')
    assert source == '' or source.startswith('data:image/')
    assert attributes.get('href', '#').startswith('#')
    assert not [name for name in attributes if name.startswith('on')]
  assert not re.search(
    r'https?://|//[a-z]|@import|url\(', re.sub(r'//.*', '', page._file('page.js'))
  )
  assert not re.search(r'https?:|@import|url\(', page._file('page.css'))
  assert 'http://' not in text.replace('http://www.w3.org/2000/svg', '') and 'https://' not in text
  ids = [attributes['id'] for _, attributes in found.elements if 'id' in attributes]
  assert len(ids) == len(set(ids)) > 10
  links = [attributes['href'][1:] for tag, attributes in found.elements if tag == 'a']
  assert links and set(links) <= set(ids)
  labelled = [a['aria-labelledby'] for _, a in found.elements if 'aria-labelledby' in a]
  assert labelled and set(labelled) <= set(ids)


def test_every_picture_has_words(two):
  found = Read(write(*two))
  pictures_there = [a for tag, a in found.elements if tag == 'img']
  assert len(pictures_there) == 2 * (3 + 2 * 3 + 1)  # Previews, maps, CKA of each run.
  assert all(attributes['alt'] for attributes in pictures_there)
  drawn = [a for tag, a in found.elements if tag == 'svg']
  assert all(a.get('aria-label') or a.get('aria-hidden') for a in drawn)
  assert any('a from 2 to 0.6667, step 10 to 30' in a.get('aria-label', '') for a in drawn)


def test_the_numbers_are_there_without_a_script(two):
  words = Read(write(*two)).words()
  for told in (
    '30 of 30',
    '2 at 10',  # The first loss, in the table of its chart.
    '0.6667 at 30',
    'few samples (a)',
    'Their protocols differ in nfe.',
    'optimizer.learning_rate',
    'mean of two different blocks',
    '50.0%',  # Goodput.
    '0.10.2',
  ):
    assert told in words, told


def test_the_last_frames_are_seen_without_a_script(two):
  frames = [a for _, a in Read(write(*two)).elements if a.get('class') == 'frame']
  seen = [a['data-at'] for a in frames if 'hidden' not in a]
  assert seen == ['30'] * 6 + ['0.5'] * 2 and len(frames) == 2 * (3 + 2 * 3 + 1)
  sliders = [a for _, a in Read(write(*two)).elements if a.get('class') == 'slider']
  assert sliders and all('hidden' in a for a in sliders)  # They would do nothing.


def test_what_differs_between_runs_is_told_apart(two):
  text = write(*two)
  table = text.partition('What differs between the runs')[2].partition('</table>')[0]
  assert re.findall(r'<th scope="row">([\w.]+)</th>', table) == ['optimizer.learning_rate']
  assert '0.5' in table


def test_online_scores_are_curves(two):
  blocks = [json.loads(t) for a, t in Read(write(*two)).scripts if a.get('type')]
  fid = [b for b in blocks if b['lines'][0]['y'] == [10.0, 5.0, 3.3333]]
  assert fid and fid[0]['lines'][0]['x'] == [10, 20, 30]  # The files win over the row.


def analysed(name, score=0.5):
  curves = {
    'kind': 'curves',
    'title': name,
    'x': [1, 2, 3],
    'x_label': 'block',
    'y_label': name,
    'series': {'t = 0.1': [score, None, 0.25], 't = 0.9': [0.5, 0.5, 0.5]},
    'reference': [0.125, 'chance'],
    'stacked': False,
  }
  stacked, heat = curves | {'stacked': True}, {'kind': 'heatmap', 'title': 'M', 'values': [[1.0]]}
  figures = {
    'lines': {'files': ['lines.png', 'lines.pdf'], 'panels': [curves]},
    'bars': {'files': ['bars.png'], 'panels': [stacked]},
    'maps': {'files': ['maps.png'], 'panels': [heat, curves]},
  }
  part = {'protocol': {'view': 'mean', 'examples': 256}, 'figures': figures}
  return {'schema': 1, 'parts': {name: part}}


def test_analysis_is_drawn_anew_where_it_is_lines(tmp_path):
  a, b = (recorded_runs.write(tmp_path / name) for name in 'ab')
  for path, score in ((a, 0.5), (b, 0.75)):
    content = analysed('probe', score)
    content['parts']['probe']['protocol']['examples'] = int(100 * score)
    (path / 'analysis' / 'analysis.json').write_text(json.dumps(content))
    for name in ('lines', 'bars', 'maps', 'sheet', 'cka'):
      (path / 'analysis' / f'{name}.png').write_bytes(recorded_runs.png())
  blocks = lambda text: [json.loads(t) for kind, t in Read(text).scripts if kind.get('type')]
  (one, _) = [c for c in blocks(write(a)) if [li['name'] for li in c['lines']][-1] == 'chance']
  assert one['lines'][0]['x'] == [1, 3] and one['lines'][0]['y'] == [0.5, 0.25]
  several = [
    c for c in blocks(write(a, b)) if c['along'] == 'block' and c['lines'][0]['x'] == [1, 3]
  ]
  assert [li['y'][0] for li in several[0]['lines']] == [0.5, 0.75]
  words = Read(write(a, b)).words()
  assert 'probe: 4 charts' in words and 'Their protocols differ in examples.' in words
  assert all(f'analysis/{name}.png' in words for name in ('bars', 'maps'))
  assert not any(f'analysis/{name}.png' in words for name in ('lines', 'sheet', 'cka'))
  (a / 'analysis' / 'analysis.json').write_text('{"schema": 2}')
  words = Read(write(a)).words()
  assert 'analysis.json in a form that this version knows' in words and 'lines.png' in words


def test_protocols_that_differ_in_sampler_steps_do_not_compare(tmp_path):
  for name, steps in (('a', 20), ('b', 50)):
    path = recorded_runs.write(tmp_path / name)
    own = {'steps': steps, 'step': steps, 'seconds': steps, 'device': {'kind': name}}
    scored = {'scores': {'fid': 1.0}, 'protocol': {**recorded_runs.PROTOCOL, **own}}
    (path / 'eval' / 'final.json').write_text(json.dumps(scored))
  assert 'Their protocols differ in steps.' in Read(write(tmp_path)).words()


def test_distances_to_different_references_do_not_compare(tmp_path):
  for name, digest, statistics in (('a', '1' * 64, '3' * 64), ('b', '2' * 64, '3' * 64)):
    path = recorded_runs.write(tmp_path / name)
    facts = {'name': f'{name}.npz', 'sha256': digest, 'statistics_sha256': statistics}
    for file, own in (('final', facts), ('other', facts | {'statistics_sha256': digest})):
      references = {'inception': own | {'holds': 'mu and sigma of 2048 features'}}
      scored = {'scores': {'fid': 1.0}, 'protocol': {}, 'references': references}
      (path / 'eval' / f'{file}.json').write_text(json.dumps(scored))
  words = Read(write(tmp_path)).words()
  assert words.count('Their distances are to different references') == 1
  for part in ('a.npz (11111111, mu and sigma of 2048 features)', 'b.npz (22222222'):
    assert part in words


def test_text_of_a_run_is_never_markup(tmp_path):
  path = recorded_runs.write(
    tmp_path / HOSTILE.replace('/', '∕'),
    metrics=[{'step': 30, f'{HOSTILE}/loss': 1.0}],
    config={'data': {'source': HOSTILE}},
  )
  scored = {'scores': {HOSTILE: 1.0}, 'warnings': [HOSTILE], 'protocol': {HOSTILE: HOSTILE}}
  (path / 'eval' / 'hostile.json').write_text(json.dumps(scored))
  (path / 'analysis' / 'analysis.json').write_text(json.dumps(analysed(HOSTILE)))
  (path / 'versions.json').write_text(json.dumps([{HOSTILE: HOSTILE}]))
  text = write(path)
  found = Read(text)
  run = [t for attributes, t in found.scripts if attributes.get('type') != 'application/json']
  assert run == [page._file('page.js')]
  for attributes, content in found.scripts:
    if attributes.get('type') == 'application/json':
      json.loads(content)
  assert all(a.get('src', 'data:').startswith('data:') for _, a in found.elements)
  assert found.words().count('onerror=alert(1)') > 6
  digest = base64.b64encode(hashlib.sha256(run[0].encode()).digest()).decode()
  policy = next(a['content'] for t, a in found.elements if t == 'meta' and 'http-equiv' in a)
  assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_what_was_not_recorded_is_said(tmp_path):
  found = Read(write(recorded_runs.write(tmp_path / 'old', bare=True))).words()
  for told in (
    'no losses: metrics.jsonl has no row of them',
    'goodput.jsonl, which runs write since 0.3',
    'the versions of its packages',
    'similarities of blocks: log.telemetry_every=5000, 0 steps done',
    'scores: neither --mode=eval nor eval.every made any',
    'CKA between blocks, which --mode=analyze makes',
  ):
    assert told in found, told


def test_damaged_records_and_values_that_are_no_numbers_are_said(tmp_path):
  path = recorded_runs.write(
    tmp_path / 'run', metrics=[{'step': 31, 'diverse/loss': float('nan')}, {'step': 32, 'loss': 1}]
  )
  (path / 'telemetry' / 'similarity-00000030.npz').write_bytes(b'PK')
  (path / 'samples' / 'preview-00000030.png').write_bytes(b'no picture')
  rows = (path / 'metrics.jsonl').read_text() + '{"step": 33, "loss": NaN}\n{"step": 34, "lo'
  (path / 'metrics.jsonl').write_text(rows)
  found = Read(write(path)).words()
  assert 'telemetry/similarity-00000030.npz cannot be read' in found
  assert 'the preview of step 30 cannot be read' in found
  assert '1 values that are not finite are left out' in found
  report.run([str(path)])
  written = json.loads((path / 'report' / 'report.json').read_text())
  assert written['last'] == {'step': 32, 'loss': 1}  # The last whose loss is a number.


def test_a_picture_with_a_damaged_chunk_is_no_picture():
  noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
  buffer = pictures.io.BytesIO()
  pictures.Image.fromarray(noise).save(buffer, 'PNG')
  before, _, after = buffer.getvalue().rpartition(b'IDAT')
  with pytest.raises(ValueError, match='broken PNG'):  # Pillow's own is no ValueError.
    pictures.picture(before + b'\1DAT' + after, 'alt', 500)


def test_pages_are_bounded(tmp_path):
  rng = np.random.default_rng(0)
  rows = [{'step': i + 1, 'loss': float(v)} for i, v in enumerate(rng.random(20_000))]
  rows[7_000]['loss'] = 99.0
  path = recorded_runs.write(tmp_path / 'long', steps=20_000, points=40)
  (path / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  text = write(path, frames=12)
  assert len(text) < 500_000 and '12 of 40 shown' in Read(text).words()
  lines = [line for a, t in Read(text).scripts if a.get('type') for line in json.loads(t)['lines']]
  assert 900 < max(len(line['y']) for line in lines) <= 1000
  assert max(max(line['y']) for line in lines) == 99.0


def test_a_heavy_picture_is_made_smaller():
  noise = np.random.default_rng(0).integers(0, 255, (900, 1400), np.uint8)
  buffer = pictures.io.BytesIO()
  pictures.Image.fromarray(noise).save(buffer, 'PNG')
  whole = Read(pictures.picture(buffer.getvalue(), 'alt', 500)).elements[0][1]
  assert whole['src'].startswith('data:image/jpeg') and whole['width'] == '500'
  light = Read(pictures.picture(recorded_runs.png(), 'alt', 500)).elements[0][1]
  assert light['src'].startswith('data:image/png') and light['width'] == '24'


def test_maps_have_the_first_block_at_the_lower_left():
  matrix = np.array([[0.0, 0.25], [0.5, 1.0]])
  text = pictures.heat_map(matrix, 0.0, 1.0, 'alt')
  source = next(a['src'] for t, a in Read(text).elements if t == 'img')
  content = pictures.base64.b64decode(source.partition(',')[2])
  drawn = np.asarray(pictures.Image.open(pictures.io.BytesIO(content)).convert('RGB')).sum(-1)
  assert drawn[1, 0] < drawn[1, 1] < drawn[0, 0] < drawn[0, 1]  # Brighter is more similar.
  assert 'data-values="0 250 500 1000"' in text and 'mean of two different blocks 0.375' in text


def test_a_folder_of_runs_is_its_runs_in_the_order_of_their_numbers(tmp_path):
  for name in ('seed10', 'seed9', 'deep/er/seed1'):
    recorded_runs.write(tmp_path / 'study' / name, bare=True)
  recorded_runs.write(tmp_path / 'study' / 'seed9' / 'set_aside', bare=True)
  (tmp_path / 'study' / 'other').mkdir()
  (tmp_path / 'study' / 'other' / 'config.json').write_text('{}')  # Another library's.
  study = str(tmp_path / 'study')
  assert list(runs.find([study])) == ['deep/er/seed1', 'seed9', 'seed10']
  assert list(runs.find([f'{study}/seed10', study])) == ['seed10', 'deep/er/seed1', 'seed9']
  with pytest.raises(types.UserError, match='holds no run'):
    runs.find([str(tmp_path / 'study' / 'deep' / 'er' / 'seed1' / 'none')])


def test_the_seeds_of_a_variant_have_one_colour(tmp_path):
  names = [f'{variant}/seed-{seed}' for variant in ('ours', 'sit') for seed in range(2)]
  for name in names:
    recorded_runs.write(tmp_path / name)
  written = write(tmp_path)
  switch = r'data-switch="(\d+)"><svg[^>]*><path d="[^"]*" class="line (c\d d\d)"'
  of_run = dict(re.findall(switch, written))
  assert of_run == {'0': 'c0 d0', '8': 'c0 d1', '1': 'c1 d0', '9': 'c1 d1'}
  assert set(re.findall(r'data-run="(\d+)"', written)) == of_run.keys()
  assert set(re.findall(r'class="line (c\d d\d)"', written)) == set(of_run.values())


@pytest.mark.parametrize(
  'names',
  [
    ['a', 'b', 'c'],  # All in one folder.
    ['a/1', 'b/1', 'c/1'],  # Each in its own.
    [f'{k}/{i}' for k in 'abcdefghi' for i in range(2)],  # More folders than colours.
  ],
)
def test_other_runs_are_counted(names):
  assert runs.numbers(names) == list(range(len(names)))


def test_several_runs_say_where_their_report_goes(two, tmp_path):
  named = [str(path) for path in two]
  with pytest.raises(types.UserError, match='of 2 directories needs --output=DIR'):
    report.run(named)
  told = report.run(named, str(tmp_path))
  assert [line.split()[0] for line in told.splitlines()] == ['run', 'a', 'b', 'page']
  written = json.loads((tmp_path / 'report' / 'report.json').read_text())
  assert written['runs']['b']['scores']['eval/final.json']['scores'] == {'fid': 7.0}
  assert '2 runs side by side' in (tmp_path / 'report' / 'index.html').read_text()


def test_markup_escapes_all_but_markup():
  one = markup.tag(
    'p', '<b>', markup.tag('i', '&'), None, [1, 'x'], class_='"', hidden=True, id=None
  )
  assert one == '<p class="&quot;" hidden>&lt;b&gt;<i>&amp;</i>1x</p>'
  assert markup.data({'a': '</script>'}) == (
    '<script type="application/json">{"a":"\\u003c/script>"}</script>'
  )
