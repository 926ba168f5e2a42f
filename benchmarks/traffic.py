"""What the step moves through an accelerator's memory, from its compiler; nothing runs.

  python benchmarks/traffic.py
  python benchmarks/traffic.py --parts=loss --targets=h200,v5p:2x2x1
  python benchmarks/traffic.py --parts=blocks --json=benchmarks/results/traffic_blocks.json

1. step: XL/2, one GPU: bytes and launches of the compiled training step by kind of kernel, as
   `kernel_traffic.py` reads them, for blocks in a loop and unrolled, with long skips and with the
   loss. `unit` is one block's features in bfloat16; `rest` is all but products and attention, which
   are bound by arithmetic: what the memory of the device bounds.
2. loss: bytes of value and gradient of the running sum alone, in units of one block's features.
3. blocks: what one more block moves and keeps, for SiT's block, LightningDiT's and its parts: the
   difference of two depths, unrolled, in the same units.

Needs the compilers of `ahead.py`, and no accelerator.
"""

import collections
import math

import ahead
import common
import jax
import jax.numpy as jnp
import kernel_traffic
import loss_overhead
import steps

from diversedit_jax import sharding
from diversedit_jax.models import attention
from diversedit_jax.planning import devices

PARTS = ('step', 'loss', 'blocks')
_CASES = (  # Variant, blocks, batch.
  ('plain', 'loop', 256),
  ('plain', 'unrolled', 256),
  ('skips', 'unrolled', 256),
  ('skips+loss', 'unrolled', 256),
  ('plain', 'unrolled', 32),
  ('skips', 'unrolled', 32),
  ('skips+loss', 'unrolled', 32),
)
_BLOCKS = {
  'sit': {'block': 'sit'},
  'lightning': {'block': 'lightning'},
  'lightning without rope': {'block': 'lightning', 'rope': False},
  'lightning with qk_norm': {'block': 'lightning', 'qk_norm': True},
}
_DEPTHS, _BATCH = (2, 6), 128


def by_kind(kernels: list[kernel_traffic.Kernel]) -> dict[str, dict[str, float]]:
  """Bytes and launches by kind of kernel."""
  moved, launches = collections.Counter(), collections.Counter()
  for kernel in kernels:
    moved[kernel.kind] += kernel.bytes * kernel.times
    launches[kernel.kind] += kernel.times
  return {kind: {'bytes': moved[kind], 'launches': launches[kind]} for kind in moved}


def measure_step(args) -> dict:
  """'variant, blocks, batch' -> bytes and launches by kind, and those of the rest in units."""
  target, rows = devices.find(args.targets[0]), {}
  mesh = sharding.make_mesh(devices=target.devices[:1])
  for row in _CASES:
    variant, blocks, batch = row
    case = steps.Case(
      size=args.size, variant=variant, batch=batch, dtype='bfloat16', unroll=steps.UNROLL[blocks]
    )
    architecture, execution = case.architecture(), case.execution(platform=target.platform)
    objective = steps.objective(variant)
    trainable = steps.trainable(architecture, execution, objective, mesh)
    lowered = steps.lower(trainable, architecture.input_size, objective, batch)
    text = lowered.compile(compiler_options=dict(target.options)).as_text()
    kinds = by_kind(kernel_traffic.kernels(text))
    unit = 2 * batch * architecture.tokens * architecture.width
    rest = sum(kinds[k]['bytes'] for k in kinds if k not in ('product', 'attention'))
    rows[row] = {
      'kinds': kinds,
      'attention': attention.implementation(architecture, execution),
      'unit': unit,
      'rest_bytes': rest,
      'rest_units_per_block': rest / unit / architecture.depth,
    }
    print(f'{row}: {rest / 1e9:.1f} GB beside products', flush=True)
  return summary(rows)


