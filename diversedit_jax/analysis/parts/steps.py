"""How the blocks come apart while training: CKA at every checkpoint (DiverseDiT, Fig. 2)."""

import dataclasses

import numpy as np

from diversedit_jax import progress
from diversedit_jax.analysis import panels, registry, similarity
from diversedit_jax.analysis import scope as scope_lib
from diversedit_jax.analysis.parts import cka

_MOST = 8  # Steps with a heat map of their own; the curves have all.


def lacks(scope: scope_lib.Scope) -> str:
  """Why there are no checkpoints to go over."""
  if not scope.kept:
    return (
      'goes over the checkpoints of a run: give --workdir=DIR or --checkpoint=DIR/checkpoints/N'
    )
  missing = sorted({*scope.config.steps} - {*scope.kept})
  if missing:
    return f'has no checkpoints of steps {missing}; the run keeps {sorted(scope.kept)}'
  return ''


@registry.register('steps', lacks=lacks)
def run(scope: scope_lib.Scope) -> registry.Findings:
  """Heat maps by step at the middle time, and the diversity score at every time over the steps."""
  config, blocks = scope.config, scope.blocks
  steps = sorted(config.steps or scope.kept)
  scores: dict[float, list[float]] = {t: [] for t in config.times}
  matrices = []
  done = progress.Progress(f'{len(steps)} checkpoints', len(steps), 'checkpoints')
  for step in steps:
    subject = dataclasses.replace(scope.subject, params=scope.kept[step]())
    for t in config.times:
      matrix = scope.cka(scope.batches(t, subject=subject))
      scores[t].append(similarity.diversity_score(matrix))
      if t == config.time:
        matrices.append(matrix)
    done.at(len(matrices))
  shown = scope_lib.spread(len(steps) - 1, _MOST - 1).tolist() + [len(steps) - 1]
  curves = panels.Curves(
    title='diversity score over training',
    x=steps,
    x_label='step',
    y_label='1 - mean CKA of two blocks',
    series={f't = {t:g}': values for t, values in scores.items()},
    ordered=True,
    low=0,
  )
  return registry.Findings(
    figures={
      'steps': [cka.heatmap(f'step {steps[i]:,}', matrices[i], blocks) for i in shown],
      'steps-diversity': [curves],
    },
    headings={
      'steps': f'{scope.cka_name}: outputs of every two blocks over training, t = {config.time:g}'
    },
    summary={
      'steps': steps,
      'diversity_score': {f't={t:g}': values for t, values in scores.items()},
    },
    protocol={'steps': steps, 'time_of_maps': config.time},
    arrays={'steps': np.array(steps), 'cka': np.stack(matrices)},
  )
