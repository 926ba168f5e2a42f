"""The performance goals, and which number of which result decides each: the one table to change.

`report.py` turns it into README.md. A path walks through the JSON file; it ends at a number, or at
a spread of which the worst end counts. `CPU` and `GPU` say on what the number must have been taken:
a result from elsewhere is no result. Numbers of a GPU are of one, and bounds in images a second are
those of an H200: `device` is how the device of such a result ends. A number of bytes may also be a
compiler's account for that device where nothing ran: `compiled` says where, until there is a run.
`account` names the device of a number that is such an account.
"""

from typing import NamedTuple

CPU, GPU = 'cpu', 'gpu'


class Goal(NamedTuple):
  """number: of the goal. metric: what is measured. platform: 'cpu' or 'gpu'.

  sign, bound: '>=' or '<=', and what must be reached. file: in results. path: in that file.
  command: that makes the file; on a GPU `gpu.sh` runs it. device: end of the name that is wanted.
  compiled: path in `COMPILED` to the same number by a compiler's account, for `COMPILED_FOR`.
  account: what the number was compiled for, '' of what ran.
  """

  number: int
  metric: str
  platform: str
  sign: str
  bound: float
  file: str
  path: tuple[str, ...]
  command: str
  device: str = ''
  compiled: tuple[str, ...] = ()
  account: str = ''


_TORCH = '--torch_python=PYTHON_WITH_TORCH'
_STEP_CPU = f'train_step.py --peer=torch {_TORCH}'
_LIGHTNING_CPU = (
  f'train_step.py --block=lightning --peer=torch {_TORCH} '
  '--json=benchmarks/results/train_step_lightning.json'
)
_DDT_CPU = (
  f'train_step.py --block=ddt --head=2,768,12 --peer=torch {_TORCH} '
  '--json=benchmarks/results/train_step_ddt.json'
)
_LOSS = f'loss_overhead.py {_TORCH}'
# The time at a batch that runs in seconds. The memory at one whose activations are most of it, as
# they are at the batch of the GPU: below that, parameters, moments and average decide the ratio.
_REMAT = (
  'train_step.py --batch=8 --peak_batch=64 --remat=none,full '
  '--json=benchmarks/results/train_step_remat8.json'
)
COMPILED, COMPILE, COMPILED_FOR = 'ahead.json', 'ahead.py', 'h200'
"""The file of numbers that are compiled, not run, the command that makes it, and for what."""

_H200, _ONE, _EIGHT = 'H200 x 1', ' x 1', ' x 8'


def _gpu(number, metric, sign, bound, file, *path, device=_ONE, compiled=()):
  """A goal whose file a line of gpu.sh makes."""
  command = f'gpu.sh {file.replace("_", " ")}'
  file = f'gpu_{file}.json'
  return Goal(number, metric, GPU, sign, bound, file, path, command, device, compiled)


def _cpu(number, metric, sign, bound, file, command, *path):
  return Goal(number, metric, CPU, sign, bound, f'{file}.json', path, command)


def _compiled(number, metric, sign, bound, account, file, *path):
  """A goal of what a compiler for a device that was not there says."""
  metric = f'{metric} (compiled, not run)'
  command = f'{file}.py'
  return Goal(number, metric, CPU, sign, bound, f'{file}.json', path, command, account=account)


def _speed(number, what, bound, share, file, variant):
  """Two rows of a training speed: images a second, and the share of a matrix product."""
  return (
    _gpu(number, f'{what}: img/s', '>=', bound, file, 'rows', variant, 'images_per_second',
         device=_H200),
    _gpu(number, f'{what}: share of the measured matmul', '>=', share, file, 'rows', variant,
         'of_matmul'),
  )  # fmt: skip


def _loss_overhead(size, batch, file, bound):
  what = f'{size}/2 batch {batch}: step with the loss / without'
  return _gpu(7, what, '<=', bound, file, 'rows', 'skips+loss', 'over', 'skips', 'wall')


