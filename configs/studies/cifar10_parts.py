"""DiverseDiT in parts on CIFAR-10, scored by a classifier trained on its real training split.

  python -m diversedit_jax.main --config='configs/cifar10.py:data=folder:DIR/{split}' \
    --mode=classifier --output=cifar10.safetensors
  python -m diversedit_jax.main --mode=study --workdir=runs/studies/cifar10 \
    --config='configs/studies/cifar10_parts.py:data=folder:DIR/{split},classifier=cifar10.safetensors'

Hardware: one GPU; `small` makes it a size that a CPU trains, too small to say anything.
Meta-arguments: `data`, `classifier`; `seeds`, the first so many; `steps`; `small`.
"""

from configs import common
from configs.studies import recipe


def get_config(arg: str | None = None):
  """The study; see `common.parse_arg` for the meta-arguments."""
  defaults = {'data': 'folder:cifar10/{split}', 'classifier': 'cifar10.safetensors'}
  args = common.parse_arg(arg, **defaults, seeds=3, steps=30_000, small=False)

  def run(method, skips):
    config = recipe.on_cifar10(
      method, steps=args.steps, data=args.data, small=args.small, skips=skips
    )
    config.eval.reference = args.data.replace('{split}', 'test')
    config.eval.classifier = args.classifier
    config.eval.best = 'classifier_fid'
    return config

  variants = {
    'SiT': run('flow', False),
    '+ skips': run('flow', True),
    '+ diversity': run('flow+diverse', False),
    '+ both': run('flow+diverse', True),
  }
  return recipe.study_of('DiverseDiT in parts, on CIFAR-10', variants, args.seeds)
