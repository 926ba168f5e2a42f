"""Arrays whose layout is another than ours, known by their shapes, with the line that turns them.

Ours is [n, H, W, C]; PyTorch's is [n, C, H, W]. Latents may also turn out to be moments: a mean and
a standard deviation, or the logarithm of a variance, in twice the channels of the autoencoder.

Honest latents may look so too. A file that holds `layout`, the text 'NHWC', says that its arrays
are as they shall be.
"""

from collections.abc import Sequence
import json
import os
import shlex

import numpy as np

from diversedit_jax.types import UserError

LAYOUT = 'NHWC'
_MOMENTS = 8  # Channels of the moments of SD's autoencoder, and of hardly any latents.
_TURN = 'f["{name}"] = f["{name}"].transpose(0, 2, 3, 1)'
_SAMPLE = (
  'm, s = np.split(f["{name}"].astype("float32"), 2, -1); {deviation}'
  'f["{name}"] = 0.18215 * (m + s * np.random.default_rng(0).standard_normal(m.shape, "float32"))'
)


def command(path: str | os.PathLike[str], *steps: str) -> str:
  """A command that changes arrays `f[NAME]` of a file and writes them to another."""
  stem = os.fspath(path).removesuffix('.npz')
  load, save = json.dumps(os.fspath(path)), json.dumps(f'{stem}-new.npz')
  code = f'import numpy as np; f = dict(np.load({load})); {"; ".join(steps)}; np.savez({save}, **f)'
  return f'python -c {shlex.quote(code)}'


def turned(path: str | os.PathLike[str], name: str, shape: Sequence[int]) -> str:
  """The way on for pictures [n, 1 or 3, H, W], as the end of a message; '' for other shapes."""
  if len(shape) != 4 or shape[1] not in (1, 3):
    return ''
  return f'. Channels come last; turn it by `{command(path, _TURN.format(name=name))}`'


def check_latents(path: str | os.PathLike[str], latents: np.ndarray, stated: str | None) -> None:
  """Refuses latents [n, a, b, c] that look like [n, C, H, W], or like moments.

  Args:
    path: path of the file.
    latents: as they were read.
    stated: `layout` of the file; None without one.

  Raises:
    UserError: with the command that makes what is expected, and how to state that they are right.
  """
  if stated == LAYOUT:
    return
  if stated is not None and stated != 'NCHW':
    raise UserError(f'{path}: `layout` is {stated!r}, expected {LAYOUT!r}')
  found, steps = [], []
  x = latents
  if stated == 'NCHW' or _channels_first(x.shape[1:]):
    found.append(f'channels first, {x.shape[2]}x{x.shape[3]} with {x.shape[1]} channels')
    steps.append(_TURN.format(name='latents'))
    x = x.transpose(0, 2, 3, 1)
  if kind := _moments(x):
    deviation = 's = np.exp(s / 2); ' if kind == 'logarithms of variances' else ''
    found.append(f'moments, {x.shape[-1] // 2} means and as many {kind}, not a sample of them')
    steps.append(_SAMPLE.format(name='latents', deviation=deviation))
  if not found:
    return
  scale = ' (0.18215 is the scale of SD, yours may be another)' if kind else ''
  state = f'f["layout"] = "{LAYOUT}"'
  raise UserError(
    f'{path}: `latents` {latents.shape} look like {" and like ".join(found)}; expected '
    f'(n, H, W, C). Make a file of these by `{command(path, *steps, state)}`{scale}, or, if they '
    f'are right as they are, one that says so by `{command(path, state)}`'
  )


def _channels_first(shape):
  """Whether a grid [C, H, W] would be far more square than [H, W, C]."""
  aspect = lambda a, b: max(a, b) / min(a, b)
  a, b, c = shape
  return aspect(a, b) >= 2 * aspect(b, c)


def _moments(x_NHWC):
  """What stands beside means in the second half of the channels; '' if it is no such thing."""
  channels = x_NHWC.shape[-1]
  if channels < 4 or channels % 2:
    return ''
  sample = x_NHWC[:64].astype(np.float32)
  mean, spread = np.split(sample, 2, axis=-1)
  if mean.min() < 0 <= spread.min() and spread.max() > 0:
    return 'standard deviations'
  if channels == _MOMENTS or (spread.mean() < -2 and abs(mean.mean()) < 1):
    return 'logarithms of variances'
  return ''