GOALS = (
  *_speed(1, 'XL/2 256 px batch 256, plain', 610, 0.55, 'train_xl256', 'plain'),
  *_speed(2, 'XL/2 256 px batch 256, skips and loss', 540, 0.52, 'train_xl256', 'skips+loss'),
  _gpu(3, 'XL/2 256 px batch 32, skips and loss: share of the measured matmul', '>=', 0.48,
       'train_xl32', 'rows', 'skips+loss', 'of_matmul'),
  *_speed(4, 'L/2 256 px batch 256, plain', 900, 0.55, 'train_l256', 'plain'),
  *_speed(4, 'B/2 256 px batch 256, plain', 2850, 0.50, 'train_b256', 'plain'),
  *_speed(4, 'S/2 256 px batch 256, plain', 7600, 0.35, 'train_s256', 'plain'),
  *_speed(5, 'XL/2 512 px batch 64, plain', 125, 0.50, 'train_xl512', 'plain'),
  _gpu(6, 'XL/2 batch 64: PyTorch compiled, bfloat16 / ours', '>=', 1.0, 'peer_compiled',
       'rows', 'plain torch compiled', 'over', 'plain', 'wall'),
  _gpu(6, 'XL/2 batch 64: PyTorch compiled and tuned, bfloat16 / ours', '>=', 1.0, 'peer_tuned',
       'rows', 'plain torch max-autotune-no-cudagraphs', 'over', 'plain', 'wall'),
  _gpu(6, 'XL/2 batch 64: PyTorch eager, float16 / ours', '>=', 1.5, 'peer_eager',
       'rows', 'plain torch', 'over', 'plain', 'wall'),
  _loss_overhead('XL', 256, 'train_xl256', 1.04), _loss_overhead('XL', 32, 'train_xl32', 1.04),
  _loss_overhead('L', 256, 'train_l256', 1.04), _loss_overhead('B', 256, 'train_b256', 1.05),
  _loss_overhead('S', 256, 'train_s256', 1.08),
  _cpu(7, 'S/2 batch 2 on a CPU: step with the loss / without', '<=', 1.08, 'loss_overhead', _LOSS,
       'step', 'on_over_off', 'cpu'),
  _cpu(8, 'loss of 24 blocks, fit of CPU seconds: pair term / linear term', '<=', 0.02,
       'loss_overhead', _LOSS, 'sweep', 'fit', 'alone, cpu', 'pairs_over_linear'),
  _cpu(8, 'loss of 24 blocks, fit of bytes moved: pair term / linear term', '<=', 0.02,
       'loss_overhead', _LOSS, 'sweep', 'fit', 'alone, bytes', 'pairs_over_linear'),
  _cpu(8, 'loss of 24 blocks / of 12', '<=', 2.2, 'loss_overhead', _LOSS,
       'sweep', 'alone_all_over_half', 'cpu'),
  _cpu(9, 'loss alone: eager PyTorch, each pair / running sum', '>=', 8, 'loss_overhead', _LOSS,
       'alone', 'torch, normalised in every pair', 'over_running_sum', 'cpu'),
  _cpu(9, 'loss alone: pairs compiled by XLA / running sum', '>=', 1.7, 'loss_overhead', _LOSS,
       'alone', 'XLA, pairs', 'over_running_sum', 'cpu'),
  _cpu(9, 'loss alone: pairs of unit vectors compiled by XLA / running sum', '>=', 1.7,
       'loss_overhead', _LOSS, 'alone', 'XLA, pairs of unit vectors', 'over_running_sum', 'cpu'),
  _cpu(9, 'loss alone: memory passes per block', '<=', 10, 'loss_overhead', _LOSS,
       'bytes', 'float32_per_block'),
  *(_compiled(9, f'loss alone: memory passes per block, {name}', '<=', 10, key, 'traffic', 'loss',
              key, 'float32')
    for name, key in (('H200', 'h200'), ('TPU v5p', 'v5p:2x2x1'))),
  _compiled(9, 'loss in the step of XL/2, batch 256, H200: memory passes per block', '<=', 10,
            'h200', 'traffic', 'step', 'loss_units_per_block', '256'),
  _gpu(10, 'XL/2 batch 256: step with long skips / without', '<=', 1.12, 'train_xl256',
       'rows', 'skips', 'over', 'plain', 'wall'),
  _gpu(11, 'XL/2, 250 evaluations, decoded, plain: img/s', '>=', 7.3, 'sampling_plain',
       'speed', '256', 'images_per_second', device=_H200),
  _gpu(11, 'XL/2, 250 evaluations, decoded, skips: img/s', '>=', 6.8, 'sampling_skips',
       'speed', '256', 'images_per_second', device=_H200),
  _cpu(12, 'guidance interval: time ratio / ratio of evaluations', '<=', 1.05, 'sampling',
       'sampling.py', 'guidance', 'interval', 'time_ratio_over_evaluations_ratio', 'cpu'),
  _gpu(12, 'guidance interval, XL/2: time ratio / ratio of evaluations', '<=', 1.05,
       'sampling_guidance', 'guidance', 'interval', 'time_ratio_over_evaluations_ratio', 'wall'),
  *(_cpu(13, f'Python loop over steps / one program, batch {n}', '>=', bound, 'sampling',
         'sampling.py', 'loop', str(n), 'loop_over_program', 'cpu')
    for n, bound in ((1, 1.0), (4, 1.0))),
  _gpu(13, 'Python loop over steps / one program, B/2, batch 8', '>=', 1.0, 'sampling_loop',
       'loop', '8', 'loop_over_program', 'wall'),
  *(_gpu(14, f'compiling the XL/2 step, {how}, {cache} cache: s', '<=', bound, 'startup_xl',
         'compiling', how, f'{cache}_seconds')
    for how, cache, bound in (
      ('loop', 'cold', 90), ('loop', 'warm', 12),
      ('unrolled', 'cold', 240), ('unrolled', 'warm', 20))),
  *(_gpu(15, f'XL/2 from process start to the first step, {cache} cache: s', '<=', bound,
         'startup_first', 'first_step', 'XL/2', f'{cache}_seconds')
    for cache, bound in (('cold', 120), ('warm', 30))),
  *(_cpu(15, f'S/2 from process start to the first step, {cache} cache: s', '<=', bound,
         'startup', 'startup.py', 'first_step', 'S/2', f'{cache}_seconds')
    for cache, bound in (('cold', 60), ('warm', 15))),
  *(_cpu(16, f'compiling {depth} blocks: loop / unrolled', '<=', bound, 'startup', 'startup.py',
         'unrolling', depth, 'loop_over_unrolled', 'cpu')
    for depth, bound in (('12', 0.4), ('28', 0.2))),
  _cpu(17, 'records a second on one core, store', '>=', 50_000, 'data', 'data.py',
       'records_per_second', 'store', 'cpu'),
  _cpu(17, 'records a second on one core, memory map', '>=', 200_000, 'data', 'data.py',
       'records_per_second', 'memmap', 'cpu'),
  _cpu(18, 'steps a second of S/2 fed from the store / with a fixed batch', '>=', 0.98, 'data',
       'data.py', 'training', 'store', 'over_fixed'),
  *(_gpu(18, f'steps a second of {size}/2 fed from the store / with a fixed batch', '>=', 0.98,
         f'data_{size.lower()}', 'training', 'store', 'over_fixed')
    for size in ('S', 'XL')),
  _cpu(19, 'a call of the step until it returns (the leaves of XL/2): ms', '<=', 1.0,
       'train_step', _STEP_CPU, 'rows', 'plain', 'dispatch_ms'),
  _gpu(20, 'XL/2: a save stops training for: s', '<=', 1.5, 'checkpoint_xl', 'blocking_seconds'),
  _cpu(20, 'B/2: a save stops training / takes in all', '<=', 0.3, 'checkpoint', 'checkpoint.py',
       'blocking_over_waiting'),
  _cpu(21, 'S/2 float32, whole step: ours / PyTorch, CPU seconds', '<=', 1.0, 'train_step',
       _STEP_CPU, 'rows', 'plain', 'over', 'plain torch', 'cpu'),
  _cpu(21, 'S/2 of lightning blocks, float32, whole step: ours / PyTorch, CPU seconds', '<=', 1.1,
       'train_step_lightning', _LIGHTNING_CPU, 'rows', 'plain', 'over', 'plain torch', 'cpu'),
  _cpu(21, 'S/2 of DDT with a head of 2 x 768, float32, whole step: ours / PyTorch, CPU seconds',
       '<=', 1.1, 'train_step_ddt', _DDT_CPU, 'rows', 'plain', 'over', 'plain torch', 'cpu'),
  _cpu(22, '8 devices: loss and gradient, relative difference from one', '<=', 1e-5, 'scaling',
       'scaling.py', 'goal_22', 'difference'),
  _cpu(22, '8 devices: |bytes reduced / bytes of parameters - 1|', '<=', 0.02, 'scaling',
       'scaling.py', 'goal_22', 'bytes_off'),
  _cpu(22, '8 devices, FSDP: share of the state on one', '<=', 0.15, 'scaling', 'scaling.py',
       'goal_22', 'state_share'),
  *(_gpu(23, f'8 GPUs: img/s per GPU over those of one, batch {n}', '>=', bound, 'devices',
         'goal_23', str(n), device=_EIGHT)
    for n, bound in ((32, 0.92), (128, 0.97))),
  _cpu(24, 'S/2 batch 8: full rematerialisation / none, time', '<=', 1.33, 'train_step_remat8',
       _REMAT, 'rows', 'plain remat=full', 'over', 'plain remat=none', 'cpu'),
  _cpu(24, 'S/2 batch 64: full rematerialisation / none, peak memory', '<=', 0.35,
       'train_step_remat8', _REMAT, 'rows', 'plain remat=full', 'over', 'plain remat=none', 'peak'),
  _gpu(24, 'XL/2 batch 128: full rematerialisation / none, time', '<=', 1.33, 'train_remat',
       'rows', 'plain remat=full', 'over', 'plain remat=none', 'wall'),
  _gpu(24, 'XL/2 batch 128: full rematerialisation / none, peak memory', '<=', 0.35, 'train_remat',
       'rows', 'plain remat=full', 'over', 'plain remat=none', 'peak',
       compiled=('goal_24', 'full')),
  _gpu(25, 'Inception features, batch 256: img/s', '>=', 2000, 'evaluation',
       'features', '256', 'whole', device=_H200),
)  # fmt: skip
