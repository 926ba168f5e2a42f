"""Files of reference statistics: those that ADM published, and our own.

ADM's `.npz` holds any of `arr_0` (10,000 images, uint8 NHWC, for precision and recall), `mu`,
`sigma` (pool features) and `mu_s`, `sigma_s` (spatial features) of the whole training set. FID and
sFID use the statistics, not the images.

Ours holds the same statistics, perhaps `pool` (features of reference images), and `facts`, which
say how they were made, so that statistics of another network or size are refused.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import json
import os
from typing import Any
import zipfile

import numpy as np

from diversedit_jax import paths
from diversedit_jax.data import files
from diversedit_jax.evaluation import accumulate
from diversedit_jax.types import UserError

FORMAT = 'diversedit_jax reference statistics, version 1'
FACTS = ('inception_sha256', 'image_size', 'resize', 'source', 'source_sha256')
"""Facts that our own files must state; others may be added."""

POOL_LIMIT = 10_000
"""Number of reference images of ADM's precision and recall."""

_PAIRS = (('mu', 'sigma'), ('mu_s', 'sigma_s'))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
  """What samples are compared with; what a file lacks is None.

  name: name of the file, without folders.
  sha256: digest of the names, types, shapes and bytes of the arrays, whatever the archive.
  n: images behind the statistics; unknown for ADM's files.
  mu, sigma, mu_s, sigma_s: float64.
  images_NHWC: ADM's `arr_0`, uint8.
  pool_ND: float32 pool features.
  facts: what our own files say of themselves; empty for ADM's.
  """

  name: str
  sha256: str
  n: int | None = None
  mu: np.ndarray | None = None
  sigma: np.ndarray | None = None
  mu_s: np.ndarray | None = None
  sigma_s: np.ndarray | None = None
  images_NHWC: np.ndarray | None = None
  pool_ND: np.ndarray | None = None
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def holds(self) -> str:
    """What there is to compare with, in words, as it is found; whose pictures it is, none says."""
    found = []
    for mean, covariance in _PAIRS:
      if (values := getattr(self, mean)) is not None:
        found.append(f'{mean} and {covariance} of {len(values)} features')
    if self.images_NHWC is not None:
      n, height, width, _ = self.images_NHWC.shape
      found.append(f'{n:,} pictures of {height}x{width}')
    if self.pool_ND is not None:
      found.append(f'features of {len(self.pool_ND):,} pictures')
    return ', '.join(found)

  @property
  def statistics_sha256(self) -> str | None:
    """Digest of mu and sigma alone: equal in ADM's file and in copies of its statistics."""
    if self.mu is None:
      return None
    return content_sha256({'mu': self.mu, 'sigma': self.sigma})


def read(path: str | os.PathLike[str]) -> Reference:
  """Reads either kind of file. Arrays by other names, such as ADM's labels, are left out.

  Raises:
    UserError: naming the file, what was found and what was expected, if it is missing, not an
      archive of plain arrays, holds none of them, or holds arrays that cannot be right.
  """
  path = paths.path(path, bucket=True)
  if not path.is_file():
    raise UserError(f'no file {path}')
  try:
    with files.local(path) as there:
      with zipfile.ZipFile(there):
        pass  # Else numpy would take other files for arrays or pickles.
      with np.load(there, allow_pickle=False) as archive:
        found = archive.files
        arrays = {name: archive[name] for name in found if name in _NAMES}
  except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f'{path} is not a .npz archive of plain arrays: {error}') from error
  foreign = [name for name, x in arrays.items() if not isinstance(x, np.ndarray)]
  if foreign:
    raise UserError(f'{path} holds {", ".join(foreign)}, which is not an array')
  own = 'facts' in arrays
  if not own and not {'arr_0', 'mu', 'mu_s'} & set(arrays):
    raise UserError(
      f'{path} holds {", ".join(found) or "nothing"}; expected some of arr_0, mu and sigma, mu_s '
      'and sigma_s'
    )
  digest = content_sha256({k: v for k, v in arrays.items() if k != 'sha256'})
  facts = _read_facts(path, arrays, digest) if own else {}
  _check_arrays(path, arrays)
  statistics = {
    name: arrays[name].astype(np.float64) for pair in _PAIRS for name in pair if name in arrays
  }
  return Reference(
    name=path.name,
    sha256=digest,
    n=facts.pop('n', None),
    images_NHWC=arrays.get('arr_0'),
    pool_ND=arrays.get('pool'),
    facts=facts,
    **statistics,
  )


def write(
  path: str | os.PathLike[str],
  summary: accumulate.Summary,
  facts: Mapping[str, Any],
  *,
  limit: int = POOL_LIMIT,
) -> str:
  """Writes statistics, whole or not at all, and returns the SHA-256 of the contents.

  Args:
    path: path of a `.npz` file.
    summary: from `accumulate.Statistics`.
    facts: JSON values, at least `FACTS`: the SHA-256 of the Inception weights, the side of the
      images in pixels, how they were resized and cropped, the name and digest of their source.
    limit: most pool features.

  Raises:
    UserError: for facts that are missing, too many pool features or another suffix.
  """
  path = paths.path(path, bucket=True)
  missing = [name for name in FACTS if facts.get(name) is None]
  if missing:
    raise UserError(f'reference statistics need the facts {", ".join(missing)}')
  if path.suffix != '.npz':
    raise UserError(f'reference statistics are a .npz file; got {path.name}')
  if summary.pool_ND is not None and len(summary.pool_ND) > limit:
    raise UserError(f'{len(summary.pool_ND)} pool features, expected at most {limit}')
  stated = {'format': FORMAT, 'n': summary.n, **facts}
  arrays = {'facts': np.array(json.dumps(stated, sort_keys=True, allow_nan=False))}
  arrays |= {'mu': summary.mu, 'sigma': summary.sigma}
  optional = {'mu_s': summary.mu_s, 'sigma_s': summary.sigma_s, 'pool': summary.pool_ND}
  arrays |= {name: x for name, x in optional.items() if x is not None}
  _check_arrays(path, arrays)
  digest = content_sha256(arrays)
  with files.atomic(path) as temporary:
    np.savez(temporary, sha256=np.array(digest), **arrays)
  return digest


