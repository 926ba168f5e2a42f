"""DiverseDiT, SiT-B/2 at 256x256, after the paper's recipe (arXiv 2603.04239, Table A1).

  python -m diversedit_jax.main --config=configs/b256.py:data=store:DIR --workdir=DIR

Hardware: 8 GPUs of 80 GB.
Time: `--mode=plan` expects 2.7 hours for 400K steps and 3.7 hours with method=repa+diverse, at an
assumed 20 % of 989 TFLOP/s (MFU); not measured.
Memory: 13 GiB per GPU by the same plan. With less, `--config.model.remat=names` or `full`,
`--config.mesh.fsdp=8`, or `--config.train.accumulate=2`, whose diversity loss sees half a batch.
FID-50K of the paper (SDE, 250 steps, no guidance, 400K steps, Table 1): SiT-B 36.80, DiverseDiT
28.05; REPA 22.99, with DiverseDiT 17.29. One step, guided in training (Table 4): MeanFlow 9.44,
with DiverseDiT 8.51. None has been measured with this code yet.
Differs from the paper: the diversity loss takes all 12 blocks and the global batch (the paper: 10
random ones, in code per device; `--config.diversity.layers=random` and
`--config.diversity.groups=8` give that); bfloat16, where the authors train in float16.
Meta-arguments: method, skips, size, steps, guidance, data. `method=flow` is plain SiT, `repa` REPA,
which wants a store of latents and pixels. Without data the latents are synthetic, for dry runs;
docs/data.md makes the store.
"""

from configs import imagenet


def get_config(arg: str | None = None):
  """The config; see `imagenet.get` for the meta-arguments."""
  return imagenet.get(arg, size='B/2', resolution=256)
