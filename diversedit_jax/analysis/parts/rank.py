"""Effective rank of each block's outputs (Roy and Vetterli, EUSIPCO 2007).

With the singular values s of the centred features and p = s / sum s,

  erank = exp(-sum_k p_k log p_k)

which lies between 1 (one direction) and min(n - 1, p) (all s alike).
"""

import numpy as np

from diversedit_jax import types
from diversedit_jax.analysis import panels, registry
from diversedit_jax.analysis import scope as scope_lib


def effective_rank(x_NP: np.ndarray) -> float:
  """The effective rank of features [n, p] of n samples, centred.

  Raises:
    UserError: samples that are all the same, which have no rank.
  """
  x_NP = np.asarray(x_NP, np.float64)
  x_NP = x_NP - x_NP.mean(axis=0, keepdims=True)
  gram = x_NP @ x_NP.T if len(x_NP) < x_NP.shape[1] else x_NP.T @ x_NP
  values = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0, None))
  # Roundings of the eigenvalues are 1e-16 of the largest, so their roots are 1e-8 of it.
  values = values[values > 1e-7 * values.max()]
  if not values.size:
    raise types.UserError('features that are the same for every sample have no effective rank')
  share = values / values.sum()
  return float(np.exp(-(share * np.log(share)).sum()))


@registry.register('rank', default=True)
def run(scope: scope_lib.Scope) -> registry.Findings:
  """Effective rank by block and time, under the view of the config."""
  times, f_SLNP = scope.config.times, scope.features()
  ranks = {t: [effective_rank(x) for x in f_LNP] for t, f_LNP in zip(times, f_SLNP, strict=True)}
  most = min(f_SLNP.shape[2] - 1, f_SLNP.shape[3])
  curves = panels.Curves(
    title=f'effective rank (at most {most})',
    x=scope.blocks,
    x_label='block',
    y_label='effective rank',
    series={f't = {t:g}': values for t, values in ranks.items()},
    ordered=True,
    low=0,
  )
  return registry.Findings(
    figures={'rank': [curves]},
    summary={'most': most, 'rank': {f't={t:g}': values for t, values in ranks.items()}},
    sheet=[curves],
  )
