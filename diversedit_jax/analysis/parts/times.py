"""How the outputs of the blocks change along time (DiverseDiT, Fig. A2)."""

import numpy as np

from diversedit_jax.analysis import panels, registry, similarity
from diversedit_jax.analysis import scope as scope_lib
from diversedit_jax.analysis.parts import cka

_MOST = 12  # Blocks with a heat map of their own.


@registry.register('times')
def run(scope: scope_lib.Scope) -> registry.Findings:
  """CKA of the blocks at every time of the grid, and of every block with itself at two times."""
  times, blocks = scope.config.time_grid, scope.blocks
  f_SLNP = scope.along(times)
  of_blocks = [scope.cka([f_LNP]) for f_LNP in f_SLNP]
  of_times = [scope.cka([f_SNP]) for f_SNP in np.moveaxis(f_SLNP, 1, 0)]
  scores = [similarity.diversity_score(matrix) for matrix in of_blocks]
  curve = panels.Curves(
    title='diversity score over time',
    x=times,
    x_label='time t (0 data, 1 noise)',
    y_label='1 - mean CKA of two blocks',
    series={'all blocks': scores},
    low=0,
  )
  shown = [blocks[i] for i in scope_lib.spread(len(blocks), _MOST)]
  label = 'time t'
  return registry.Findings(
    figures={
      'times': [
        cka.heatmap(f't = {t:g}', m, blocks) for t, m in zip(times, of_blocks, strict=True)
      ],
      'times-of-blocks': [
        panels.Heatmap(
          title=f'block {block}',
          values=of_times[block - 1],
          x=times,
          y=times,
          x_label=label,
          y_label=label,
          label='CKA of two times',
          high=1.0,
        )
        for block in shown
      ],
      'times-diversity': [curve],
    },
    headings={
      'times': f'{scope.cka_name}: outputs of every two blocks over time',
      'times-of-blocks': f'{scope.cka_name}: outputs of a block at every two times',
    },
    summary={'times': list(times), 'diversity_score': scores},
    protocol={'times': list(times)},
    arrays={'blocks': np.stack(of_blocks), 'times': np.stack(of_times)},
  )
