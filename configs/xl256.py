"""DiverseDiT, SiT-XL/2 at 256x256: the paper's recipe (arXiv 2603.04239, Table A1).

  python -m diversedit_jax.main --config=configs/xl256.py:data=arrays:LATENTS.npz --workdir=DIR

Hardware: 8 GPUs of 80 GB or more, or a TPU slice of 16 chips or more; `--mode=plan` gives memory
  and days for yours. Expected FID-50K (SDE, 250 steps, no guidance, 400K iterations; the paper's
  Table 1): SiT-XL 17.43, DiverseDiT 12.42. Meta-arguments: method, size (any of models.sizes),
  steps, guidance, data. `method=flow,skips=False` is plain SiT.
"""

from configs import common


def get_config(arg: str | None = None):
  """The config; see `common.parse_arg` for the meta-arguments."""
  args = common.parse_arg(
    arg, method='flow+diverse', skips=True, size='XL/2', steps=400_000, guidance=1.0,
    data='synthetic:32x32x4:1000',
  )  # fmt: skip
  config = common.base()
  config.method = args.method
  config.data.source = args.data  # Scaled SD-VAE latents 32x32x4; synthetic ones are for dry runs.
  config.model.size = args.size
  config.model.skip.enabled = args.skips
  config.model.dtype = 'bfloat16'
  config.train.steps = args.steps
  config.train.batch_size = 256
  config.sampler.guidance_scale = args.guidance  # 1.35 in Table 2; 4.0 for pictures.
  return config
