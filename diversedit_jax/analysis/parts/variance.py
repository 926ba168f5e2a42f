"""How much of a block's output is about the example, the time, and the noise.

Two-way analysis of variance with repetition, summed over the features: examples s, times t and
draws e of noise, all crossed, the noise of every cell drawn on its own,

  f_ste = m + a_s + b_t + (ab)_st + noise_ste

Sums of squares add up to the total; the variances are estimated without bias from their means
(random effects): noise = MS_noise, interaction = (MS_st - MS_noise) / E,
source = (MS_s - MS_st) / (T E), time = (MS_t - MS_st) / (S E); one below 0 counts as 0.
"""

import numpy as np

from diversedit_jax import progress, rng
from diversedit_jax.analysis import panels, registry
from diversedit_jax.analysis import scope as scope_lib

NAMES = ('source', 'time', 'interaction', 'noise')  # The source is the example.


def sums_of_squares(f_STEP: np.ndarray) -> dict[str, float]:
  """Sums of squares by NAMES, which add up to the total about the mean; f [S, T, E, P]."""
  f = np.asarray(f_STEP, np.float64)
  s, t, e = f.shape[:3]
  mean, cell = f.mean(axis=(0, 1, 2)), f.mean(axis=2)
  of_s, of_t = cell.mean(axis=1), cell.mean(axis=0)
  both = cell - of_s[:, None] - of_t[None] + mean
  return {
    'source': float(t * e * np.square(of_s - mean).sum()),
    'time': float(s * e * np.square(of_t - mean).sum()),
    'interaction': float(e * np.square(both).sum()),
    'noise': float(np.square(f - cell[:, :, None]).sum()),
  }


def shares(f_STEP: np.ndarray) -> dict[str, float]:
  """Shares of the variances by NAMES, which add up to 1 (see the module); f [S, T, E, P]."""
  s, t, e = np.shape(f_STEP)[:3]
  free = {
    'source': s - 1,
    'time': t - 1,
    'interaction': (s - 1) * (t - 1),
    'noise': s * t * (e - 1),
  }
  square = {name: total / free[name] for name, total in sums_of_squares(f_STEP).items()}
  found = {
    'source': (square['source'] - square['interaction']) / (t * e),
    'time': (square['time'] - square['interaction']) / (s * e),
    'interaction': (square['interaction'] - square['noise']) / e,
    'noise': square['noise'],
  }
  found = {name: max(value, 0.0) for name, value in found.items()}
  total = sum(found.values())
  return {name: value / total if total else 0.0 for name, value in found.items()}


@registry.register('variance')
def run(scope: scope_lib.Scope) -> registry.Findings:
  """Shares by block, of token means over a grid of examples, times and draws of noise."""
  config = scope.config
  indices = scope_lib.spread(len(scope.held_out), config.sources)
  cells = len(config.time_grid) * config.draws
  done, rows = progress.Progress(f'{cells} times and draws', cells, 'passes'), []
  for i, t in enumerate(config.time_grid):
    for draw in range(config.draws):
      how = {
        'key': rng.stream(scope.key, 'variance', i * config.draws + draw),
        'size': config.batch_size,
        'labels': config.labels,
      }
      batches = scope.subject.batches(scope.held_out, indices, t, **how)
      rows.append(np.concatenate(list(batches), axis=1))
      done.at(len(rows))
  f_TELSP = np.stack(rows).reshape(len(config.time_grid), config.draws, *rows[0].shape)
  found = [shares(np.moveaxis(f_TELSP[:, :, i], 2, 0)) for i in range(scope.subject.depth)]
  series = {name: [of_one[name] for of_one in found] for name in NAMES}
  bars = panels.Curves(
    title='what the outputs vary with',
    x=scope.blocks,
    x_label='block',
    y_label='share of the variance',
    series={
      'example': series['source'],
      'time': series['time'],
      'both': series['interaction'],
      'noise': series['noise'],
    },
    low=0,
    high=1,
    stacked=True,
  )
  return registry.Findings(
    figures={'variance': [bars]},
    summary=series,
    protocol={
      'examples': len(indices),
      'times': list(config.time_grid),
      'draws': config.draws,
      'view': 'mean',
    },
  )
