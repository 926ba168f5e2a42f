"""Networks that turn pictures into features, seen as one thing, and their sums over many pictures.

Inception    pool, spatial and logits: FID, sFID, Inception Score, precision, recall, KID
an encoder   its summary of a picture as 'pool': the same distances in another space (FD-DINOv2)
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import time
from typing import Any

from absl import logging
import jax
import numpy as np

from diversedit_jax import sharding, trees
from diversedit_jax.data import images
from diversedit_jax.evaluation import accumulate, checks, placement
from diversedit_jax.frozen import encoders, inception
from diversedit_jax.types import UserError
from diversedit_jax.weights import array_files

_REPORT_SECONDS = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FeatureNetwork:
  """A frozen network with weights.

  name: 'inception' or an encoder's. file: of the weights. sha256: of the weights.
  random: they are drawn, not trained. resize: how pictures come to the network's size, in words.
  verified: whether the file is the published one; None where its publishers give no digest.
  params: the weights. features: (params, uint8 [N, H, W, 3]) -> 'pool' [N, D], and for Inception
    'spatial' [N, E] and 'logits' [N, K]; pure, traceable.
  """

  name: str
  file: str
  sha256: str
  random: bool
  resize: str
  params: Any
  features: Callable[[Any, jax.Array], Mapping[str, jax.Array]]
  verified: bool | None = None

  def facts(self) -> dict[str, Any]:
    """For a protocol card."""
    return {
      'name': self.name,
      'file': self.file,
      'sha256': self.sha256,
      'random_weights': self.random,
      'verified': self.verified,
      'resize': self.resize,
    }

  def widths(self, side: int) -> dict[str, int]:
    """Width of each kind of features, of pictures of a side."""
    picture = jax.ShapeDtypeStruct((1, side, side, 3), 'uint8')
    found = jax.eval_shape(self.features, self.params, picture)
    return {kind: x.shape[1] for kind, x in found.items()}


def of_inception(network: inception.Inception) -> FeatureNetwork:
  """Inception as ADM's evaluator runs it."""
  return FeatureNetwork(
    name='inception',
    file=network.file,
    sha256=network.sha256,
    random=network.random,
    verified=network.verified,
    resize='TF1 bilinear to 299',
    params=network.params,
    features=lambda params, x: inception.features(params, x)._asdict(),
  )


def of_encoder(encoder: encoders.Encoder) -> FeatureNetwork:
  """An encoder's summary of whole pictures, fed as REPA feeds it.

  Raises:
    UserError: for an encoder without a summary, or as its `load`.
  """
  if encoder.shapes().summary is None:
    raise UserError(f'encoder {encoder.name!r} has no summary of a whole image, so no distance')
  params = encoder.load()

  def features(params, x_NHWC):
    with jax.default_matmul_precision('highest'):  # Of float32 products, as Inception's are.
      return {'pool': encoder.apply(params, images.from_uint8(x_NHWC)).summary}

  return FeatureNetwork(
    name=encoder.name,
    file=encoder.file(),
    random=False,
    resize="the encoder's own, see REPA",
    sha256=array_files.digest(trees.named_leaves(params).items()),
    params=params,
    features=features,
  )


class Extractor:
  """Features of pictures in batches of one compiled size, spread over a mesh."""

  def __init__(self, view: FeatureNetwork, mesh: jax.sharding.Mesh, batch_size: int):
    """batch_size: pictures at a time, of all devices; rounded up to the mesh."""
    divisor = sharding.batch_divisor(mesh)
    self.view, self.batch_size = view, -(-batch_size // divisor) * divisor
    self._mesh = mesh
    self._params = jax.device_put(view.params, sharding.replicated(mesh))
    # Cut by rows, so that each process sums those that its own devices hold.
    self._features = jax.jit(view.features, out_shardings=sharding.batch_sharding(mesh))

  def __call__(self, x_NHWC: np.ndarray) -> Mapping[str, jax.Array]:
    """Features of `batch_size` rows, of which the first n are those of the pictures, uint8."""
    missing = self.batch_size - len(x_NHWC)
    padded = np.pad(x_NHWC, ((0, missing), (0, 0), (0, 0), (0, 0)))
    return self._features(self._params, placement.put_rows(padded, self._mesh))

  def summarise(
    self,
    batches: Iterable[np.ndarray],
    count: int,
    *,
    keep: int = 0,
    places: np.ndarray | None = None,
  ) -> accumulate.Summary:
    """Sums of all pictures, of which two batches are held at a time.

    Args:
      batches: uint8 [n, H, W, 3], together `count`, the same on every process.
      count: pictures. keep: of how many the pool features are kept, those of the first places.
      places: permutation [count], of the k-th picture that comes; None is the order of coming.

    Raises:
      UserError: for fewer than two pictures, another number than `count`, or features that are not
        finite.
    """
    statistics = accumulate.Statistics(count, keep=keep)
    looked_at = checks.ImageChecks(count)
    started = reported = time.monotonic()
    first, waiting = 0, None
    for batch in rebatched(batches, self.batch_size):
      indices = np.arange(first, first + len(batch))
      indices = indices if places is None else places[indices]
      found = self(batch)  # Dispatched before the sums of the batch before it are read.
      looked_at.add(batch, indices)
      _take(statistics, waiting)
      waiting, first, now = (found, indices), first + len(batch), time.monotonic()
      if now - reported > _REPORT_SECONDS:
        rate, reported = first / (now - started), now
        logging.info(
          '%s: features of %d/%d, %.3g images/s, ETA %.0f s',
          self.view.name,
          first,
          count,
          rate,
          (count - first) / rate,
        )
    _take(statistics, waiting)
    statistics.across_processes()
    summary = statistics.finish()
    return dataclasses.replace(summary, warnings=summary.warnings + looked_at.warnings())


def rebatched(batches: Iterable[np.ndarray], size: int) -> Iterable[np.ndarray]:
  """The same rows in batches of a size, but for the last."""
  held: list[np.ndarray] = []
  for batch in batches:
    held.append(batch)
    while sum(map(len, held)) >= size:
      joined = np.concatenate(held) if len(held) > 1 else held[0]
      yield joined[:size]
      held = [joined[size:]]
  if sum(map(len, held)):
    yield np.concatenate(held)


def _take(statistics, waiting):
  if waiting is not None:
    found, indices = waiting
    n = len(next(iter(found.values())))
    mask = np.arange(n) < len(indices)
    places = np.concatenate([indices, np.full(n - len(indices), -1)])
    statistics.add(found, mask_N=mask, indices_N=places)
