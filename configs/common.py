"""What the configs share: typed meta-arguments and the recipe of the papers."""

from typing import Any

import ml_collections

from diversedit_jax import trees, types


def parse_arg(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
  """The meta-arguments of `--config=FILE.py:name=value,name=value`, typed like their defaults.

  `a,b=1` sets a to True and b to 1. Values are read as the type of the default: '1e-4', 'True',
  'B/2'.

  Raises:
    UserError: for an unknown name (the nearest is named) or a value of another type.
  """
  parsed = dict(defaults)
  for item in filter(None, (arg or '').split(',')):
    name, _, text = item.partition('=')
    if name not in defaults:
      raise types.UserError(f'unknown config argument {name!r}{trees.did_you_mean(name, defaults)}')
    kind = type(defaults[name])
    try:
      if kind is bool:
        parsed[name] = {'': True, 'True': True, 'true': True, 'False': False, 'false': False}[text]
      else:
        parsed[name] = kind(text)
    except (KeyError, ValueError) as error:
      raise types.UserError(f'config argument {name}={text!r} is not a {kind.__name__}') from error
  return ml_collections.ConfigDict(parsed)


def set_method(config: ml_collections.ConfigDict, method: str) -> None:
  """Sets the method, and what its published recipe does otherwise than SiT's.

  MeanFlow (arXiv 2505.13447): logit-normal times, Adam with b2 = 0.95, no clipping, samples in one
  step, guidance in training only.
  """
  config.method = method
  if 'meanflow' in method.split('+'):
    config.interpolant.time_law = 'logit_normal'
    config.interpolant.time_mean = -0.4
    config.optimizer.b2 = 0.95
    config.optimizer.clip_norm = 0.0
    config.sampler.kind = 'average_velocity'
    config.sampler.steps = 1
    config.sampler.guidance_scale = 1.0


def base() -> ml_collections.ConfigDict:
  """Every key there is, with the values of the published recipe (DiverseDiT, Table A1)."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  # Parts joined by '+': flow (SiT, understood where it is not named), reg or meanflow, and any of
  # repa, dispersive, sra, diverse. See methods/rules.py.
  config.method = 'flow'

  config.data = ml_collections.ConfigDict()
  # digits | store:DIR | folder:DIR | tar:FILE | zip:FILE | csv:FILE | tfds:NAME[:SPLIT] |
  # arrays:FILE.npz | synthetic:HxWxC:CLASSES; '{split}' in a path becomes train or test.
  config.data.source = 'digits'
  # Demanded of the data; None takes what they have, of arrays:FILE the largest label plus one.
  config.data.num_classes = ml_collections.config_dict.placeholder(int)
  # Of pictures: a file that names all classes in order, or 'imagenet'; None takes those found.
  config.data.classes = ml_collections.config_dict.placeholder(str)
  config.data.space = ml_collections.config_dict.placeholder(str)  # pixels | latents; demanded.
  # Side of the pixels: of the crop of pictures; demanded of stores, and of pixels beside latents.
  config.data.size = ml_collections.config_dict.placeholder(int)
  # Of pictures: adm (Dhariwal and Nichol; None) | center | exact; demanded of a store.
  config.data.crop = ml_collections.config_dict.placeholder(str)
  # Of pictures: exif (turned as the camera says; None) | stored (ADM's); demanded of a store.
  config.data.orientation = ml_collections.config_dict.placeholder(str)
  config.data.flip = False  # Mirror each example in each epoch by a fair coin; latents need twins.
  config.data.resident = 'none'  # none | host | device: all examples in its memory.
  config.data.prefetch = 2  # Batches kept ready; by each worker if there are some.
  config.data.threads = 1  # That gather a batch each; pictures in it are decoded by all cores.
  config.data.workers = 0  # Processes that gather a batch each instead.

  config.vae = ml_collections.ConfigDict()
  config.vae.weights = ''  # File of the SD-VAE that decodes samples; without it they stay latents.
  # Of latents; None is what the store or the file says, 0.18215 and 0 for SD's.
  config.vae.scale = ml_collections.config_dict.placeholder(float)
  config.vae.shift = ml_collections.config_dict.placeholder(float)
  config.vae.dtype = 'float32'  # Of its matrix products.
  config.vae.tile = 64  # Latent pixels; larger latents are decoded in tiles of this side. 0 is off.

  config.model = ml_collections.ConfigDict()
  config.model.size = 'S/2'  # A name of models.sizes; '' takes the four numbers below.
  config.model.depth = 0  # L, blocks.
  config.model.width = 0  # D.
  config.model.heads = 0
  config.model.patch_size = 0  # Latent pixels.
  config.model.mlp_ratio = 4.0
  config.model.qk_norm = False  # Off in all published SiT models.
  config.model.skip = ml_collections.ConfigDict()
  config.model.skip.enabled = False  # Long residual connections (DiverseDiT, Eq. 8).
  config.model.skip.placement = (
    'after'  # after (released code, published numbers) | before (paper's text).
  )
  config.model.learn_sigma = False  # A head of 2C channels, as DiT's and the original SiT's.
  config.model.time_input = 'unit'  # unit | ddpm (the step of DiT's diffusion; path vp only)
  config.model.dtype = 'float32'  # Of matrix products; bfloat16 halves their time and memory.
  config.model.residual_dtype = 'float32'  # Of the residual stream.
  config.model.attention = 'auto'  # auto | xla | cudnn | cudnn@80, @96, @128 | flash
  config.model.remat = 'none'  # none | full | dots | names
  config.model.unroll = 0  # Blocks per step of the loop; 0: all on a GPU (a few are worse there
  # than one or all), one elsewhere.

  config.interpolant = ml_collections.ConfigDict()
  config.interpolant.path = 'linear'  # linear | cosine | vp
  config.interpolant.prediction = 'velocity'  # velocity | noise | score
  config.interpolant.weighting = 'none'  # none | velocity | likelihood; of a noise or a score.
  config.interpolant.time_law = 'uniform'  # uniform | logit_normal | lognormal | stratified
  config.interpolant.time_mean = 0.0  # Of logit_normal and lognormal.
  config.interpolant.time_std = 1.0
  # Times are drawn from [epsilon, 1 - epsilon]; None is what path and prediction need.
  config.interpolant.epsilon = ml_collections.config_dict.placeholder(float)

  config.diversity = ml_collections.ConfigDict()
  config.diversity.layers = 'all'  # all | random | authors | '0,2,5', blocks from 0.
  config.diversity.num_layers = ml_collections.config_dict.placeholder(
    int
  )  # Of 'random'; 10 in the paper.
  config.diversity.encoder_depth = ml_collections.config_dict.placeholder(int)  # Of 'authors'.
  config.diversity.dispersion_layers = ml_collections.config_dict.placeholder(str)  # selected | all
  config.diversity.mi = 'signed'  # signed (paper) | absolute (released code)
  config.diversity.dispersion = 'paper'  # paper | code
  config.diversity.usage = 'absolute'  # absolute | signed
  config.diversity.weights = (0.33, 0.33, 0.33)  # Of orthogonality, mutual information, dispersion.
  config.diversity.groups = (
    1  # Parts of the batch with their own statistics; 1 is the global batch.
  )
  config.diversity.adaptive = True  # A constant weight diverges (Table 8).
  config.diversity.lo = 0.1  # Range of the adaptive weight, in units of the loss.
  config.diversity.hi = 0.5
  config.diversity.stop_gradient_weight = False  # The released code lets gradients through.

  config.repa = ml_collections.ConfigDict()  # Also of reg, which aligns too.
  # ENCODER@BLOCK,...; blocks from 1. Without a block: 5 (depth 12; 4 for reg) or 8 (24, 28).
  # pca | dinov2-vit-{s,b,l,g} | dinov2reg-vit-{s,b,l,g} | mae-vit-{b,l,h} | mocov3-vit-{s,b,l} |
  # clip-vit-l | ijepa-vit-h (not for reg); see docs/methods.md.
  config.repa.pairs = 'dinov2-vit-b'
  config.repa.weight = 0.5
  config.repa.hidden = 2048  # Width of the projectors.
  config.repa.weights = ''  # Folder with the encoders' official weight files.
  config.repa.dtype = 'float32'  # Of the encoders' matrix products.

  config.dispersive = ml_collections.ConfigDict()
  config.dispersive.preset = 'paper'  # paper | release: values of what is None below.
  config.dispersive.kind = 'infonce_l2'  # infonce_l2 | infonce_cosine | hinge | covariance
  config.dispersive.block = ml_collections.config_dict.placeholder(int)  # From 1; L/4 or L.
  config.dispersive.temperature = ml_collections.config_dict.placeholder(float)  # 0.5 or 1.
  # Of the hinge, in mean squared distance per feature; None is 1.
  config.dispersive.margin = ml_collections.config_dict.placeholder(float)
  config.dispersive.weight = ml_collections.config_dict.placeholder(float)  # 0.5 or 0.25.
  # Parts of the batch with a loss each; groups of 16 or 32 examples. 1 is the global batch.
  config.dispersive.groups = ml_collections.config_dict.placeholder(int)

  config.sra = ml_collections.ConfigDict()
  # From 1; None is 4 -> 8 (depth 12), 8 -> 16 (24), 8 -> 20 (28).
  config.sra.student_block = ml_collections.config_dict.placeholder(int)
  config.sra.teacher_block = ml_collections.config_dict.placeholder(int)
  # smooth_l1 (paper) | l2 | l1 | cosine (the released code's default, with weight 0.5)
  config.sra.kind = 'smooth_l1'
  config.sra.axis = 'features'  # Of the cosine; the released code takes 'tokens'.
  config.sra.beta = ml_collections.config_dict.placeholder(float)  # Of smooth_l1; None is 0.05.
  config.sra.t_max = 0.2  # The teacher sees a time up to this much cleaner.
  config.sra.weight = 0.2
  config.sra.decay_after = 149.0  # Epochs; 99 at 512 px.
  config.sra.decay_epochs = 1_000.0  # In which it falls to a tenth; 800 at 512 px, 0 is constant.

  config.reg = ml_collections.ConfigDict()
  config.reg.class_weight = 0.03  # Of the class token's loss.

  config.meanflow = ml_collections.ConfigDict()
  config.meanflow.variant = 'original'  # original | improved (2512.02012)
  # Share with r = t; None is 0.75, or 0.5 for 'improved'.
  config.meanflow.equal_fraction = ml_collections.config_dict.placeholder(float)
  config.meanflow.omega = 1.0  # Guidance in training, of effective scale omega / (1 - kappa).
  config.meanflow.kappa = 0.5
  config.meanflow.start = 0.0  # Guidance acts where start <= t <= end.
  config.meanflow.end = 1.0
  config.meanflow.power = 1.0  # Of the adaptive weight.
  config.meanflow.constant = 0.01
  config.meanflow.masks = 'independent'  # independent | correlated (released code)

  config.train = ml_collections.ConfigDict()
  config.train.steps = 400_000
  config.train.batch_size = 256  # Global.
  config.train.accumulate = 1  # Microbatches per step.
  config.train.label_dropout = 0.1  # Probability of the null label.
  config.train.ema_decay = 0.9999

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.learning_rate = 1e-4
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.999
  config.optimizer.eps = 1e-8
  config.optimizer.weight_decay = 0.0
  config.optimizer.clip_norm = 1.0  # Of the global gradient norm; 0 is off.
  config.optimizer.warmup_steps = 0
  config.optimizer.schedule = 'constant'  # constant | cosine
  # Moments and average split over mesh.data too (ZeRO-1); pays where a device has few examples.
  config.optimizer.shard_over_data = False

  config.mesh = ml_collections.ConfigDict()
  config.mesh.data = -1  # Devices per axis; one may be -1, which takes what is left.
  config.mesh.fsdp = 1  # These share one copy of the state; must divide the width.
  config.mesh.tensor = 1  # These share each matrix product.

  config.log = ml_collections.ConfigDict()
  config.log.every = 100  # Steps between console lines and rows of metrics.jsonl.
  config.log.telemetry_every = 5_000  # Steps between L x L similarity matrices; 0 is off.
  config.log.telemetry_examples = 8
  config.log.tensorboard = True

  config.checkpoint = ml_collections.ConfigDict()
  config.checkpoint.every = 10_000
  config.checkpoint.keep = 3
  config.checkpoint.keep_every = 50_000  # These are kept for ever; 0 is off.

  config.preview = ml_collections.ConfigDict()
  config.preview.every = 10_000  # Steps between sample grids; 0 is off.
  config.preview.rows = 8  # One class each.
  config.preview.columns = 8

  config.sampler = ml_collections.ConfigDict()
  config.sampler.kind = 'euler_maruyama'  # euler_maruyama | heun | euler | average_velocity
  config.sampler.steps = 250
  config.sampler.times = ()  # Falling from start to 0, instead of equal steps.
  config.sampler.start = 1.0  # 0.999 for a noise or a score on the paths linear and cosine.
  config.sampler.diffusion = '2t'  # w_t of the SDE.
  config.sampler.last_step = 0.04
  config.sampler.guidance_scale = 1.0  # 1 is no guidance.
  config.sampler.guidance_low = 0.0  # Guidance acts where low <= t <= high.
  config.sampler.guidance_high = 1.0
  config.sampler.guidance_channels = ml_collections.config_dict.placeholder(int)  # None guides all.
  # Of REG's class token; None is guidance_scale, 0 does not guide it.
  config.sampler.class_token_scale = ml_collections.config_dict.placeholder(float)

  config.sample = ml_collections.ConfigDict()
  config.sample.seed = 0
  config.sample.batch_size = 128
  config.sample.weights = 'ema'  # ema | params
  config.sample.number = 64  # Of --mode=sample.
  config.sample.labels = 'balanced'  # balanced | random | one class index
  # Of float32 products while sampling and decoding: default (TF32 or bfloat16 on some devices) |
  # high | highest. Coarse products move FID; bfloat16 models (model.dtype) are as they are.
  config.sample.matmul_precision = 'highest'

  config.eval = ml_collections.ConfigDict()
  config.eval.name = 'fid-{step}'  # Of the files eval/NAME.json and .npz.
  # What to score against: ADM's .npz, one that --mode=stats wrote, pictures as in data.source
  # (folder:DIR, store:DIR, ...), or digits.
  config.eval.reference = ''
  config.eval.number = 50_000  # Samples.
  config.eval.labels = 'random'  # random (SiT, REPA) | balanced | one class | file:LABELS.npy
  config.eval.quantiser = 'truncate'  # truncate (REPA, SRA, REG) | round_half (DiT, SiT, MeanFlow)
  config.eval.inception = ''  # File of the FID network's weights, or its folder; random:SEED.
  config.eval.encoder = ''  # A second network, such as dinov2-vit-l for FD-DINOv2.
  config.eval.encoder_weights = ''  # Folder with its official file.
  # As eval.reference, of --mode=stats with the same encoder; '' takes eval.reference's pictures.
  config.eval.encoder_reference = ''
  config.eval.batch_size = 64  # Pictures through these networks at a time, of all devices.
  config.eval.precision_recall = 'float32'  # float32 | float16 (ADM's arithmetic) | none
  config.eval.kid_subsets = 100  # Of the kernel distance; 0 leaves it out.
  config.eval.keep_samples = True  # As eval/NAME.npz, which ADM's evaluator reads too.
  config.eval.every = 0  # Steps between evaluations while training; 0 is off.
  config.eval.every_number = 1_000  # Their samples: for watching, not for quoting.
  config.eval.best = 'fid'  # The score by which the best averaged weights are kept.

  config.sweep = ml_collections.ConfigDict()  # Of guidance, by --mode=sweep.
  config.sweep.guidance_scales = (1.0, 1.25, 1.5, 1.75, 2.0)
  config.sweep.guidance_lows = (0.0,)
  config.sweep.guidance_highs = (0.7, 1.0)
  config.sweep.number = 5_000  # Samples for each setting.
  config.sweep.score = 'fid'  # What is tabled first and plotted.

  config.analysis = ml_collections.ConfigDict()
  config.analysis.examples = 256
  config.analysis.times = (0.1, 0.5, 0.9)
  config.analysis.view = 'mean'
  config.analysis.bandwidth = 1.0  # Of the RBF kernel, times the median distance.

  config.plan = ml_collections.ConfigDict()
  config.plan.devices = ml_collections.config_dict.placeholder(int)  # None: of compile_for, or 8.
  config.plan.peak_tflops = (
    989.0  # Per device, dense, in the compute dtype (H100/H200 bf16 data sheet).
  )
  # Share of the peak that training is assumed to reach; published DiT and SiT code: 0.06 to 0.25.
  config.plan.mfu = 0.2
  # Also compiles the step for what is not here, which tells whether it fits: a GPU, with a number
  # (a100-40, a100-80, h100, h200, rtx4090; 'h200:8'), or TPUs ('v5e:2x2'). docs/memory.md.
  config.plan.compile_for = ''
  return config
