"""Published autoencoders, known by the sizes of their arrays, and the scales that no array shows.

A diffusion model sees x = (z - shift) * scale (`data.latents`). The scale of a file is, in this
order: what is asked for, statistics beside the file, `config.json` beside it, and that published
for an autoencoder of its sizes. Where several have the same sizes, the name of the file or of its
folder tells, and else nothing does: then the scale is asked for. Statistics are

  (1)  LightningDiT   scale = 1 / std,           shift = mean             latents_stats.pt
  (2)  REPA-E         scale = latents_scale,     shift = latents_bias     NAME-latents-stats.pt

with one number for each channel. Constants are those of the published `config.json` of Stable
Diffusion, SDXL, SD3 and FLUX.1, and of MAR's program (arXiv 2406.11838); the sizes of VA-VAE (arXiv
2501.01423) and REPA-E's autoencoders (arXiv 2504.10483) are those of their programs.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import re
from typing import Any, NamedTuple

import numpy as np

from diversedit_jax import types
from diversedit_jax.data import latents

SETTINGS = 'config.json'
STATISTICS = ('{stem}-latents-stats.pt', 'latents_stats.pt')
"""Files beside one of weights; {stem} is its name without the suffix."""

Numbers = float | tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
  """A published autoencoder.

  name: what it is called.
  sizes: the fields of `vae.VAEConfig` that its arrays show; 'family' of one that has others.
  scale, shift: of its latents; None where what comes with it tells.
  by_statistics: whether that is statistics for each channel, and not its `config.json`.
  called: part of the names of its files, where another has the same sizes; '' is the usual one.
  """

  name: str
  sizes: Mapping[str, Any]
  scale: float | None = None
  shift: float = 0.0
  by_statistics: bool = False
  called: str = ''

  def has(self, sizes: Mapping[str, Any]) -> bool:
    """Whether an autoencoder of these sizes may be it."""
    return all(sizes.get(key) == value for key, value in self.sizes.items())


def _f8(channels: int, quant_conv: bool) -> dict[str, Any]:
  return {
    'latent_channels': channels,
    'block_channels': (128, 256, 512, 512),
    'layers_per_block': 2,
    'quant_conv': quant_conv,
    'encoder_attention': (),
    'decoder_attention': (),
  }


def _f16(channels: int, decoder_attention: tuple[int, ...]) -> dict[str, Any]:
  return {
    'latent_channels': channels,
    'block_channels': (128, 128, 256, 256, 512),
    'layers_per_block': 2,
    'quant_conv': True,
    'encoder_attention': (4,),
    'decoder_attention': decoder_attention,
  }


_E2E = r'(?<![a-z0-9])e2e(?![a-z0-9])'
KINDS = (
  Kind(name='E2E-VAE', sizes=_f8(4, True), by_statistics=True, called=_E2E),
  Kind(name='SDXL VAE', sizes=_f8(4, True), scale=0.13025, called=r'sd[-_]?xl'),
  Kind(name='SD-VAE', sizes=_f8(4, True), scale=0.18215),
  Kind(name='SD3 VAE', sizes=_f8(16, False), scale=1.5305, shift=0.0609, called=r'sd3|diffusion-3'),
  Kind(name='FLUX VAE', sizes=_f8(16, False), scale=0.3611, shift=0.1159, called=r'flux|\bae\.'),
  Kind(name='E2E-VAE', sizes=_f16(32, (4,)), by_statistics=True, called=_E2E),
  Kind(name='IN-VAE', sizes=_f16(32, (4,)), by_statistics=True, called=r'\bin-?vae'),
  Kind(name='VA-VAE', sizes=_f16(32, (4,)), by_statistics=True, called=r'va-?vae'),
  Kind(name='MAR KL-16', sizes=_f16(16, ()), scale=0.2325),
  Kind(name='DC-AE', sizes={'family': 'DC-AE'}),
)
# The scale of Stable Diffusion's first autoencoders, which their config.json does not give.
_SD_CHANNELS, _SD_SCALE = 4, 0.18215


def check_scaling(name: str, scale: Any, shift: Any, channels: int) -> None:
  """Refuses what is no scale and shift of so many latent channels; `name` begins the message.

  Raises:
    UserError: other numbers than one or one per channel, or a scale that is not positive.
  """
  for key, value in (('scale', scale), ('shift', shift)):
    numbers = value if isinstance(value, tuple) else (value,) * channels
    finite = all(isinstance(x, int | float) and math.isfinite(x) for x in numbers)
    if not finite or len(numbers) != channels:
      raise types.UserError(
        f'{name}: {key} must be one finite number or {channels}, one per latent channel; found '
        f'{value!r}'
      )
  latents.Scaling(scale=scale, shift=shift)  # Refuses scales that are not positive.


class Scales(NamedTuple):
  """The scale of a file: which kind it is, if it is known, and where the scale is from."""

  kind: str
  scale: Numbers
  shift: Numbers
  source: str


def scales(
  sizes: Mapping[str, Any],
  *,
  scale: float | Sequence[float] | None,
  shift: float | Sequence[float] | None,
  statistics: Mapping[str, np.ndarray] | None,
  settings: Mapping[str, Any],
  place: str,
) -> Scales:
  """The scale of an autoencoder's latents.

  Args:
    sizes: the fields of `vae.VAEConfig` that arrays show, or 'family' and 'latent_channels'.
    scale, shift: what is asked for.
    statistics: the arrays of a file of statistics beside the weights, by name.
    settings: the contents of `config.json`.
    place: names of the file and of its folder.

  Raises:
    UserError: nothing tells the scale, or what tells it is malformed.
  """
  source, asked, channels = 'as asked', (scale, shift), sizes['latent_channels']
  if None in asked:
    told = _told(sizes, statistics, settings, place)
    scale, shift = (x if x is not None else y for x, y in zip(asked, told[:2], strict=True))
    source = told[2]
  kind = _kind(sizes, scale, shift, place)
  if scale is None:
    source = 'published'
    scale = _SD_SCALE if kind is None and channels == _SD_CHANNELS else kind and kind.scale
  if scale is None:
    raise types.UserError(_unknown(sizes, channels))
  if shift is None:
    shift = 0.0 if kind is None else kind.shift
  return Scales('AutoencoderKL' if kind is None else kind.name, scale, shift, source)


def _kind(sizes, scale, shift, place) -> Kind | None:
  """The published autoencoder that has these sizes and a scale, as far as it is known."""
  fitting = [kind for kind in KINDS if kind.has(sizes)]
  if scale is not None:
    for kind in fitting:
      if kind.scale == scale and shift in (None, kind.shift):
        return kind
    fitting = [kind for kind in fitting if kind.scale is None]
  named = [kind for kind in fitting if kind.called and re.search(kind.called, place, re.IGNORECASE)]
  usual = [kind for kind in fitting if not kind.called]
  return next(iter(named + usual), None)


def _told(sizes, statistics, settings, place) -> tuple[Any, Any, str]:
  """Scale, shift and where they stand: the statistics or the settings; None for what they lack."""
  channels = sizes['latent_channels']
  if statistics is not None:
    return _of_statistics(statistics, channels)
  mean, std = settings.get('latents_mean'), settings.get('latents_std')
  if mean and std:
    kind = _kind(sizes, None, None, place)
    by_statistics = kind is not None and kind.by_statistics
    if settings.get('scaling_factor') != 1 and not by_statistics:
      raise types.UserError(
        f'{SETTINGS} has latents_mean and latents_std, which programs apply in different ways; '
        'give a scale and a shift instead (--vae_scale, --vae_shift)'
      )
    return _normalising(SETTINGS, mean, std, channels)
  return settings.get('scaling_factor'), settings.get('shift_factor'), SETTINGS


def _of_statistics(arrays, channels):
  if set(arrays) == {'mean', 'std'}:  # (1)
    return _normalising('latents_stats.pt', arrays['mean'], arrays['std'], channels)
  if set(arrays) == {'latents_scale', 'latents_bias'}:  # (2)
    name = 'latents-stats.pt'
    scale, shift = (_each(name, key, arrays[key], channels) for key in sorted(arrays)[::-1])
    return _positive(name, 'latents_scale', scale), shift, name
  raise types.UserError(
    f'statistics of latents are mean and std, or latents_scale and latents_bias; found '
    f'{", ".join(sorted(arrays)[:5]) or "nothing"}'
  )


def _normalising(name, mean, std, channels):
  std = _positive(name, 'std', _each(name, 'std', std, channels))
  return tuple(1 / x for x in std), _each(name, 'mean', mean, channels), name


def _each(name, key, values, channels) -> tuple[float, ...]:
  numbers = np.asarray(values, np.float64)
  if numbers.size != channels or not np.isfinite(numbers).all():
    raise types.UserError(
      f'{name}: {key} has {numbers.size} numbers, expected {channels} finite ones, one per latent '
      'channel'
    )
  return tuple(numbers.ravel().tolist())


def _positive(name, key, numbers):
  if min(numbers) <= 0:
    raise types.UserError(f'{name}: {key} must be positive, found {min(numbers)}')
  return numbers


def _unknown(sizes, channels):
  known = {
    kind.name: f' ({kind.scale}, {kind.shift})' if kind.scale else ''
    for kind in KINDS
    if kind.has(sizes) and (kind.scale or kind.by_statistics)
  }
  same = f'; published with these sizes: {", ".join(a + b for a, b in known.items())}'
  return (
    f'the scale of {channels} latent channels is not known: give it (--vae_scale, or vae.scale, '
    f'and the shift), or put the published {SETTINGS}, which has it as scaling_factor, or the '
    f'published statistics ({STATISTICS[1]}, or {STATISTICS[0].format(stem="NAME")}) into the '
    f'folder of the file{same if known else ""}'
  )
