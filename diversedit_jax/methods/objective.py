"""A whole training loss: a flow, its terms and the encoders they look at; see `base`."""

from collections.abc import Mapping
import dataclasses
import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp

from diversedit_jax import rng, types
from diversedit_jax.data import latents as latents_lib
from diversedit_jax.frozen.encoders import base as encoders_lib
from diversedit_jax.methods import base, batches
from diversedit_jax.models import taps
from diversedit_jax.sampling import guidance, trajectory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """A flow with its terms and the encoders they look at: the whole training loss of a method."""

  flow: base.Flow
  terms: tuple[base.Term, ...] = ()
  encoders: tuple[encoders_lib.Encoder, ...] = ()
  scaling: latents_lib.Scaling | None = None  # Needed where the data are moments.

  def flow_only(self) -> 'Objective':
    """The flow without terms, with the encoders that it looks at itself: for analysis."""
    return self._with(())

  @property
  def ends(self) -> tuple[int, ...]:
    """The numbers of updates at which terms end for good, rising."""
    return tuple(sorted({int(t.factor.ends) for t in self.terms if t.factor.ends < math.inf}))

  def running(self, step: int) -> 'Objective':
    """The objective after so many updates: without terms that have ended, nor their encoders."""
    return self._with(tuple(term for term in self.terms if step < term.factor.ends))

  def _with(self, terms):
    looked_at = {e.name for term in terms for e in term.opened} | set(self.flow.encoders)
    seen = tuple(e for e in self.encoders if e.makes_data or e.name in looked_at)
    return dataclasses.replace(self, terms=terms, encoders=seen)

  def sample(
    self,
    network: base.Network,
    keys_N: jax.Array,
    labels_N: jax.Array,
    config: trajectory.SamplerConfig,
    guide: guidance.Predict | None = None,
  ) -> jax.Array:
    """Samples of the flow, see there, of the network as its terms want it sampled."""
    return self.flow.sample(self._as_sampled(network), keys_N, labels_N, config, guide)

  def velocity(self, network: base.Network, clamp: float = 0.0) -> guidance.Predict:
    """The velocity of the flow, see there, of the network as its terms want it sampled."""
    return self.flow.velocity(self._as_sampled(network), clamp)

  def _as_sampled(self, network):
    # What corrects a prediction acts before what combines it with others.
    for term in sorted(self.terms, key=lambda term: term.combines):
      network = term.for_sampling(network)
    return network

  def sampling_facts(self) -> dict[str, Any]:
    """What terms change in `sample`, by their names; {} where nothing is."""
    return {term.name: facts for term in self.terms if (facts := term.sampling_facts())}

  def frozen(self) -> dict[str, Any]:
    """Weights of the encoders by name; reads or fits them."""
    return {encoder.name: encoder.load() for encoder in self.encoders}

  def encode(self, frozen: Mapping[str, Any], batch: types.Batch, parts: int = 1) -> types.Batch:
    """The batch with 'NAME/tokens' and what else each encoder gives, see `Features.named`.

    The tokens of one that makes the data become 'latents', on their grid. No gradient. The batch
    goes through the encoders in so many parts, one after the other, to save memory.
    """

    def features(pixels_NHWC):
      added = {}
      for encoder in self.encoders:
        with jax.named_scope(encoder.name):
          found = encoder.apply(frozen[encoder.name], pixels_NHWC)
        if encoder.makes_data:
          grid = encoder.request.grid
          added['latents'] = found.tokens.reshape(-1, *grid, found.tokens.shape[-1])
        else:
          added |= {f'{encoder.name}/{name}': x for name, x in found.named().items()}
      return added

    if not self.encoders:
      return batch
    if parts == 1:
      added = features(batches.pixels(batch))
    else:
      added = jax.lax.map(features, batches.microbatches(batches.pixels(batch), parts))
      added = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), added)
    return {**batch, **jax.lax.stop_gradient(added)}

  @jax.named_scope('draw')
  def draw(self, batch: types.Batch, key: jax.Array) -> base.NoisyBatch:
    """All randomness of a step that belongs to single examples."""
    batch = batches.sample_latents(batch, rng.stream(key, 'posterior'), self.scaling)
    noisy = self.flow.draw(batch, key)
    n = noisy.t.shape[0]
    drawn = {term.name: term.draw(rng.stream(key, term.name), n) for term in self.terms}
    return dataclasses.replace(noisy, drawn=drawn)

  def loss(
    self,
    network: base.Network,
    noisy: base.NoisyBatch,
    *,
    key: jax.Array,
    step: jax.Array,
    teacher: base.Network | None = None,
  ) -> tuple[jax.Array, base.Metrics]:
    """The scalar to minimise and its parts, from one forward pass of the model.

    Args:
      network: the one to differentiate. noisy: batch of this step.
      key: for the terms at this step.
      step: number of updates made.
      teacher: the averaged network, for terms that compare with it.

    Returns:
      (loss, metrics); metrics hold 'loss', those of the flow and, under 'NAME/', those of each
      term, with its 'schedule' unless that is constant.
    """
    values, metrics = self.parts(network, noisy, key=key, step=step, teacher=teacher)
    loss = functools.reduce(operator.add, values.values())
    return loss, {'loss': loss, **metrics}

  def parts(
    self,
    network: base.Network,
    noisy: base.NoisyBatch,
    *,
    key: jax.Array,
    step: jax.Array,
    teacher: base.Network | None = None,
  ) -> tuple[dict[str, jax.Array], base.Metrics]:
    """The scalars that `loss` adds up, by the names of flow and terms, and metrics; see there."""
    depth = network.model.architecture.depth
    tap = taps.joined({term.name: term.tap(key, depth) for term in self.terms})
    with jax.named_scope(self.flow.name):
      output, loss_N, metrics = self.flow.forward(network, noisy, tap)

    def teach(t_N, block):
      if teacher is None:
        raise ValueError('a term asks for the teacher, and none is given')
      averaged, tap = jax.lax.stop_gradient(teacher), taps.chosen([block - 1])
      return self.flow.run(averaged, self.flow.at(noisy, t_N), tap, blocks=block).features[0]

    values = {self.flow.name: jnp.mean(loss_N)}
    for term in self.terms:
      context = base.Context(
        noisy=noisy,
        drawn=noisy.drawn.get(term.name),
        heads=network.heads.get(term.name),
        teacher=teach,
        step=step,
        output=output,
        score=functools.partial(self.flow.score, noisy=noisy),
      )
      with jax.named_scope(term.name):
        values[term.name], parts = term.loss(output.features[term.name], context)
        if not term.factor.constant:
          factor = term.factor.at(step)
          values[term.name] *= factor
          parts = {**parts, 'schedule': factor}
      metrics |= {f'{term.name}/{k}': v for k, v in parts.items()}
    return values, metrics
