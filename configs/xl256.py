"""DiverseDiT, SiT-XL/2 at 256x256, after the paper's recipe (arXiv 2603.04239, Table A1).

  python -m diversedit_jax.main --config=configs/xl256.py:data=arrays:LATENTS.npz --workdir=DIR

Hardware: 8 GPUs of 80 GB; `--mode=plan` gives memory and days for yours. With less memory use
`--config.train.accumulate=2`, `--config.model.remat=full` or `--config.mesh.fsdp=8`.
Differs from the paper: the diversity loss takes all 28 blocks and the global batch (the paper: 10
random ones, per device; `--config.diversity.layers=random` and `--config.diversity.groups=8` give
that), and latents from a file are samples fixed beforehand, not drawn anew at every step.
FID-50K of the paper (SDE, 250 steps, no guidance, 400K iterations, Table 1): SiT-XL 17.43,
DiverseDiT 12.42. None has been measured with this code yet.
Meta-arguments: method, size (any of models.sizes), steps, guidance, data. `method=flow,skips=False`
is plain SiT.
"""

from configs import common


def get_config(arg: str | None = None):
  """The config; see `common.parse_arg` for the meta-arguments."""
  args = common.parse_arg(
    arg, method='flow+diverse', skips=True, size='XL/2', steps=400_000, guidance=1.0,
    data='synthetic:32x32x4:1000',
  )  # fmt: skip
  config = common.base()
  config.data.source = args.data  # Scaled SD-VAE latents 32x32x4; synthetic ones are for dry runs.
  config.model.size = args.size
  config.model.skip.enabled = args.skips
  config.model.dtype = 'bfloat16'
  config.train.steps = args.steps
  config.train.batch_size = 256
  config.sampler.guidance_scale = args.guidance  # 1.35 in Table 2; 4.0 for pictures.
  common.set_method(config, args.method)
  return config
