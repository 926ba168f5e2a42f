"""Blocks of one network against those of another, for the same noised examples."""

import numpy as np

from diversedit_jax.analysis import panels, registry
from diversedit_jax.analysis import scope as scope_lib


def lacks(scope: scope_lib.Scope) -> str:
  """Why there is nothing to compare with."""
  if scope.other is None:
    return 'compares with another network: give --config.analysis.against=RUN_OR_FILE'
  return ''


@registry.register('compare', lacks=lacks)
def run(scope: scope_lib.Scope) -> registry.Findings:
  """CKA of block i of this network with block j of the other, at every time."""
  subject, other, config = scope.subject, scope.other, scope.config
  matrices = {t: scope.cka(scope.batches(t), scope.batches(t, subject=other)) for t in config.times}
  theirs = list(range(1, other.depth + 1))
  shown = [
    panels.Heatmap(
      title=f't = {t:g}\nmean of all pairs {matrix.mean():.3f}',
      values=matrix,
      x=theirs,
      y=scope.blocks,
      x_label=f'block of {other.name}',
      y_label=f'block of {subject.name}',
      label='CKA',
      high=1.0,
    )
    for t, matrix in matrices.items()
  ]
  best = {f't={t:g}': (matrix.argmax(axis=1) + 1).tolist() for t, matrix in matrices.items()}
  return registry.Findings(
    figures={'compare': shown},
    headings={'compare': f'{scope.cka_name}: the same examples through two networks'},
    summary={'mean': {f't={t:g}': float(m.mean()) for t, m in matrices.items()}, 'nearest': best},
    protocol={'this': subject.name, 'other': other.name},
    arrays={f't={t:g}': np.asarray(matrix) for t, matrix in matrices.items()},
  )
