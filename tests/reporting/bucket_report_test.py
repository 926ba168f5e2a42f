"""A report of runs that lie in a bucket, on an emulator of the storage API."""

import json

from helpers import bucket, recorded_runs

from diversedit_jax import paths
from diversedit_jax.modes import report


def test_runs_in_a_bucket_are_found_read_and_reported_there(tmp_path):
  study = paths.path(bucket.new(), bucket=True)
  for name in ('a', 'deep/b'):
    local = recorded_runs.write(tmp_path / name)
    for file in local.rglob('*'):
      if file.is_file():
        (study / name / file.relative_to(local)).write_bytes(file.read_bytes())
  told = report.run([str(study)])
  assert [line.split()[0] for line in told.splitlines()] == ['run', 'a', 'deep/b', 'page']
  there = study / 'report'
  assert json.loads((there / 'report.json').read_bytes())['runs'].keys() == {'a', 'deep/b'}
  page = (there / 'index.html').read_bytes().decode()
  assert page.count('<img') == 2 * (3 + 2 * 3 + 1)
  report.run([f'{study}/a'], str(tmp_path / 'here'))
  assert (tmp_path / 'here' / 'report' / 'index.html').is_file()
  mixed = report.run([f'{study}/a', str(tmp_path / 'a')], str(tmp_path / 'mixed'))
  names = [line.split()[0] for line in mixed.splitlines()[1:3]]
  assert names == [f'{study}/a', str(tmp_path / 'a')]
