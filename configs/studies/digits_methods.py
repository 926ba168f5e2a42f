"""DiverseDiT on top of other methods on digits, as Tables 1, 4 and 9: 8 variants, 3 seeds.

  python -m diversedit_jax.main --config=configs/studies/digits_methods.py --mode=study \
    --workdir=runs/studies/digits_methods

`DiverseDiT` is long skips and the diversity loss. REPA aligns with principal components of patches,
which need no download. MeanFlow samples in one evaluation, the others in 15.
Hardware: two CPU cores; see docs/studies.md for what it took and what came out.
Meta-arguments: `seeds`, the first so many; `steps`.
"""

from configs import common
from configs.studies import recipe


def get_config(arg: str | None = None):
  """The study; see `common.parse_arg` for the meta-arguments."""
  args = common.parse_arg(arg, seeds=3, steps=recipe.STEPS)

  def run(method):
    return recipe.on_digits(method, steps=args.steps, skips=common.has_skips(method))

  variants = {
    'DiverseDiT': run('flow+diverse'),
    'DiverseDiT + DispLoss': run('flow+diverse+dispersive'),
    'DiverseDiT + SRA': run('flow+diverse+sra'),
    'DiverseDiT + DispLoss + SRA': run('flow+diverse+dispersive+sra'),
    'REPA': run('repa'),
    'REPA + DiverseDiT': run('repa+diverse'),
    'MeanFlow': run('meanflow'),
    'MeanFlow + DiverseDiT': run('meanflow+diverse'),
  }
  return recipe.study_of('DiverseDiT on top of other methods, on digits', variants, args.seeds)
