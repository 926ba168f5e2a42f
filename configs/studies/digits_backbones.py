"""DiverseDiT on three backbones, on digits: SiT, LightningDiT and RAE's with a wide head, 5 seeds.

  python -m diversedit_jax.main --config=configs/studies/digits_backbones.py --mode=study \
    --workdir=runs/studies/digits_backbones

Each backbone alone, with long skips, and with long skips and the diversity loss (`diverse`), which
the wide head leaves to the encoder's six blocks; its decoder is one block, half as wide again. No
other part of a recipe changes with the backbone, so variants of one backbone are to be compared.
Hardware: two CPU cores; see docs/studies.md for what it took and what came out.
Meta-arguments: `seeds`, the first so many; `steps`.
"""

from configs import common
from configs.studies import recipe

BACKBONES = {
  'sit': {},
  'lightning': {'model__block': 'lightning'},
  'ddt': {
    'model__block': 'ddt',
    'model__head__depth': 1,
    'model__head__width': 96,
    'model__head__heads': 4,
  },
}


def get_config(arg: str | None = None):
  """The study; see `common.parse_arg` for the meta-arguments."""
  args = common.parse_arg(arg, seeds=5, steps=recipe.STEPS)
  parts = {'flow': ('flow', False), 'skips': ('flow', True), 'diverse': ('flow+diverse', True)}
  variants = {
    f'{backbone}-{name}': recipe.on_digits(method, steps=args.steps, skips=skips, **keys)
    for backbone, keys in BACKBONES.items()
    for name, (method, skips) in parts.items()
  }
  return recipe.study_of('DiverseDiT on three backbones, on digits', variants, args.seeds)
