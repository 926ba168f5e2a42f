"""DiT-XL/1 at 256x256 on tokens of DINOv2-B, after RAE's recipe (arXiv 2510.11690).

  python -m diversedit_jax.main --config=configs/rae_xl256.py:data=store:PIXELS --workdir=DIR \\
    --config.rae.weights=ENCODERS --config.rae.statistics=stat.pt --config.rae.decoder=model.pt

The network is LightningDiT's with Gaussian features of time, its latents are made in the step;
docs/rae.md says where the files are. Without data it is a dry run.
Hardware: 8 GPUs of 80 GB.
Time: `--mode=plan` expects 13.7 hours for 80 epochs at an assumed 20 % of 989 TFLOP/s (MFU); not
measured. The encoder is 6.6 % of it.
Memory: 53 GiB per GPU by the same plan, with `model.remat=names` as here.
FID-50K of the authors (no guidance): 4.28 after 80 epochs (sFID 6.40, IS 222.1, precision 0.87,
recall 0.48; their issue 64). None has been measured with this code yet. They take as many samples
of every class (`eval.labels=balanced`, as here), by which FID is about 0.1 lower (their README).
The learning rate is that of a run of 800 epochs, from which they take the checkpoint at 80
(their issue 45). Their ODE has 50 points, which are 49 steps, and ends at t = 0.007.
Sources, of bytetriper/RAE: [1] configs/training/ImageNet256/DiTDH-XL_DINOv2-B.yaml and src/train.py
at 34b0679; [2] src/stage2/transport at a4d18c4; [3] the same config later, as jaycheng6076/RAE
4f2525f copies it. [1] has uniform times, as here, PyTorch's b2 of 0.999 and no clipping; [3] has
logit-normal times (`interpolant.time_law=logit_normal`), b2 and clipping as here.
RAE's and RAEv2's blocks start, but for adaLN, as PyTorch's layers do (weights by kaiming_uniform,
biases not 0); ours start as SiT's (Xavier, biases 0).
Meta-arguments: method, skips, size, steps, guidance, data. `method=flow+diverse,skips=True` puts
DiverseDiT on it.
"""

from configs import common, imagenet

EPOCH = 1_281_167 // 1024  # Steps.
DATA = 'synthetic:16x16x768+256x256x3:1000'  # For dry runs.
RECIPE = {
  # Ours.
  'rae.dtype': 'bfloat16',
  'model.remat': 'names',
  # [1]
  'rae.encoder': 'dinov2reg-vit-b',
  'data.flip': True,
  'model.block': 'ddt',
  'interpolant.shift': 'auto',
  'train.batch_size': 1024,
  'train.ema_decay': 0.9995,
  'optimizer.learning_rate': 2e-4,
  'optimizer.schedule': 'linear',
  'optimizer.decay_start': 40 * EPOCH,
  'optimizer.decay_end': 800 * EPOCH,
  'optimizer.decay_to': 0.1,
  'sampler.kind': 'euler',
  'sampler.steps': 49,
  # [2]
  'interpolant.time_latest': 0.999,
  'sampler.end': 0.001,
  # [3]
  'optimizer.b2': 0.95,
  'optimizer.clip_norm': 1.0,
  # Their README.
  'eval.labels': 'balanced',
}


def get_config(arg: str | None = None):
  """The config; see `imagenet.get` for the meta-arguments."""
  defaults = {'method': 'flow', 'size': 'XL/1', 'steps': 80 * EPOCH, 'guidance': 1.0}
  args = common.parse_arg(arg, **defaults, skips=False, data=DATA)
  config = imagenet.recipe(resolution=256, **args)
  common.set_options(config, RECIPE)
  return config
