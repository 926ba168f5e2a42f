"""A training objective: one flow, and terms that read the block outputs of its forward pass.

A term is one file in this folder. It may bring heads (parameters trained with the model), says
through a tap what it needs of the block outputs, and turns that into a scalar and metrics:

  draw = flow.draw(batch, key)                              t, noise, x_t, target, dropped labels
  features, loss_N = flow.forward(network, draw, taps)      the model once, whatever is combined
  loss = mean(loss_N) + sum of term.loss(its features, draw, its heads, teacher)

A flow owns its forward pass, so it may also differentiate it (MeanFlow) or give the model more than
x, t and y. A term may look at the whole batch (frozen features beside the images) and at the
teacher, the averaged network, which receives no gradient.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, Protocol

from flax import nnx
import jax
import jax.numpy as jnp

from diversedit_jax import types
from diversedit_jax.models import sit, taps

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Draw:
  """Everything random of one step, for every example of the batch."""

  x_t: jax.Array  # [N, H, W, C], the noisy input
  t: jax.Array  # [N]
  y: jax.Array  # [N], the null label where dropped
  target: jax.Array  # [N, H, W, C], the velocity
  noise: jax.Array  # [N, H, W, C]
  batch: types.Batch  # What the draw was made from, and whatever else the data bring.


jax.tree_util.register_dataclass(Draw)


class Network(nnx.Module):
  """The model and the heads that the terms bring; all its parameters are trained and averaged."""

  def __init__(self, config: sit.SiTConfig, terms: tuple['Term', ...] = (), *, rngs: nnx.Rngs):
    self.model = sit.SiT(config, rngs=rngs)
    heads = {term.name: term.heads(config, rngs=rngs) for term in terms}
    self.heads = nnx.Dict({name: head for name, head in heads.items() if head is not None})


class Flow(Protocol):
  """Draws the noisy input and scores the prediction."""

  def draw(self, batch: types.Batch, key: jax.Array) -> Draw:
    """Times, noise and dropped labels for a batch."""

  def forward(self, network: 'Network', draw: Draw, tap: taps.Tap) -> tuple[Any, jax.Array]:
    """The tap's features and the per-example loss [N], from one forward pass of the model."""


class Term(Protocol):
  """One additional loss on the block outputs."""

  name: str

  def heads(self, config: sit.SiTConfig, *, rngs: nnx.Rngs) -> nnx.Module | None:
    """Extra parameters, or None."""

  def tap(self, key: jax.Array, depth: int) -> taps.Tap:
    """What the term needs of the block outputs; the key is of this step."""

  def loss(
    self, features: Any, draw: Draw, heads: nnx.Module | None, teacher: 'Network | None'
  ) -> tuple[jax.Array, Metrics]:
    """The scalar that is added to the batch mean of the flow's loss, and metrics by name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """A flow with its terms: the whole training loss of a method."""

  flow: Flow
  terms: tuple[Term, ...] = ()

  def draw(self, batch: types.Batch, key: jax.Array) -> Draw:
    """See `Flow.draw`."""
    return self.flow.draw(batch, key)

  def loss(
    self, network: Network, draw: Draw, key: jax.Array, teacher: Network | None = None
  ) -> tuple[jax.Array, Metrics]:
    """The scalar to minimise and its parts, from one forward pass of the model.

    Args:
      network: to differentiate. draw: of this step. key: of the terms at this step.
      teacher: the averaged network, for terms that compare with it.

    Returns:
      (loss, metrics); metrics hold 'loss', 'velocity' and, under 'NAME/', those of each term.
    """
    depth = network.model.config.depth
    tap = taps.joined({term.name: term.tap(key, depth) for term in self.terms})
    features, loss_N = self.flow.forward(network, draw, tap)
    velocity = jnp.mean(loss_N)
    loss, metrics = velocity, {'velocity': velocity}
    for term in self.terms:
      value, parts = term.loss(features[term.name], draw, network.heads.get(term.name), teacher)
      loss = loss + value
      metrics |= {f'{term.name}/{k}': v for k, v in parts.items()}
    return loss, {'loss': loss, **metrics}


def microbatches(draw: Any, n: int) -> Any:
  """[N, ...] -> [n, N/n, ...] by strided rows, so that each part stays spread over the devices."""

  def split(x):
    return jnp.swapaxes(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 0, 1)

  return jax.tree.map(split, draw)


def mean_metrics(stacked: Mapping[str, jax.Array]) -> Metrics:
  """The mean over a leading axis of microbatches."""
  return {k: jnp.mean(v, axis=0) for k, v in stacked.items()}
