"""Networks that turn pictures into features, behind one interface, and sums of their features.

Inception    pool, spatial and logits: FID, sFID, Inception Score, precision, recall, KID
an encoder   its summary of a picture as 'pool': the same distances in another space (FD-DINOv2)
a classifier of the data's own classes: the same distances, and whether samples look like theirs
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
from typing import Any

import jax
import numpy as np

from diversedit_jax import progress, sharding, trees
from diversedit_jax.data import images
from diversedit_jax.evaluation import accumulate, placement, reference
from diversedit_jax.frozen import encoders, inception
from diversedit_jax.types import UserError
from diversedit_jax.weights import array_files


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FeatureNetwork:
  """A frozen network with weights.

  name: 'inception' or the name of an encoder.
  file: name of the file of weights.
  sha256: digest of the weights.
  random: whether the weights are drawn instead of trained.
  resize: how pictures are brought to the network's size, in words.
  params: the weights.
  features: (params, uint8 [N, H, W, 3]) -> 'pool' [N, D], and for Inception 'spatial' [N, E] and
    'logits' [N, K]; pure, traceable.
  verified: whether the file is the published one; None if its publishers give no digest.
  labelled: whether the logits are of the classes that samples are drawn of.
  measured: what is known of real pictures under the network, by name.
  only: name of the one score that its features give; '' gives all that options and reference make
    possible.
  points: most pictures of a reference whose features are kept.
  """

  name: str
  file: str
  sha256: str
  random: bool
  resize: str
  params: Any
  features: Callable[[Any, jax.Array], Mapping[str, jax.Array]]
  verified: bool | None = None
  labelled: bool = False
  measured: Mapping[str, float] = dataclasses.field(default_factory=dict)
  only: str = ''
  points: int = reference.POOL_LIMIT

  def facts(self) -> dict[str, Any]:
    """Facts for a protocol card."""
    return {
      'name': self.name,
      'file': self.file,
      'sha256': self.sha256,
      'random_weights': self.random,
      'verified': self.verified,
      'resize': self.resize,
    }

  def widths(self, side: int) -> dict[str, int]:
    """Width of each kind of features; side: pixels of the pictures."""
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
    UserError: an encoder without a summary, or as its `load`.
  """
  if encoder.shapes().summary is None:
    raise UserError(f'encoder {encoder.name!r} has no summary of a whole image, so no distance')
  params = encoder.load()

  def features(params, x_NHWC):
    with jax.default_matmul_precision('highest'):  # As in Inception.
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

  def __init__(self, network: FeatureNetwork, mesh: jax.sharding.Mesh, batch_size: int):
    """batch_size: pictures at a time, over all devices; rounded up to the mesh."""
    self.network, self.batch_size = network, sharding.round_up(batch_size, mesh)
    self._mesh = mesh
    self._params = jax.device_put(network.params, sharding.replicated(mesh))
    split = sharding.batch_sharding(mesh)

    def features(params, x_NHWC):
      return jax.lax.with_sharding_constraint(network.features(params, x_NHWC), split)

    # Features are small, so every process gets all of them and sums them like any other process.
    self._features = jax.jit(features, out_shardings=sharding.replicated(mesh))

  def __call__(self, x_NHWC: np.ndarray) -> Mapping[str, jax.Array]:
    """Features [batch_size, ...], of which the first n are those of the pictures, uint8."""
    padded = sharding.pad_rows(x_NHWC, self.batch_size)
    return self._features(self._params, placement.put_rows(padded, self._mesh))

  def summarise(
    self,
    batches: Iterable[np.ndarray],
    count: int,
    *,
    keep: int = 0,
    places_N: np.ndarray | None = None,
  ) -> accumulate.Summary:
    """Statistics of all pictures; logs progress.

    Args:
      batches: uint8 [n, H, W, 3], together `count`, the same on every process.
      count, keep, places_N: see `accumulate.Statistics`.

    Raises:
      UserError: fewer than two pictures, another number than `count`, or features that are not
        finite.
    """
    sums, done = Sums(self, count, keep=keep, places_N=places_N), 0
    meter = progress.Progress(f'features by {self.network.name}', count, 'images')
    for batch in batches:
      sums.add(batch)
      done += len(batch)
      meter.at(done)
    return sums.finish()


class Sums:
  """Sums of the features of pictures that arrive in batches of any size.

  The host sums the features of one batch while the devices work on the next.
  """

  def __init__(
    self,
    extractor: Extractor,
    count: int,
    *,
    keep: int = 0,
    places_N: np.ndarray | None = None,
  ):
    """count, keep, places_N: see `accumulate.Statistics`."""
    self._extractor = extractor
    self._statistics = accumulate.Statistics(count, keep=keep, places_N=places_N)
    self._held_NHWC = None  # Pictures that do not fill a batch yet.
    self._waiting = None  # Features of the last batch, and how many are those of pictures.

  def add(self, x_NHWC: np.ndarray) -> None:
    """Adds pictures, uint8 [n, H, W, 3].

    Raises:
      UserError: as `accumulate.Statistics.add`.
    """
    held = self._held_NHWC
    held = x_NHWC if held is None or not len(held) else np.concatenate([held, x_NHWC])
    size = self._extractor.batch_size
    while len(held) >= size:
      self._start(held[:size])
      held = held[size:]
    self._held_NHWC = held

  def finish(self) -> accumulate.Summary:
    """The statistics of all pictures.

    Raises:
      UserError: as `accumulate.Statistics.finish`.
    """
    if self._held_NHWC is not None and len(self._held_NHWC):
      self._start(self._held_NHWC)
    self._sum()
    return self._statistics.finish()

  def _start(self, x_NHWC):
    found = self._extractor(x_NHWC)  # Before the features of the last batch are waited for.
    self._sum()
    self._waiting = found, len(x_NHWC)

  def _sum(self):
    if self._waiting is not None:
      found, n = self._waiting
      self._statistics.add({kind: np.asarray(x)[:n] for kind, x in found.items()})
      self._waiting = None
