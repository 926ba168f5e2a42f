"""DiverseDiT on handwritten digits: 1,442 real 8x8 images, pixel space. What `launch/demo.sh` runs.

  python -m diversedit_jax.main --config=configs/digits.py --workdir=runs/digits

Hardware: a laptop; two CPU cores need about two minutes. Meta-arguments: `method`, any combination
  of methods, as `method=flow` (no diversity loss), `repa+diverse` or `meanflow`; `skips=False`
  leaves out the long residual connections; `steps`.
"""

from configs import common


def get_config(arg: str | None = None):
  """The config; see `common.parse_arg` for the meta-arguments."""
  args = common.parse_arg(arg, method='flow+diverse', skips=True, steps=1_200)
  config = common.base()
  config.data.source = 'digits'

  config.model.size = ''
  config.model.depth = 6
  config.model.width = 96
  config.model.heads = 4
  config.model.patch_size = 2  # 16 tokens.
  config.model.skip.enabled = args.skips
  config.model.unroll = 3  # Each half of the blocks in one step: no loop, with less memory.

  # A network this small begins with an L_div of 0.09, below the paper's range [0.1, 0.5] where the
  # loss is off.
  config.diversity.lo = 0.0

  config.repa.pairs = 'pca@3'  # Principal components of patches; nothing to download.
  config.repa.hidden = 128
  config.sra.student_block = 2
  config.sra.teacher_block = 4
  config.dispersive.block = 2

  config.train.steps = args.steps  # 22.5 to an epoch.
  config.train.batch_size = 64
  config.train.ema_decay = 0.995  # An average over about 200 steps; the run is short.
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 50
  config.optimizer.schedule = 'cosine'

  config.log.every = 100
  config.log.telemetry_every = 400
  config.log.telemetry_examples = 32
  config.checkpoint.every = 400
  config.checkpoint.keep_every = 0
  config.preview.every = 400
  config.preview.rows = 10

  config.sampler.kind = 'heun'
  config.sampler.steps = 20
  config.sampler.guidance_scale = 2.0
  common.set_method(config, args.method)
  config.sample.number = 100
  config.sample.batch_size = 250
  config.eval.name = config.eval.reference = 'digits'  # Held-out ones, and a classifier of digits.
  config.eval.labels = 'balanced'
  config.eval.number = 500
  config.eval.every_number = 200
  config.eval.best = config.sweep.score = 'frechet_distance'
  config.sweep.number = 500

  config.plan.devices = 1
  config.plan.peak_tflops = 0.1  # Two CPU cores.
  return config
