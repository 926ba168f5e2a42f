"""`--mode=analyze`: how similar the outputs of the blocks are."""

import pathlib

from absl import logging
import jax
import numpy as np

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import rng, sharding
from diversedit_jax.analysis import blocks, figures, similarity
from diversedit_jax.data import files
from diversedit_jax.methods import registry
from diversedit_jax.modes import restoring

_DRAWN = ('linear', 'unbiased')  # The others say nearly the same.


def run(
  experiment: experiment_lib.Experiment, workdir: str, origin: str | None
) -> list[pathlib.Path]:
  """CKA between the outputs of all blocks; writes `analysis/cka.npz` and `analysis/cka.png`."""
  path, weights = restoring.open_weights(experiment, workdir, origin)
  options = experiment.analysis
  wanted = registry.needs(experiment.method, 'needs_pixels')
  source = experiment.data.open_test(experiment.source, pixels=wanted)
  objective = experiment.objective.flow_only()
  frozen = jax.device_put(objective.frozen(), sharding.replicated(weights.mesh))
  with jax.set_mesh(weights.mesh):
    features = blocks.block_features(
      weights.graphdef,
      weights.params,
      source,
      options,
      objective=objective,
      frozen=frozen,
      key=rng.stream(jax.random.key(experiment.seed), 'analysis'),
      mesh=weights.mesh,
    )
  if jax.process_index() != 0:
    return []
  matrices = blocks.cka_matrices(features, options.times, options.bandwidth)
  target, picture = path / 'analysis' / 'cka.npz', path / 'analysis' / 'cka.png'
  with files.atomic(target) as temporary:
    named = {f'{kernel}/{estimator}/t={t:g}': m for (kernel, estimator, t), m in matrices.items()}
    np.savez(
      temporary, weights=weights.origin, view=options.view, examples=features.shape[2], **named
    )
  titles = {
    f'{kernel}, {estimator}, t = {t:g}': m
    for (kernel, estimator, t), m in matrices.items()
    if options.full or (kernel, estimator) == _DRAWN
  }
  figures.similarity_heatmaps(picture, titles, columns=len(options.times))
  for title, matrix in titles.items():
    logging.info('%s: diversity score %.3f', title, similarity.diversity_score(matrix))
  return [target, picture]
