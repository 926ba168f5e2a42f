"""DiverseDiT, SiT-XL/2 at 256x256, after the paper's recipe (arXiv 2603.04239, Table A1).

  python -m diversedit_jax.main --config=configs/xl256.py:data=store:DIR --workdir=DIR

Hardware: 8 GPUs of 80 GB.
Time: `--mode=plan` expects 13.8 hours for 400K steps and 14.9 hours with method=repa+diverse, at an
assumed 20 % of 989 TFLOP/s (MFU); not measured. The authors report 5.8 steps/s on 8 H100 or H200,
which is 19 hours.
Memory: 47 GiB per GPU by the same plan. With less, `--config.model.remat=names` or `full`,
`--config.mesh.fsdp=8`, or `--config.train.accumulate=2`, whose diversity loss sees half a batch.
FID-50K of the paper (SDE, 250 steps, no guidance, 400K steps, Table 1): SiT-XL 17.43, DiverseDiT
12.42; REPA 8.73, with DiverseDiT 8.09. One step, guided in training (Table 4): MeanFlow 5.94, with
DiverseDiT 5.69. None has been measured with this code yet.
Differs from the paper: the diversity loss takes all 28 blocks and the global batch (the paper: 10
random ones, in code per device; `--config.diversity.layers=random` and
`--config.diversity.groups=8` give that); bfloat16, where the authors train in float16.
Meta-arguments: method, skips, size, steps, guidance, data. `method=flow` is plain SiT, `repa` REPA,
which wants a store of latents and pixels. Without data the latents are synthetic, for dry runs;
docs/data.md makes the store.
"""

from configs import imagenet


def get_config(arg: str | None = None):
  """The config; see `imagenet.get` for the meta-arguments."""
  return imagenet.get(arg, size='XL/2', resolution=256)