def summary(rows: dict[tuple[str, str, int], dict]) -> dict:
  """The rows of `measure_step`, and the ratios that are read off them."""
  units = lambda *row: rows[row]['rest_units_per_block']
  loss = lambda n: units('skips+loss', 'unrolled', n) - units('skips', 'unrolled', n)
  plain = lambda blocks: rows['plain', blocks, 256]['rest_bytes']
  return {
    'rows': {', '.join(map(str, row)): found for row, found in rows.items()},
    'unrolled_over_loop': plain('unrolled') / plain('loop'),
    'loss_units_per_block': {str(n): loss(n) for n in (256, 32)},
  }


def measure_blocks(args) -> dict:
  """Block -> units that one more of it moves beside products, moves in all, and keeps; launches."""
  target, rows = devices.find(args.targets[0]), {}
  mesh = sharding.make_mesh(devices=target.devices[:1])
  few, many = _DEPTHS
  for name, parts in _BLOCKS.items():
    case = steps.Case(size=args.size, variant='plain', batch=_BATCH, dtype='bfloat16')
    execution = case.execution(platform=target.platform)
    found = {}
    for depth in _DEPTHS:
      made = case.architecture(depth=depth, norm=None, mlp=None, **{'rope': None, **parts})
      objective = steps.objective('plain')
      trainable = steps.trainable(made, execution, objective, mesh)
      lowered = steps.lower(trainable, made.input_size, objective, _BATCH)
      program = lowered.compile(compiler_options=dict(target.options))
      kernels = kernel_traffic.kernels(program.as_text())
      rest = [k for k in kernels if k.kind not in ('product', 'attention')]
      moved = lambda kernels: sum(k.bytes * k.times for k in kernels)
      kept = program.memory_analysis().temp_size_in_bytes
      found[depth] = moved(rest), moved(kernels), kept, sum(k.times for k in kernels)
    unit = 2 * _BATCH * made.tokens * made.width
    *sizes, launches = (
      (b - a) / (many - few) for a, b in zip(found[few], found[many], strict=True)
    )
    units = dict(zip(('rest', 'all', 'kept'), (size / unit for size in sizes), strict=True))
    rows[name] = units | {'launches': launches}
    print(name, rows[name], flush=True)
  return rows


def measure_loss(args) -> dict:
  """Target -> dtype -> units of one block's features that the running sum moves for each block."""
  shape, depth = (32, 256, 1152), 28
  rows = {}
  for name in args.targets:
    target = devices.find(name)
    place = jax.sharding.SingleDeviceSharding(target.devices[0])
    rows[name] = {}
    for dtype in ('float32', 'bfloat16'):
      block = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=place)
      made = jax.jit(jax.value_and_grad(loss_overhead.of_blocks, argnums=tuple(range(depth))))
      program = made.lower(*[block] * depth).compile(compiler_options=dict(target.options))
      moved = sum(k.bytes * k.times for k in kernel_traffic.kernels(program.as_text()))
      rows[name][dtype] = moved / (math.prod(shape) * block.dtype.itemsize) / depth
    print(name, rows[name], flush=True)
  return rows


def main() -> None:
  """Compiles the parts that are asked for."""
  parser = common.parser(__doc__.splitlines()[0], 'traffic')
  words = lambda text: text.split(',')
  parser.add_argument('--size', default='XL/2')
  parser.add_argument(
    '--targets', default=['h200', 'v5p:2x2x1'], type=words, help='of the step, the first alone'
  )
  parser.add_argument(
    '--parts', default=PARTS[:2], type=lambda text: common.chosen(words(text), PARTS)
  )
  args = parser.parse_args()
  ahead.only_compile()
  measure = {'step': measure_step, 'loss': measure_loss, 'blocks': measure_blocks}
  common.write(
    args.json,
    {
      'arguments': common.arguments(args),
      'nothing_ran': ahead.NOTHING_RAN,
      'compilers': ahead.compilers(),
      **{part: measure[part](args) for part in args.parts},
    },
  )


if __name__ == '__main__':
  main()
