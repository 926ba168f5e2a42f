"""How similar the outputs of every two blocks are, at each time (DiverseDiT, Fig. 2 and A2)."""

import itertools

import numpy as np

from diversedit_jax.analysis import panels, registry, similarity
from diversedit_jax.analysis import scope as scope_lib


@registry.register('cka', default=True)
def run(scope: scope_lib.Scope) -> registry.Findings:
  """Heat maps of one kernel and estimator, and the diversity of each block; the npz has all."""
  config, blocks = scope.config, scope.blocks
  found = matrices(scope)
  drawn = {t: found[config.kernel, config.estimator, t] for t in config.times}
  scores = {t: similarity.diversity_score(matrix) for t, matrix in drawn.items()}
  maps = {t: heatmap(f't = {t:g}', matrix, blocks) for t, matrix in drawn.items()}
  curves = panels.Curves(
    title='diversity of each block',
    x=blocks,
    x_label='block',
    y_label='1 - mean CKA with the others',
    series={f't = {t:g}': list(similarity.block_diversity(m)) for t, m in drawn.items()},
    ordered=True,
    low=0,
  )
  facts = {'weights': np.str_(scope.subject.name), 'view': np.str_(config.view)}
  return registry.Findings(
    figures={'cka': list(maps.values()), 'diversity': [curves]},
    headings={'cka': f'{scope.cka_name}: outputs of every two blocks'},
    summary={'times': list(drawn), 'diversity_score': list(scores.values())},
    protocol={'kernel': config.kernel, 'estimator': config.estimator},
    arrays={
      **facts,
      'examples': np.asarray(len(scope.indices)),
      **{f'{kernel}/{estimator}/t={t:g}': m for (kernel, estimator, t), m in found.items()},
    },
    sheet=[heatmap(f'CKA of two blocks, t = {config.time:g}', drawn[config.time], blocks), curves],
  )


def matrices(scope: scope_lib.Scope) -> dict[tuple[str, str, float], np.ndarray]:
  """CKA [L, L] by (kernel, estimator, time), of every kernel.

  Both estimators that need all examples at once; or 'minibatch' alone if that is chosen, for which
  the examples are seen once for each kernel.
  """
  config = scope.config
  numbers = {'bandwidth': config.bandwidth, 'degree': config.degree}
  found = {}
  if config.estimator == 'minibatch':
    for kernel, t in itertools.product(similarity.KERNELS, config.times):
      batches = scope.batches(t)
      found[kernel, 'minibatch', t] = similarity.of_batches(batches, kernel=kernel, **numbers)
    return found
  pairs = itertools.product(similarity.KERNELS, ('biased', 'unbiased'))
  for (kernel, estimator), (t, f_LNP) in itertools.product(
    pairs, zip(config.times, scope.features(), strict=True)
  ):
    found[kernel, estimator, t] = similarity.cka(
      f_LNP, kernel=kernel, estimator=estimator, **numbers
    )
  return found


def heatmap(title: str, matrix: np.ndarray, blocks: list[int], note: bool = True) -> panels.Heatmap:
  """The panel of a matrix [L, L] of blocks, with its mean off the diagonal."""
  mean = 1 - similarity.diversity_score(matrix)
  return panels.Heatmap(
    title=f'{title}\nmean off-diagonal {mean:.3f}' if note else title,
    values=matrix,
    x=blocks,
    y=blocks,
    x_label='block',
    y_label='block',
    label='CKA',
    high=1.0,
  )
