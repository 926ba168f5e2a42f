"""DiverseDiT, SiT-S/2 on CIFAR-10: 50,000 colour images of 32x32, in pixel space.

  python -m diversedit_jax.main --config='configs/cifar10.py:data=folder:DIR/{split}' --workdir=RUN

Class folders, as `DIR/train/airplane/0001.jpg`, or any other `data.source` of pictures; without
`data` it is `tfds:cifar10`, which TFDS must have prepared; if it has not, the command that does is
printed. The images are decoded once and kept in the memory of the host (150 MB).
Hardware: one GPU. On a laptop, a smaller net: `size=` with `--config.model.depth=4
--config.model.width=96 --config.model.heads=4 --config.model.patch_size=4`.
Time: `--mode=plan` expects 1.4 hours for 200K steps at an assumed 20 % of 989 TFLOP/s (MFU); not
measured, nor is any FID.
Meta-arguments: method, skips, size, steps, data.
"""

from configs import common


def get_config(arg: str | None = None):
  """The config; see `common.parse_arg` for the meta-arguments."""
  method = 'flow+diverse'
  defaults = {'method': method, 'size': 'S/2', 'steps': 200_000, 'data': 'tfds:cifar10'}
  method = common.parse_arg(arg, **defaults, skips=True).method
  args = common.parse_arg(arg, **defaults, skips=common.has_skips(method))
  config = common.base()
  config.data.source = args.data
  config.data.size = 32
  config.data.flip = True
  config.data.resident = 'host'
  config.model.size = args.size
  config.model.skip.enabled = args.skips
  config.model.dtype = 'bfloat16'
  config.train.steps = args.steps
  config.train.batch_size = 128  # 390.6 steps to an epoch; 200K steps are 512 epochs.
  config.train.ema_warmup = True  # For short runs, and for own pictures, which are often few.
  common.set_method(config, args.method)
  config.checkpoint.keep_every = 0
  config.preview.rows = 10
  config.plan.devices = 1
  return config
