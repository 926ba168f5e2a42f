"""DiverseDiT in parts on handwritten digits, as Table 6 of the paper: 4 variants, 5 seeds.

  python -m diversedit_jax.main --config=configs/studies/digits_parts.py --mode=study \
    --workdir=runs/studies/digits_parts

Hardware: two CPU cores; see docs/studies.md for what it took and what came out.
Meta-arguments: `seeds`, the first so many; `steps`.
"""

from configs import common
from configs.studies import recipe


def get_config(arg: str | None = None):
  """The study; see `common.parse_arg` for the meta-arguments."""
  args = common.parse_arg(arg, seeds=5, steps=recipe.STEPS)
  variants = {
    'SiT': recipe.on_digits('flow', steps=args.steps),
    '+ skips': recipe.on_digits('flow', steps=args.steps, skips=True),
    '+ diversity': recipe.on_digits('flow+diverse', steps=args.steps),
    '+ both': recipe.on_digits('flow+diverse', steps=args.steps, skips=True),
  }
  return recipe.study_of('DiverseDiT in parts, on digits', variants, args.seeds)