def check_fits(
  reference: Reference,
  *,
  width: int,
  spatial_width: int | None = None,
  inception_sha256: str | None = None,
  image_size: int | None = None,
) -> None:
  """Refuses a reference that samples cannot be compared with.

  Args:
    reference: a reference of either kind. ADM's files state neither network nor size, but their
      images show the size.
    width: width of the samples' pool features.
    spatial_width: width of their spatial features; None without them.
    inception_sha256: digest of the weights that made them; None is not compared.
    image_size: side of the samples in pixels; None is not compared.

  Raises:
    UserError: naming the file, what was found and what was expected.
  """
  wrong = []

  def compare(what, found, expected):
    if found is not None and expected is not None and found != expected:
      wrong.append(f'{what} is {found}, expected {expected}')

  compare('the width of mu', None if reference.mu is None else len(reference.mu), width)
  spatial = None if reference.mu_s is None else len(reference.mu_s)
  compare('the width of mu_s', spatial, spatial_width)
  pool = None if reference.pool_ND is None else reference.pool_ND.shape[1]
  compare('the width of pool', pool, width)
  facts = reference.facts
  compare('the SHA-256 of Inception', facts.get('inception_sha256'), inception_sha256)
  compare('the image size', facts.get('image_size'), image_size)
  if reference.images_NHWC is not None and image_size is not None:
    compare('the size of arr_0', reference.images_NHWC.shape[1:3], (image_size, image_size))
  if wrong:
    raise UserError(f'{reference.name} does not fit the samples: {"; ".join(wrong)}')


def content_sha256(arrays: Mapping[str, np.ndarray]) -> str:
  """SHA-256 of names, types, shapes and bytes of arrays, in the order of their names."""
  digest = hashlib.sha256()
  for name, x in sorted(arrays.items()):
    digest.update(f'{name} {x.dtype.str} {x.shape}\n'.encode())
    digest.update(memoryview(np.ascontiguousarray(x)).cast('B') if x.size else b'')
  return digest.hexdigest()


_NAMES = frozenset(
  {'arr_0', 'pool', 'facts', 'sha256'} | {name for pair in _PAIRS for name in pair}
)


def _read_facts(path, arrays, digest):
  """The facts of one of our own files, whose bytes are as they were written."""
  try:
    facts = json.loads(str(arrays['facts']))
  except json.JSONDecodeError as error:
    raise UserError(f'{path} holds facts that are not JSON: {error}') from error
  if not isinstance(facts, dict) or facts.pop('format', None) != FORMAT:
    raise UserError(f'{path} is not in the format {FORMAT!r}')
  stated = str(arrays.get('sha256'))
  if stated != digest:
    raise UserError(
      f'{path} was changed or damaged: its contents have the SHA-256 {digest}, expected {stated}'
    )
  missing = [name for name in ('n', *FACTS) if name not in facts]
  if missing:
    raise UserError(f'{path} does not state {", ".join(missing)}')
  return facts


def _check_arrays(path, arrays):
  """Shapes, types and values that statistics and images can have."""
  for mean, covariance in _PAIRS:
    if (mean in arrays) != (covariance in arrays):
      there, lacking = (mean, covariance) if mean in arrays else (covariance, mean)
      raise UserError(f'{path} holds {there} but not {lacking}')
    if mean not in arrays:
      continue
    mu, sigma = arrays[mean], arrays[covariance]
    if mu.ndim != 1 or sigma.shape != (mu.size, mu.size):
      raise UserError(
        f'{path}: {mean} and {covariance} have shapes {mu.shape} and {sigma.shape}, expected (D,) '
        'and (D, D)'
      )
    if mu.dtype.kind != 'f' or sigma.dtype.kind != 'f':
      raise UserError(
        f'{path}: {mean}, {covariance} are {mu.dtype}, {sigma.dtype}, expected floats'
      )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
      raise UserError(f'{path}: {mean} or {covariance} has values that are not finite')
    # A covariance saved in float32 is symmetric to its rounding.
    if np.abs(sigma - sigma.T).max() > 1e-5 * np.abs(sigma).max():
      raise UserError(f'{path}: {covariance} is not symmetric, so it is no covariance')
  if 'arr_0' in arrays:
    x = arrays['arr_0']
    if x.ndim != 4 or x.shape[-1] != 3 or x.dtype != np.uint8:
      raise UserError(f'{path}: arr_0 is {x.dtype} {x.shape}, expected uint8 (N, H, W, 3)')
  if 'pool' in arrays:
    x = arrays['pool']
    if x.ndim != 2 or x.dtype != np.float32 or not np.isfinite(x).all():
      raise UserError(f'{path}: pool is {x.dtype} {x.shape}, expected finite float32 (N, D)')
