"""Methods that shape representations, alone and with DiverseDiT, on digits: 9 variants, 5 seeds.

  python -m diversedit_jax.main --config=configs/studies/digits_zoo.py --mode=study \
    --workdir=runs/studies/digits_zoo

The grid of `configs/zoo.py` at a size that a CPU trains. `diverse` is DiverseDiT, long skips and
the diversity loss; `skips` are the long skips alone. LayerSync pulls block 2 towards block 3 of
six, as 8 and 16 of 28. iREPA aligns with principal components of patches, which need no download.
Hardware: two CPU cores; see docs/studies.md for what it took and what came out.
Meta-arguments: `seeds`, the first so many; `steps`.
"""

from configs import common
from configs.studies import recipe


def get_config(arg: str | None = None):
  """The study; see `common.parse_arg` for the meta-arguments."""
  args = common.parse_arg(arg, seeds=5, steps=recipe.STEPS)

  def run(method, **changes):
    skips = changes.pop('skips', common.has_skips(method))
    return recipe.on_digits(method, steps=args.steps, skips=skips, **changes)

  variants = {
    'flow': run('flow'),
    'diverse': run('flow+diverse'),
    'skips': run('flow', skips=True),
    'layersync': run('flow+layersync'),
    'diverse+layersync': run('flow+diverse+layersync'),
    'irepa': run('repa', repa__preset='irepa'),
    'irepa+diverse': run('repa+diverse', repa__preset='irepa'),
    'selfflow': run('selfflow'),
    'selfflow+diverse': run('selfflow+diverse'),
  }
  return recipe.study_of('Methods that shape representations, on digits', variants, args.seeds)
