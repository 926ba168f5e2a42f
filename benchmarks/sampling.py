r"""Sampling: the whole way in one program against a loop over steps, guidance, batch sizes.

  python benchmarks/sampling.py
  python benchmarks/sampling.py --size=XL/2 --dtype=bfloat16 --steps=250 --batches=8,256 \
      --parts=speed --decode                                                    on one GPU

1. loop: the trajectory in one program (what the project does) and a Python loop over the same
   compiled step, in turns, for each of --batches; both must give the same samples.
2. guidance: none, in an interval, and throughout, in turns. What a guided step costs is counted in
   network evaluations, so the time should grow as their number.
3. speed: images a second for each of --batches, as a share of a matrix product taken in turns; with
   --decode the pictures are made by an autoencoder of the published size, in the same program.

Weights are random; they change nothing about the cost, but samples of a fresh network would only be
its noise, so all parameters are disturbed.
"""

import argparse
import dataclasses
import functools

import common
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import steps
import timing

from diversedit_jax import cli, rng
from diversedit_jax.data import images
from diversedit_jax.frozen import vae, vae_files
from diversedit_jax.methods import base
from diversedit_jax.models import cost, tuning
from diversedit_jax.sampling import guidance, steppers, trajectory

PARTS = ('loop', 'guidance', 'speed')
# The paper's SiT-XL, 250 evaluations, on 8 GPUs (arXiv 2603.04239).
PAPER_IMAGES_PER_SECOND = 10.04


class Sampler:
  """A network with its flow; programs that sample."""

  def __init__(self, args):
    case = steps.Case(
      size=args.size,
      variant=args.variant,
      batch=1,
      resolution=args.resolution,
      dtype=args.dtype,
      attention=args.attention,
      unroll=args.unroll,
    )
    self.architecture, self.flow = case.architecture(), steps.interpolant()
    make = lambda: steps.perturbed(
      base.Network(self.architecture, case.execution(), rngs=nnx.Rngs(0))
    )
    self.graphdef, _ = nnx.split(nnx.eval_shape(make))
    self.params = jax.jit(lambda: nnx.state(make()))()
    self.forward_flops = cost.forward_flops(self.architecture)

  def inputs(self, batch: int):
    """(keys_N, labels_N)."""
    keys_N = rng.per_example(jax.random.key(0), jnp.arange(batch))
    return keys_N, jnp.asarray(np.arange(batch) % steps.CLASSES, jnp.int32)

  def one_program(self, config: trajectory.SamplerConfig, batch: int, decode=None):
    """A call that samples a batch. decode: (params, z_NHWC) -> pictures, with its parameters."""

    def run(params, keys_N, labels_N, decoder):
      network = tuning.for_sampling(nnx.merge(self.graphdef, params))
      z_NHWC = self.flow.sample(network, keys_N, labels_N, config)
      return z_NHWC if decode is None else decode.run(decoder, z_NHWC)

    inputs = (self.params, *self.inputs(batch), None if decode is None else decode.params)
    return functools.partial(jax.jit(run).lower(*inputs).compile(), *inputs)

  def loop(self, config: trajectory.SamplerConfig, batch: int):
    """The same samples by a Python loop over one compiled step (two where guidance comes and goes).

    The noise of a step is made within it, and its constants are made beforehand. Parameters are
    cast once for all steps, as they are in the program.
    """
    keys_N, labels_N = self.inputs(batch)
    shape, dtype = self.architecture.shape, trajectory.state_dtype(config)
    start = jax.jit(lambda: trajectory.normal(keys_N, shape, 'sampling_start', dtype))

    def one(params, x_NHWC, index, step, guided):
      predict, null = (
        self.flow.velocity(nnx.merge(self.graphdef, params)),
        self.architecture.null_label,
      )
      velocity = lambda x, t: guidance.velocity(predict, x, t, labels_N)
      if guided:
        combine = config.guidance.combine
        velocity = lambda x, t: guidance.guided_velocity(predict, x, t, labels_N, combine, null)
      if config.kind != 'euler_maruyama':
        return steppers.euler(velocity, x_NHWC, step)
      z_NHWC = trajectory.normal(keys_N, shape, 'sampling_step', dtype, index)
      return steppers.euler_maruyama(velocity, x_NHWC, step, z_NHWC)

    cast = jax.jit(lambda params: nnx.state(tuning.cast_products(nnx.merge(self.graphdef, params))))
    jitted = jax.jit(one, static_argnames='guided', donate_argnums=1)
    sequence = [
      (
        jnp.asarray(index),
        jax.tree.map(lambda c, i=i: jnp.asarray(c[i], dtype), stretch.steps),
        len(stretch.velocities) > 1,
      )
      for stretch in trajectory.stretches(config)
      for i, index in enumerate(stretch.index)
    ]

    def run():
      params, x_NHWC = cast(self.params), start()
      for index, step, guided in sequence:
        x_NHWC = jitted(params, x_NHWC, index, step, guided=guided)
      return x_NHWC

    return run


class Decoder:
  """The autoencoder of Stable Diffusion with random weights: latents -> levels of pixels."""

  def __init__(self, dtype: str):
    self._autoencoder = vae_files.random(vae.VAEConfig(), seed=0, dtype=dtype)
    self.params = jax.device_put(self._autoencoder.params)

  def run(self, params, z_NHWC):
    """Pictures [N, H, W, 3] uint8, a few at a time, because the widest activation is large."""
    scaling, n = self._autoencoder.config.scaling, len(z_NHWC)
    one = lambda z_HWC: self._autoencoder.decode(params, z_HWC[None])[0]
    return images.levels(jax.lax.map(one, scaling.undo(z_NHWC), batch_size=min(n, 8)), 'truncate')


