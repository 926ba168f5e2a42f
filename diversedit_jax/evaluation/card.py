"""The protocol card: everything that must be known to read or repeat a score, as JSON."""

from collections.abc import Mapping, Sequence
import hashlib
from importlib import metadata
import json
import math
import os
import pathlib
from typing import Any

import flax
import jax
import numpy as np

import diversedit_jax
from diversedit_jax import trees
from diversedit_jax.data import files, images
from diversedit_jax.types import UserError

_NAMES = 100
GUIDANCE = 'v_null + scale (v_class - v_null)'
"""What the scale of guidance means: 1 is none, 0 samples without a class."""

AUTOGUIDANCE = 'v_guide + scale (v - v_guide)'
"""The same where another network guides: 1 is none, 0 samples of that network."""


def protocol_card(
  *,
  seed: int,
  sampler: str,
  steps: int,
  nfe: int,
  guidance_scale: float,
  guidance_interval: tuple[float, float],
  guidance_channels: int | None,
  label_policy: str,
  quantiser: str | None,
  weights: str,
  step: int | None,
  checkpoint: str | os.PathLike[str],
  num_samples: int,
  seconds: float,
  **extra: Any,
) -> dict[str, Any]:
  """Facts of an evaluation, with the versions and devices of this process added.

  Args:
    seed: seed of the samples.
    sampler: name of the sampler, such as 'heun'.
    steps: number of its steps.
    nfe: network evaluations per sample.
    guidance_scale: scale of `GUIDANCE`.
    guidance_interval: (low, high) times within which guidance acts.
    guidance_channels: guided latent channels from the first; None means all.
    label_policy: how labels were chosen, such as 'balanced' or 'uniform'.
    quantiser: quantiser of `data.images.to_uint8`; None if the samples were not quantised.
    weights: 'ema', 'params' or 'ema@AVERAGE' of a checkpoint; 'file' for weights whose file does
      not say which.
    step: training steps of the checkpoint; None for weights from elsewhere.
    checkpoint: its path inside the run directory, or its place on the hub. An absolute path is cut
      to its last two parts, so that no card names a machine's folders.
    num_samples: number of samples.
    seconds: time that sampling took.
    **extra: further facts under their names, such as `batch_size`.

  Raises:
    UserError: unknown weights or quantiser, an inverted interval, or negative numbers.
  """
  check_weights(weights)
  if quantiser is not None:
    trees.check_known('quantiser', quantiser, images.QUANTISERS)
  low, high = guidance_interval
  if not low <= high:
    raise UserError(f'guidance_interval must be (low, high) with low <= high; got {low}, {high}')
  numbers = {
    'steps': steps,
    'nfe': nfe,
    'step': step or 0,
    'num_samples': num_samples,
    'seconds': seconds,
  }
  negative = {name: value for name, value in numbers.items() if value < 0}
  if negative:
    raise UserError(f'a protocol card needs numbers >= 0; got {negative}')
  path = pathlib.PurePath(checkpoint)
  if path.is_absolute():
    checkpoint = '/'.join(path.parts[-2:])
  return {
    'step': step,
    'weights': weights,
    'checkpoint': os.fspath(checkpoint),
    'seed': seed,
    'num_samples': num_samples,
    'label_policy': label_policy,
    'sampler': sampler,
    'steps': steps,
    'nfe': nfe,
    'guidance': {
      'scale': guidance_scale,
      'interval': [low, high],
      'channels': 'all' if guidance_channels is None else guidance_channels,
      'formula': GUIDANCE,
    },
    'quantiser': quantiser,
    'seconds': seconds,
    'device': devices(),
    'versions': versions(),
    **extra,
  }


def guidance(protocol: Mapping[str, Any]) -> str:
  """Guidance by a card in words, as '1.5' or '1.5 by RUN, step 400 (ema)'; '–' if it lacks it."""
  facts = protocol.get('guidance') or {}
  if 'scale' not in facts:
    return '–'
  by = facts.get('by')
  return f'{facts["scale"]:g}' + (f' by {by["name"]} ({by["weights"]})' if by else '')


def check_weights(weights: str) -> None:
  """Refuses what is no kind of weights (UserError), see `protocol_card`."""
  kind, at, _ = weights.partition('@')
  trees.check_known('weights', kind, ('ema',) if at else ('ema', 'params', 'file'))


def label_names(labels_N: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
  """Names of the classes that occur, by label; of more than 100 the first, the last and a digest.

  Args:
    labels_N: labels of samples; one that has no name is of no class.
    names: names of all classes.
  """
  found = [int(k) for k in np.unique(labels_N) if k < len(names)]
  shown = found if len(found) <= _NAMES else [found[0], found[-1]]
  facts = {str(k): names[k] for k in shown}
  if len(found) > _NAMES:
    facts['sha256'] = hashlib.sha256(
      '\n'.join(names).encode('utf-8', 'surrogateescape')
    ).hexdigest()
  return facts


def devices() -> dict[str, Any]:
  """What computes, and how many of it."""
  found = jax.devices()
  return {'kind': found[0].device_kind, 'count': len(found)}


def versions() -> dict[str, str]:
  """Versions of this package and of those that decide its numbers."""
  return {
    'diversedit_jax': diversedit_jax.__version__,
    'jax': jax.__version__,
    'jaxlib': metadata.version('jaxlib'),
    'flax': flax.__version__,
    'numpy': np.__version__,
  }


def write_json(path: str | os.PathLike[str], facts: dict[str, Any]) -> None:
  """Writes facts as indented JSON, whole or not at all; numpy scalars and arrays become plain.

  Raises:
    ValueError: for a number that is not finite, with the place where it stands: JSON has no
      NaN, and a score that is NaN must stop the evaluation rather than be read as a result.
    TypeError: for a value that JSON cannot hold.
  """
  text = json.dumps(_plain(facts, ''), indent=2, allow_nan=False, ensure_ascii=False)
  with files.atomic(path) as temporary:
    # A name in no encoding has surrogates, which become JSON's own escapes.
    temporary.write_bytes((text + '\n').encode('utf-8', 'backslashreplace'))


def _plain(value: Any, place: str) -> Any:
  """The value in JSON's types."""
  if isinstance(value, np.ndarray | np.generic | jax.Array):
    value = np.asarray(value).tolist()
  if isinstance(value, dict):
    return {str(k): _plain(v, f'{place}/{k}') for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(v, f'{place}/{i}') for i, v in enumerate(value)]
  if isinstance(value, float) and not math.isfinite(value):
    raise ValueError(f'{place.lstrip("/")} is {value}; JSON files hold finite numbers only')
  if value is None or isinstance(value, bool | int | float | str):
    return value
  raise TypeError(f'{place.lstrip("/")} is a {type(value).__name__}, which JSON cannot hold')
