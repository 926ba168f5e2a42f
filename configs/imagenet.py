"""The recipe that all ImageNet experiments share, s256.py to xl512.py and paper.py.

It is Table A1 of DiverseDiT (arXiv 2603.04239) and, by method, what that method's paper does
otherwise.
"""

import ml_collections

from configs import common
from diversedit_jax.methods import meanflow, registry
from diversedit_jax.models import sizes


def get(arg: str | None, *, size: str, resolution: int) -> ml_collections.ConfigDict:
  """A config from meta-arguments, as in `method=repa+diverse,steps=1_000_000`.

    method    parts joined by '+', see docs/methods.md
    skips     long residual connections; None given, exactly the methods with 'diverse' have them,
              for DiverseDiT is the connections and the loss together
    size      any of models.sizes
    steps     of training; 400K, as here, are 80 epochs, MeanFlow's own length is 1_200_000 (240)
    guidance  while sampling, 1.0 is none; of a MeanFlow it must stay 1.0
    data      see `dry_run_data`

  Raises:
    UserError: for an unknown argument, method or size, or a value of another type.
  """
  defaults = {'method': 'flow+diverse', 'size': size, 'steps': 400_000, 'guidance': 1.0}
  # Twice, because two of the defaults follow the method.
  method = common.parse_arg(arg, **defaults, skips=True, data='').method
  args = common.parse_arg(
    arg, **defaults, skips=common.has_skips(method), data=dry_run_data(method, resolution)
  )
  return recipe(resolution=resolution, **args)


def dry_run_data(method: str, resolution: int) -> str:
  """Gaussian latents, with pixels beside them if the method shows pixels to an encoder.

  They only let a config be planned, traced and timed. For real runs give `store:DIR`, which
  `python -m diversedit_jax.prepare` makes: moments of the SD-VAE, and pixels where an encoder wants
  them.
  """
  latents = f'{resolution // 8}x{resolution // 8}x4'
  pixels = f'+{resolution}x{resolution}x3' if registry.needs(method, 'needs_pixels') else ''
  return f'synthetic:{latents}{pixels}:1000'


def recipe(
  *, method: str, size: str, resolution: int, steps: int, guidance: float, skips: bool, data: str
) -> ml_collections.ConfigDict:
  """The whole config of one experiment; see `get`. resolution: of the pixels, 256 or 512."""
  config = common.base()
  config.data.source = data
  config.data.size = resolution
  config.data.space = 'latents'
  config.model.size = size
  config.model.skip.enabled = skips
  config.model.dtype = config.repa.dtype = 'bfloat16'
  config.train.steps = steps
  config.train.batch_size = 256
  common.set_method(config, method)
  config.sampler.guidance_scale = guidance
  if 'meanflow' in registry.parse(method):
    sizes.size(size)  # Refuses an unknown one by name.
    config.meanflow.update(meanflow.GUIDANCE[size.partition('/')[0]])
    # Published so: its target multiplies the rounding of a derivative by up to t - r = 1.
    config.model.dtype = 'float32'
    config.plan.peak_tflops = 495.0  # The peak of TF32, which JAX takes for float32 on these GPUs.
  if resolution == 512:
    config.model.remat = 'names'  # 1,024 tokens: 32 images on an 80 GB device want it.
    config.sra.decay_after = 99.0
    config.sra.decay_epochs = 800.0
  return config
