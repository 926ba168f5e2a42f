"""What fits where, from the compilers of accelerators that are not here.

  python benchmarks/ahead.py
  python benchmarks/ahead.py --parts=tpu --json=benchmarks/results/ahead_tpu.json

Nothing runs: each row is a real training step, compiled for the device and never started, and its
memory is the compiler's account. Needs libtpu, and jax[cuda13] or jax[cuda12], which is the one
that was tried; neither GPU nor TPU. On TPUs the batch is halved from 32 on a chip until it fits,
and blocks are recomputed only where 32 did not fit without.
"""

from collections.abc import Iterator
import dataclasses
import importlib.metadata
import os

import common
import jax
import steps

from diversedit_jax import sharding
from diversedit_jax.models import attention
from diversedit_jax.planning import compile_report, devices

NOTHING_RAN = 'compiled only, on the CPU named above'
PARTS = ('gpu', 'tpu')
REMAT = ('none', 'names', 'dots', 'full')
_GPUS = (  # Target, size, variant, batch, resolution, remat.
  ('h200', 'XL/2', 'plain', 256, 256, 'none'),
  ('h200', 'XL/2', 'skips+loss', 256, 256, 'none'),
  ('h200', 'XL/2', 'plain', 64, 512, 'none'),
  *(('h200', 'XL/2', 'plain', 128, 256, remat) for remat in REMAT),
  *(
    ('h100', 'XL/2', variant, batch, 256, 'none')
    for variant in ('plain', 'skips+loss')
    for batch in (64, 128)
  ),
  ('a100-40', 'XL/2', 'plain', 64, 256, 'none'),
  ('rtx4090', 'S/2', 'plain', 256, 256, 'none'),
  ('rtx4090', 'B/2', 'plain', 64, 256, 'none'),
  ('rtx4090', 'B/2', 'skips+loss', 64, 256, 'none'),
  *(('rtx4090', 'XL/2', 'plain', 32, 256, remat) for remat in ('none', 'full')),
)
_TPUS = ('v5e:2x2', 'v5p:2x2x1', 'v6e:2x2')
_LAYOUTS = {'data': 1, 'fsdp': -1}  # Size of 'fsdp'; 'data' takes what is left.
_BATCHES = (32, 16, 8)
_COMPILERS = (  # The compilers of CUDA 12 and 13; one is enough.
  'libtpu',
  'jax-cuda12-plugin',
  'nvidia-cuda-nvcc-cu12',
  'nvidia-cudnn-cu12',
  'jax-cuda13-plugin',
  'nvidia-cuda-nvcc',
  'nvidia-cudnn-cu13',
)


def row(target: devices.Target, case: steps.Case, layout: str) -> dict:
  """The compiler's account of a case, whose batch is that of one device."""
  fsdp = _LAYOUTS[layout]
  mesh = sharding.make_mesh(1 if fsdp == -1 else -1, fsdp, 1, devices=target.devices)
  architecture, execution = case.architecture(), case.execution(platform=target.platform)
  objective = steps.objective(case.variant)
  batch = case.batch * len(target.devices)
  trainable = steps.trainable(architecture, execution, objective, mesh)
  lowered = steps.lower(trainable, architecture.input_size, objective, batch)
  report = compile_report.compile_for(target, lowered)
  facts = dataclasses.asdict(report) | {'needed': report.needed, 'usable': report.usable}
  parts = ('arguments', 'temporaries', 'results', 'needed', 'usable')
  gib = lambda count: None if count is None else count / devices.GIB
  made = {
    'size': case.size,
    'variant': case.variant,
    'batch_per_device': case.batch,
    'resolution': case.resolution,
    'dtype': case.dtype,
    'remat': case.remat,
    'attention': attention.implementation(architecture, execution),
    'target': target.name,
    'kind': report.kind,
    'layout': layout,
    'fits': report.fits,
    **{f'{name}_gib': gib(facts[name]) for name in parts},
    'compile_seconds': report.seconds,
    'collectives': report.collectives,
  }
  print(made, flush=True)
  return made


def gpus(dtype: str) -> Iterator[dict]:
  """Rows of one GPU each."""
  for name, size, variant, batch, resolution, remat in _GPUS:
    case = steps.Case(
      size=size, variant=variant, batch=batch, resolution=resolution, dtype=dtype, remat=remat
    )
    yield row(devices.find(name), case, 'data')


def tpus(dtype: str) -> Iterator[dict]:
  """Rows of XL/2 on slices."""
  for name in _TPUS:
    target = devices.find(name)
    for layout in _LAYOUTS:
      for remat in ('none', 'full'):
        for batch in _BATCHES:
          case = steps.Case(size='XL/2', variant='plain', batch=batch, dtype=dtype, remat=remat)
          made = row(target, case, layout)
          yield made
          if made['fits']:
            break
        if made['fits'] and batch == _BATCHES[0]:
          break


def goal_24(rows: list[dict]) -> dict[str, float]:
  """Memory of XL/2 at batch 128 on an H200 for each remat, over that without."""
  found = {
    made['remat']: made['needed_gib']
    for made in rows
    if (made['target'], made['size'], made['batch_per_device']) == ('h200', 'XL/2', 128)
  }
  return {remat: gib / found['none'] for remat, gib in found.items()}


def only_compile() -> None:
  """Leaves accelerators alone, those that are here and those that are not."""
  jax.config.update('jax_platforms', 'cpu')
  # A lock that keeps processes from sharing a TPU; there is none.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')


def compilers() -> dict[str, str | None]:
  """Versions of the packages that compiled, None of those that are not here."""
  made = {}
  for name in _COMPILERS:
    try:
      made[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      made[name] = None
  return made


def main() -> None:
  """Compiles all rows."""
  parser = common.parser(__doc__.splitlines()[0], 'ahead')
  parser.add_argument('--dtype', default='bfloat16')
  parser.add_argument(
    '--parts',
    default=['gpu'],
    type=lambda text: common.chosen(text.split(','), PARTS),
    help=f'some of {", ".join(PARTS)}',
  )
  args = parser.parse_args()
  only_compile()
  rows = [made for part in args.parts for made in {'gpu': gpus, 'tpu': tpus}[part](args.dtype)]
  common.write(
    args.json,
    {
      'arguments': common.arguments(args),
      'nothing_ran': NOTHING_RAN,
      'compilers': compilers(),
      'rows': rows,
    }
    | ({'goal_24': goal_24(rows)} if 'gpu' in args.parts else {}),
  )


if __name__ == '__main__':
  main()
