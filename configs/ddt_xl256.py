"""DiT-DH-XL at 256x256 on tokens of DINOv2-B: RAE's wide head on its encoder (arXiv 2510.11690).

  python -m diversedit_jax.main --config=configs/ddt_xl256.py:data=store:PIXELS --workdir=DIR \\
    --config.rae.weights=ENCODERS --config.rae.statistics=stat.pt --config.rae.decoder=model.pt

28 blocks of width 1152 and a head of 2 blocks of width 2048, of 16 heads each, by the authors'
config (bytetriper/RAE 34b0679). All else is as in rae_xl256.py, whose header names the sources, and
from what weights the authors' blocks start, which ours do not.
Hardware: 8 GPUs of 80 GB.
Time: `--mode=plan` expects 18.3 hours for 80 epochs at an assumed 20 % of 989 TFLOP/s (MFU); not
measured.
Memory: 63 GiB per GPU by the same plan, with `model.remat=names` as here.
FID-50K of the paper (no guidance), quoted at second hand: 2.16 after 80 epochs; 1.51 after 800
(IS 242.9, precision 0.79, recall 0.63), and 1.13 with a smaller network that guides
(`sampler.autoguidance`; IS 262.6, precision 0.78, recall 0.67), whose scale is not stated in what
was read. None has been measured with this code yet.
Meta-arguments: as in rae_xl256.py. `method=flow+diverse,skips=True` puts DiverseDiT on the encoder.
"""

from configs import common, rae_xl256

RECIPE = rae_xl256.RECIPE | {
  'model.head.depth': 2,
  'model.head.width': 2048,
  'model.head.heads': 16,
}


def get_config(arg: str | None = None):
  """The config; see `imagenet.get` for the meta-arguments."""
  config = rae_xl256.get_config(arg)
  common.set_options(config, RECIPE)
  return config
