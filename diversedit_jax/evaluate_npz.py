"""Scores samples that exist: `python -m diversedit_jax.evaluate_npz --samples=... --help`."""

import json

from absl import flags

from diversedit_jax import cli, evaluation, options, paths, types
from diversedit_jax.data import files, images
from diversedit_jax.evaluation import card, panel, picture_metrics

_DEFAULTS = picture_metrics.MetricOptions()
_SAMPLES = flags.DEFINE_multi_string(
  'samples',
  None,
  '.npz or .npy of uint8 [N, H, W, 3] (of ADM, DiT, SiT, --mode=eval or --mode=sample), or a '
  'folder or an archive of pictures; several times for parts of one set.',
)
_REFERENCE = flags.DEFINE_string(
  'reference',
  None,
  "ADM's .npz (VIRTUAL_imagenet256_labeled.npz), one of --mode=stats, or pictures: a folder, an "
  'archive, an .npz, or as in data.source.',
)
_QUANTISER = flags.DEFINE_enum(
  'quantiser', 'truncate', images.QUANTISERS, 'How samples that are floats become levels.'
)
_INCEPTION = flags.DEFINE_string('inception', '', 'Weights of the FID network, or their folder.')
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file for the scores; it must not exist yet.')
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', _DEFAULTS.batch_size, 'Pictures at a time, over all devices.'
)
_PRECISION_RECALL = flags.DEFINE_enum(
  'precision_recall',
  _DEFAULTS.precision_recall,
  picture_metrics.PRECISION_RECALL,
  "Their arithmetic; float16 is ADM's, none leaves them out.",
)
_KID_SUBSETS = flags.DEFINE_integer(
  'kid_subsets', _DEFAULTS.kid_subsets, 'Number of subsets of the kernel distance; 0 leaves it out.'
)
_OTHERS = {
  name: (flags.DEFINE_list if name == 'fdr' else flags.DEFINE_string)(
    name, facts.default, facts.option.doc
  )
  for key, facts in options.keys([panel.PanelOptions]).items()
  for name in [key.removeprefix('eval.')]
}
flags.mark_flags_as_required(['samples', 'reference'])


def main(argv: list[str]) -> None:
  """Scores the file, prints and writes the numbers."""
  if len(argv) > 1:
    raise types.UserError(f'unexpected arguments: {" ".join(argv[1:])}')
  cli.keep_programs()
  cli.keep_memory()
  output = None if _OUTPUT.value is None else paths.path(_OUTPUT.value)
  if output is not None and output.exists():
    raise types.UserError(f'{output} exists already; nothing is overwritten')
  if output is not None:
    files.make_writable(output.parent, f'--output={output}')
  found = evaluation.evaluate_npz(
    [paths.expanded(spec) for spec in _SAMPLES.value],
    paths.expanded(_REFERENCE.value),
    paths.expanded(_INCEPTION.value),
    options=picture_metrics.MetricOptions(
      batch_size=_BATCH_SIZE.value,
      precision_recall=_PRECISION_RECALL.value,
      kid_subsets=_KID_SUBSETS.value,
    ),
    quantiser=_QUANTISER.value,
    others=panel.PanelOptions(
      **{k: tuple(x.value) if k == 'fdr' else x.value for k, x in _OTHERS.items()}
    ),
  )
  if output is not None:
    card.write_json(output, found)
  print(json.dumps(found, indent=2))


if __name__ == '__main__':
  cli.run(main)