def measure_loop(sampler: Sampler, config: trajectory.SamplerConfig, args) -> dict:
  """Batch -> the loop's time over the program's."""
  rows = {}
  for batch in args.batches:
    program, loop = sampler.one_program(config, batch), sampler.loop(config, batch)
    a_NHWC, b_NHWC = np.asarray(program()), np.asarray(loop())
    difference = float(np.linalg.norm(a_NHWC - b_NHWC) / np.linalg.norm(a_NHWC))
    if not difference < 1e-3:
      raise RuntimeError(f'the loop samples something else: relative difference {difference}')
    sides = {'program': timing.clocked(program), 'loop': timing.clocked(loop)}
    turns = timing.alternate(sides, args.rounds, slices=args.slices)
    rows[str(batch)] = {
      'seconds': {name: timing.summary(found) for name, found in turns.items()},
      'loop_over_program': timing.ratio(turns['loop'], turns['program']),
      'difference': difference,
    }
    print('loop', batch, rows[str(batch)], flush=True)
  return rows


def measure_guidance(sampler: Sampler, config: trajectory.SamplerConfig, args) -> dict:
  """Kind of guidance -> evaluations and time, and both over those without."""
  scale = {'guidance_scale': 1.8}
  kinds = {
    'none': config,
    'interval': dataclasses.replace(config, **scale, guidance_high=args.guidance_high),
    'throughout': dataclasses.replace(config, **scale),
  }
  batch = args.batches[-1]
  programs = {name: sampler.one_program(kind, batch) for name, kind in kinds.items()}
  sides = {name: timing.clocked(program) for name, program in programs.items()}
  turns = timing.alternate(sides, args.rounds, slices=args.slices)
  rows, alone = {}, trajectory.evaluations(config).per_sample
  for name, kind in kinds.items():
    evaluations = trajectory.evaluations(kind).per_sample
    ratio = timing.ratio(turns[name], turns['none'])
    relative = {
      clock: {k: v if k == 'rounds' else v * alone / evaluations for k, v in found.items()}
      for clock, found in ratio.items()
    }
    rows[name] = {
      'evaluations': evaluations,
      'seconds': timing.summary(turns[name]),
      'time_ratio': ratio,
      'time_ratio_over_evaluations_ratio': relative,
    }
    print(name, rows[name], flush=True)
  return rows


def measure_speed(sampler: Sampler, config: trajectory.SamplerConfig, args) -> dict:
  """Batch -> images a second, and the share of a matrix product."""
  decoder = Decoder(args.dtype) if args.decode else None
  product, product_flops = timing.matmul(timing.matmul_size(), args.dtype)
  flops = sampler.forward_flops * trajectory.evaluations(config).per_sample
  if decoder is not None:
    flops += vae.flops(vae.VAEConfig(), args.resolution, args.resolution)[1]
  rows = {}
  for batch in args.batches:
    program = sampler.one_program(config, batch, decoder)
    finite = np.isfinite(np.asarray(program(), np.float32)).all()
    if not finite:
      raise FloatingPointError(f'samples in {args.dtype} are not finite')
    sides = {'program': timing.clocked(program), 'matmul': product}
    turns = timing.alternate(sides, args.rounds, slices=args.slices)
    rates = [batch / turn.wall for turn in turns['program']]
    tops = [product_flops / turn.wall for turn in turns['matmul']]
    rows[str(batch)] = {
      'images_per_second': timing.spread(rates),
      'of_matmul': timing.spread(r * flops / top for r, top in zip(rates, tops, strict=True)),
      'over_paper_per_gpu_of_8': timing.spread(r * 8 / PAPER_IMAGES_PER_SECOND for r in rates),
      'hours_for_50000': timing.spread(50_000 / r / 3600 for r in rates),
    }
    print('speed', batch, rows[str(batch)], flush=True)
  return rows


def parse() -> argparse.Namespace:
  """The flags."""
  parser = common.parser(__doc__.splitlines()[0], 'sampling')
  add = parser.add_argument
  several = lambda text: text.split(',')
  add('--parts', default=PARTS, type=several, help=f'some of {PARTS}')
  add('--size', default='S/8', help='of the network')
  add('--variant', default='plain', choices=steps.VARIANTS)
  add('--resolution', type=int, default=256, help='of the pixels')
  add('--dtype', default='float32')
  add('--attention', default='auto')
  add('--unroll', type=int, default=0, help='see model.unroll')
  add('--kind', default='euler_maruyama', choices=('euler_maruyama', 'euler'))
  add('--steps', type=int, default=20)
  add('--batches', type=lambda text: [int(n) for n in text.split(',')], default=[1, 4])
  add('--guidance_high', type=float, default=0.7, help='end of the interval of time')
  add('--decode', action='store_true', help='make pictures in the part speed')
  add('--rounds', type=int, default=9)
  add('--slices', type=int, default=4, help='turns of each in one round')
  add('--threads', type=int, default=1, help='cores; 0 is all of them')
  return parser.parse_args()


def main() -> None:
  """Measures the parts."""
  args = parse()
  threads = timing.use_threads(args.threads)
  cli.keep_memory()  # As every mode does.
  steps.one_device()
  config = trajectory.SamplerConfig(kind=args.kind, steps=args.steps)
  sampler = Sampler(args)
  run = {'loop': measure_loop, 'guidance': measure_guidance, 'speed': measure_speed}
  measured = {name: run[name](sampler, config, args) for name in common.chosen(args.parts, PARTS)}
  steps.no_input_libraries()
  common.write(args.json, {'arguments': common.arguments(args), 'threads': threads, **measured})


if __name__ == '__main__':
  main()
