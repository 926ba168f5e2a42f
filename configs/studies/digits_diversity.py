"""The diversity loss in variants on digits, as Tables 7, 8, A7 and A8: 11 variants, 3 seeds.

  python -m diversedit_jax.main --config=configs/studies/digits_diversity.py --mode=study \
    --workdir=runs/studies/digits_diversity

All have long skips. `whole` is `configs/digits.py`: all six blocks, weight L_div / 0.5.
Hardware: two CPU cores; see docs/studies.md for what it took and what came out.
Meta-arguments: `seeds`, the first so many; `steps`.
"""

from configs import common
from configs.studies import recipe


def get_config(arg: str | None = None):
  """The study; see `common.parse_arg` for the meta-arguments."""
  args = common.parse_arg(arg, seeds=3, steps=recipe.STEPS)

  def diverse(**changes):
    changes = {f'diversity__{key}': value for key, value in changes.items()}
    return recipe.on_digits('flow+diverse', steps=args.steps, skips=True, **changes)

  variants = {
    'none': recipe.on_digits('flow', steps=args.steps, skips=True),
    'whole': diverse(),
    'only orth': diverse(weights=(0.33, 0.0, 0.0)),
    'only MI': diverse(weights=(0.0, 0.33, 0.0)),
    # (14) is never positive, so the adaptive weight would keep it off.
    'only dispersion': diverse(weights=(0.0, 0.0, 0.33), adaptive=False),
    'range 0.1 to 0.5': diverse(lo=0.1, hi=0.5),
    'range 0.2 to 0.7': diverse(lo=0.2, hi=0.7),
    'constant weight': diverse(adaptive=False),
    'warm-up': diverse(warmup_steps=args.steps // 2),
    'random 2 blocks': diverse(layers='random', num_layers=2),
    'random 4 blocks': diverse(layers='random', num_layers=4),
  }
  return recipe.study_of('The diversity loss in variants, on digits', variants, args.seeds)
