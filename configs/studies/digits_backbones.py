"""Long residuals and the diversity loss on three backbones, on digits: 9 variants, 5 seeds.

  python -m diversedit_jax.main --config=configs/studies/digits_backbones.py --mode=study \
    --workdir=runs/studies/digits_backbones

SiT, LightningDiT and DDT, each alone, with long residuals, and with long residuals and the loss
(DiverseDiT). All have six blocks of width 64; DDT has one block more, of width 96, as its decoder,
which neither long residuals nor the loss reach. One learning rate for all, that of the other
studies on digits, tuned for none of them.
Hardware: two CPU cores; see docs/studies.md for what it took and what came out.
Meta-arguments: `seeds`, the first so many; `steps`.
"""

from configs import common
from configs.studies import recipe

_HEAD = {'model__head__depth': 1, 'model__head__width': 96, 'model__head__heads': 4}
BACKBONES = {
  'SiT': {},
  'LightningDiT': {'model__block': 'lightning'},
  'DDT': {'model__block': 'ddt', **_HEAD},
}


def get_config(arg: str | None = None):
  """The study; see `common.parse_arg` for the meta-arguments."""
  args = common.parse_arg(arg, seeds=5, steps=recipe.STEPS)
  variants = {}
  for name, parts in BACKBONES.items():
    for suffix, method, skips in (
      ('', 'flow', False),
      (' + skips', 'flow', True),
      (' + both', 'flow+diverse', True),
    ):
      variants[name + suffix] = recipe.on_digits(method, steps=args.steps, skips=skips, **parts)
  return recipe.study_of('DiverseDiT on three backbones, on digits', variants, args.seeds)
