"""Accelerators by name, which programs can be compiled for although they are not here.

'h200' is one GPU and 'h200:8' is a node of eight; 'v5e:2x2' is libtpu's name for a slice of TPUs,
and 'v5e:2x2:2' are two such slices.
XLA compiles for a GPU from a description of it, and libtpu for any slice that it knows. Neither
needs the device or its driver, only the package that holds the compiler.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp

from diversedit_jax import trees, types

GIB = 2**30
_KIB, _MIB = 2**10, 2**20


class Gpu(NamedTuple):
  """What XLA is told about a GPU.

  kind: name of the GPU.
  capability: CUDA compute capability.
  multiprocessors: number of multiprocessors.
  lanes: float32 units in each multiprocessor.
  threads: threads that run on a multiprocessor at once.
  shared: bytes of shared memory in a multiprocessor.
  block_shared: bytes of shared memory that a block may ask for.
  l2: bytes of the L2 cache.
  bandwidth: bytes per second between memory and chip.
  clock: GHz.
  memory: bytes that CUDA can allocate, which is less than the name says.
  """

  kind: str
  capability: tuple[int, int]
  multiprocessors: int
  lanes: int
  threads: int
  shared: int
  block_shared: int
  l2: int
  bandwidth: float
  clock: float
  memory: float


# From data sheets and the CUDA C++ Programming Guide (compute capabilities), like XLA's own
# descriptions (openxla/xla, xla/backends/gpu/target_config/specs). Memory is the least that PyTorch
# has printed when it ran out ('total capacity of 139.80 GiB'); XLA's H200 has 141.0.
GPUS: Mapping[str, Gpu] = {
  'a100-40': Gpu('NVIDIA A100-SXM4-40GB', (8, 0), 108, 64, 2048, 164 * _KIB, 163 * _KIB, 40 * _MIB,
                 1.555e12, 1.41, 39.4 * GIB),
  'a100-80': Gpu('NVIDIA A100-SXM4-80GB', (8, 0), 108, 64, 2048, 164 * _KIB, 163 * _KIB, 40 * _MIB,
                 2.039e12, 1.41, 79.1 * GIB),
  'h100': Gpu('NVIDIA H100 80GB HBM3', (9, 0), 132, 128, 2048, 228 * _KIB, 227 * _KIB, 50 * _MIB,
              3.352e12, 1.98, 79.1 * GIB),
  'h200': Gpu('NVIDIA H200', (9, 0), 132, 128, 2048, 228 * _KIB, 227 * _KIB, 50 * _MIB,
              4.8e12, 1.98, 139.7 * GIB),
  'rtx4090': Gpu('NVIDIA GeForce RTX 4090', (8, 9), 128, 128, 1536, 100 * _KIB, 99 * _KIB,
                 72 * _MIB, 1.008e12, 2.52, 23.6 * GIB),
}  # fmt: skip

TPUS = ('v2', 'v3', 'v4', 'v5e', 'v5p', 'v6e', 'tpu7x')
"""Generations as libtpu calls them."""

_GPUS_OF_A_NODE = 8
_GPU_SHARE = 0.9  # XLA_PYTHON_CLIENT_MEM_FRACTION of launch/gpu_node.sh.
_GPU_OPTIONS = {
  # Nothing can be tuned without the device, and Triton's matrix products live by tuning.
  'xla_gpu_autotune_level': 0,
  'xla_gpu_enable_triton_gemm': False,
  'xla_gpu_enable_latency_hiding_scheduler': True,  # As in launch/gpu_node.sh.
}
_NO_DEVICE_HAS = 2**40  # Bytes.
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
  """Devices to compile for.

  name: the name that was asked for.
  platform: 'gpu', 'tpu' or 'cpu'.
  devices: devices of one kind, for a mesh.
  memory: bytes of each device.
  share: part of the memory that a program may use.
  options: compiler options.
  """

  name: str
  platform: str
  devices: tuple[jax.Device, ...]
  memory: float
  share: float = 1.0
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def kind(self) -> str:
    """The name that the devices give themselves."""
    return self.devices[0].device_kind


def parse(name: str) -> tuple[str, str]:
  """Returns the kind of device and what follows the colon, or ''; see `find`.

  Raises:
    UserError: for a kind that is unknown (the nearest is named, or all are), a GPU with no number
      after the colon, or a TPU without a topology.
  """
  kind, _, rest = name.partition(':')
  trees.check_known('plan.compile_for device', kind, (*GPUS, *TPUS))
  if kind in GPUS and not re.fullmatch(r'(:[1-9]\d*)?', name[len(kind) :]):
    raise types.UserError(f"{name!r} does not give a number of GPUs; write '{kind}' or '{kind}:8'")
  if kind in TPUS and not re.fullmatch(r'\d+(x\d+)+(:[1-9]\d*)?', rest):
    raise types.UserError(
      f"{name!r} does not name a slice of TPUs; add its topology, as in 'v5e:2x2' or 'v5p:2x2x1', "
      "and behind that the number of slices, if there are several: 'v6e:4x4:2'"
    )
  return kind, rest


def platform(name: str) -> str:
  """Returns 'gpu' or 'tpu', and '' for the name ''; raises as `parse` does."""
  return name and ('gpu' if parse(name)[0] in GPUS else 'tpu')


def gpus(name: str) -> int | None:
  """Returns the number of GPUs, None for TPUs, which libtpu counts; raises as `parse` does."""
  kind, rest = parse(name)
  return int(rest or 1) if kind in GPUS else None


def find(name: str) -> Target:
  """Returns the target of a name.

  Raises:
    UserError: as `parse` does; also for more GPUs than a node has that do not fill whole nodes, for
      a slice that libtpu does not know, and if the package with the compiler is missing.
  """
  count = gpus(name)
  return _tpus(name) if count is None else _gpus(name, count)


def _gpus(name, count):
  # jax-cuda12-plugin and jax-cuda13-plugin are both found as 'cuda', through `jax_plugins`.
  kind, (nodes, rest) = parse(name)[0], divmod(count, _GPUS_OF_A_NODE)
  if nodes and rest:
    raise types.UserError(
      f'{name!r} does not fill nodes of {_GPUS_OF_A_NODE} GPUs; write '
      f"'{kind}:{nodes * _GPUS_OF_A_NODE}' or '{kind}:{(nodes + 1) * _GPUS_OF_A_NODE}'"
    )
  gpu = GPUS[kind]
  layout = f'1x{nodes}x{_GPUS_OF_A_NODE}' if nodes else f'1x1x{count}'
  try:
    found = topologies.get_topology_desc(
      layout, 'cuda', target_config=_description(gpu), topology=layout
    )
  except NotImplementedError as error:  # So JAX says that it has no compiler for this platform.
    raise types.UserError(
      f'compiling for {name!r} needs no GPU, but the CUDA compiler: pip install '
      f'"jax[cuda13]=={jax.__version__}", as \'.[cuda]\' does, or "jax[cuda12]=={jax.__version__}"'
    ) from error
  return Target(
    name=name,
    platform='gpu',
    devices=tuple(found.devices),
    memory=gpu.memory,
    share=_GPU_SHARE,
    options=_GPU_OPTIONS,
  )


def _description(gpu):
  """The text of a GpuTargetConfigProto, which is what XLA reads."""
  major, minor = gpu.capability
  features = 'ACCELERATED_FEATURES' if major >= 9 else 'NONE'
  facts = {
    'threads_per_block_limit': 1024,
    'threads_per_warp': 32,
    'shared_memory_per_block': 48 * _KIB,
    'shared_memory_per_core': gpu.shared,
    'shared_memory_per_block_optin': gpu.block_shared,
    'threads_per_core_limit': gpu.threads,
    'core_count': gpu.multiprocessors,
    'fpus_per_core': gpu.lanes,
    'block_dim_limit_x': 2**31 - 1,
    'block_dim_limit_y': 2**16 - 1,
    'block_dim_limit_z': 2**16 - 1,
    'memory_bandwidth': int(gpu.bandwidth),
    'l2_cache_size': gpu.l2,
    'clock_rate_ghz': gpu.clock,
    'device_memory_size': int(gpu.memory),
    'registers_per_core_limit': 2**16,
    'registers_per_block_limit': 2**16,
    'cuda_compute_capability': f'{{ major: {major} minor: {minor} feature_extension: {features} }}',
  }
  lines = '\n'.join(f'  {key}: {value}' for key, value in facts.items())
  return (
    f'gpu_device_info {{\n{lines}\n}}\nplatform_name: "CUDA"\n'
    'dnn_version_info { major: 9 minor: 10 patch: 0 }\n'
    f'device_description_str: "{gpu.kind}"\n'
  )


def _tpus(name):
  kind, rest = parse(name)
  topology, _, number = rest.partition(':')
  try:
    found = topologies.get_topology_desc(f'{kind}:{topology}', 'tpu', num_slices=int(number or 1))
  except RuntimeError as error:  # A JaxRuntimeError is one.
    if 'not installed' in str(error):
      raise types.UserError(
        f'compiling for {name!r} needs no TPU, but its compiler: pip install libtpu'
      ) from error
    if 'lockfile' in str(error):
      raise types.UserError(
        f'compiling for {name!r}: another process uses libtpu; wait for it, or set '
        'ALLOW_MULTIPLE_LIBTPU_LOAD=1 where there is no TPU to share'
      ) from error
    raise types.UserError(f'libtpu refuses {name!r}: {str(error).splitlines()[0]}') from error
  devices = tuple(found.devices)
  return Target(name=name, platform='tpu', devices=devices, memory=_memory(devices[0]))


def _memory(device):
  """Bytes of a TPU: its compiler tells them when it refuses a program that needs more."""
  place = jax.sharding.SingleDeviceSharding(device)
  huge = jax.ShapeDtypeStruct((_NO_DEVICE_HAS,), jnp.int8, sharding=place)
  try:
    with uncached():
      jax.jit(jnp.negative).lower(huge).compile()
  except jax.errors.JaxRuntimeError as error:
    if found := out_of_memory(str(error)):
      return found[1]
    raise
  raise RuntimeError(f'{device.device_kind} took a program of {_NO_DEVICE_HAS} bytes')


@contextlib.contextmanager
def uncached() -> Iterator[None]:
  """Turns the cache of programs off: one for a device that is not here would never be read."""
  name, before = 'jax_enable_compilation_cache', jax.config.jax_enable_compilation_cache
  jax.config.update(name, False)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    jax.config.update(name, before)
    compilation_cache.reset_cache()


def out_of_memory(message: str) -> tuple[float, float] | None:
  """Returns the bytes that a program needs on a TPU and those it has, from libtpu's refusal.

  Returns None if the message says something else.
  """
  number = r'\(([\d.]+)([KMGT]?)\)'
  found = re.search(rf'required [^(]*{number} exceeds available HBM {number}', message)
  if found is None:
    return None
  needed, unit, there, its_unit = found.groups()
  return float(needed) * _UNITS[unit], float(there) * _UNITS[its_unit]
