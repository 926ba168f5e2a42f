"""LightningDiT-XL/1 at 256x256 on latents of VA-VAE, after its published recipe (arXiv 2501.01423).

  python -m diversedit_jax.main --config=configs/lightning_xl256.py:data=store:DIR --workdir=DIR

Hardware: 8 GPUs of 80 GB.
Time: `--mode=plan` expects 10.2 hours for 80K steps (64 epochs) at an assumed 20 % of 989 TFLOP/s
(MFU); not measured. The authors report about 10 hours on 8 H800.
Memory: 53 GiB per GPU by the same plan, with `model.remat=names` as here.
FID-50K of the paper (250 Euler steps, guidance on an interval): 2.11 after 64 epochs, 1.35 after
800. None has been measured with this code yet. Scale and interval are not stated in what was read:
sweep over them (`--mode=sweep`).
Meta-arguments: method, skips, size, steps, guidance, data. `method=direction+diverse,skips=True`
puts DiverseDiT on it; `direction` is the cosine of its recipe. Without data the latents are
synthetic, for dry runs; docs/data.md makes the store, with VA-VAE's file as `--vae`.
"""

from configs import common, imagenet

DATA = 'synthetic:16x16x32:1000'  # For dry runs.
RECIPE = {
  'model.block': 'lightning',
  'model.remat': 'names',
  'interpolant.time_law': 'logit_normal',
  'train.batch_size': 1024,
  'optimizer.learning_rate': 2e-4,
  'optimizer.b2': 0.95,
  'optimizer.clip_norm': 0.0,
  'sampler.kind': 'euler',
  'sampler.shift': 1 / 0.3,  # Its clock runs the other way: times are shifted by 0.3 there.
  'sampler.guidance_channels': 3,
}


def get_config(arg: str | None = None):
  """The config; see `imagenet.get` for the meta-arguments."""
  defaults = {'method': 'direction', 'size': 'XL/1', 'steps': 80_000, 'guidance': 1.0}
  args = common.parse_arg(arg, **defaults, skips=False, data=DATA)
  config = imagenet.recipe(resolution=256, **args)
  config.update_from_flattened_dict(RECIPE)
  return config
