"""A run as its records alone: what `--mode=report` reads, written by hand, without training."""

import io
import json
import pathlib

import numpy as np
from PIL import Image

PROTOCOL = {'num_samples': 40, 'weights': 'ema', 'nfe': 8, 'guidance': {'scale': 1.5}}


def png(size=(24, 16), colour=128):
  buffer = io.BytesIO()
  Image.new('L', size, colour).save(buffer, 'PNG')
  return buffer.getvalue()


def write(
  path: pathlib.Path, *, steps=30, points=3, depth=4, config=(), metrics=(), bare=False
) -> pathlib.Path:
  """A finished run. config: sections that differ. metrics: further rows. bare: only a config."""
  path.mkdir(parents=True)
  whole = {'train': {'steps': steps}, 'optimizer': {}, 'method': 'flow+diverse', **dict(config)}
  whole.setdefault('data', {'source': 'digits'})
  (path / 'config.json').write_text(json.dumps(whole))
  if bare:
    return path
  at = [round(steps * (i + 1) / points) for i in range(points)]
  rows = [
    {'step': step, 'loss': 2.0 / (i + 1), 'diverse/weight': 0.25, 'images_per_second': 300.0}
    for i, step in enumerate(at)
  ]
  rows += [{'step': steps, 'eval/fid': 9.0}, *metrics]
  _lines(path / 'metrics.jsonl', rows)
  seconds = {'setup': 1.0, 'compile': 1.0, 'data': 0.0, 'save': 0.0, 'hooks': 0.0, 'train': 2.0}
  account = [
    {'step': 0, 'time': 101.0, 'began': 100.0, 'steps': steps},
    {'step': steps, 'time': 104.0, 'seconds': seconds, 'ended': 'finished'},
  ]
  _lines(path / 'goodput.jsonl', account)
  (path / 'versions.json').write_text(json.dumps([{'diversedit_jax': '0.3.0', 'jax': '0.10.2'}]))
  for folder in ('telemetry', 'samples', 'eval/during', 'analysis'):
    (path / folder).mkdir(parents=True)
  rng = np.random.default_rng(0)
  for step in at:
    unit = rng.normal(size=(depth, 9))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    matrix = (unit @ unit.T).astype(np.float32)
    np.savez(path / f'telemetry/similarity-{step:08d}.npz', step=step, token=matrix, mean=matrix)
    sizes = rng.random(depth).astype(np.float32)
    np.savez(path / f'telemetry/blocks-{step:08d}.npz', activation_rms=sizes, gradient_norm=sizes)
    (path / f'samples/preview-{step:08d}.png').write_bytes(png())
    scored = {'scores': {'fid': 100.0 / step}, 'protocol': {**PROTOCOL, 'step': step}}
    (path / f'eval/during/step-{step:08d}.json').write_text(json.dumps(scored))
  final = {'scores': {'fid': 8.5}, 'warnings': ['few samples'], 'protocol': PROTOCOL}
  (path / 'eval/final.json').write_text(json.dumps(final))
  np.savez(path / 'analysis/cka.npz', **{'linear/unbiased/t=0.5': matrix})
  return path


def _lines(file, rows):
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
