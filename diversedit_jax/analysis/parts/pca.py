"""Pictures of the tokens: their first three principal components as red, green and blue.

The components are of one block's tokens of all shown examples together, at the middle time. Colours
say which tokens are alike within a block; between blocks only the order and the signs of the
components are matched.
"""

import itertools

import numpy as np

from diversedit_jax.analysis import panels, registry
from diversedit_jax.analysis import scope as scope_lib

_MOST = 12  # Blocks that are shown.


def components(f_NTD: np.ndarray) -> tuple[np.ndarray, float]:
  """The first three principal components [N, T, 3] of tokens, and their share of the variance."""
  f_ND = np.asarray(f_NTD, np.float64).reshape(-1, f_NTD.shape[-1])
  f_ND = f_ND - f_ND.mean(axis=0, keepdims=True)
  values, vectors = np.linalg.eigh(f_ND.T @ f_ND)
  found = f_ND @ vectors[:, ::-1][:, :3]
  found = np.pad(found, ((0, 0), (0, 3 - found.shape[1])))
  share = values[::-1][:3].sum() / max(values.sum(), np.finfo(float).tiny)
  return found.reshape(*f_NTD.shape[:2], 3), float(share)


def matched(found: np.ndarray, before: np.ndarray) -> np.ndarray:
  """Components [N, T, 3] in the order and with the signs most like those of another block."""
  a, b = (x.reshape(-1, 3) for x in (found, before))
  scale = np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(b, axis=0)[None]
  alike = (a.T @ b) / np.maximum(scale, np.finfo(float).tiny)
  orders = itertools.permutations(range(3))
  best = max(orders, key=lambda order: sum(abs(alike[i, c]) for c, i in enumerate(order)))
  signs = [np.sign(alike[i, c]) or 1.0 for c, i in enumerate(best)]
  return found[..., list(best)] * signs


def colours(found: np.ndarray) -> np.ndarray:
  """Components as colours in [0, 1], from their 1st to their 99th percentile."""
  low, high = np.percentile(found, (1, 99), axis=(0, 1))
  return np.clip((found - low) / np.maximum(high - low, np.finfo(float).tiny), 0, 1)


@registry.register('pca')
def run(scope: scope_lib.Scope) -> registry.Findings:
  """A row for each example, its noised input and the tokens of the blocks."""
  config, subject = scope.config, scope.subject
  indices = scope_lib.spread(len(scope.held_out), config.pictures)
  how = {'key': scope.key, 'size': len(indices), 'labels': config.labels}
  look = lambda view: next(subject.batches(scope.held_out, indices, config.time, view=view, **how))
  f_LNTD, x_NHWC = look('all'), look(scope_lib.INPUT)[0]
  grid = subject.architecture.grid
  shown = scope_lib.spread(subject.depth, _MOST).tolist()
  made, shares = [], []
  for block in shown:
    # A class token, where there is one, stands before those of the patches.
    found, share = components(f_LNTD[block][:, -grid[0] * grid[1] :])
    made.append(found if not made else matched(found, made[-1]))
    shares.append(share)
  pictures = np.stack([colours(found) for found in made]).reshape(len(shown), -1, *grid, 3)
  names = [str(n) for n in scope.held_out.gather(indices)['labels']]
  panel = panels.Pictures(
    title=f'first three principal components of tokens, t = {config.time:g}; share of variance',
    pictures=[[_shown(x), *(picture[i] for picture in pictures)] for i, x in enumerate(x_NHWC)],
    columns=['input', *(f'block {b + 1}\n{s:.0%}' for b, s in zip(shown, shares, strict=True))],
    rows=names,
    array='pictures',
  )
  return registry.Findings(
    figures={'pca': [panel]},
    summary={'blocks': [b + 1 for b in shown], 'share': shares},
    protocol={
      'time': config.time,
      'examples': len(indices),
      'indices': indices.tolist(),
      'view': 'tokens',
    },
    arrays={'pictures': pictures, 'input': x_NHWC},
  )


def _shown(x_HWC):
  """A noised input as grey or as colours, from its smallest to its largest value."""
  x = x_HWC[..., 0] if x_HWC.shape[-1] < 3 else x_HWC[..., :3]
  return (x - x.min()) / max(np.ptp(x), np.finfo(np.float32).tiny)
