"""A training objective: one flow, and terms that read the block outputs of its forward pass.

A term is one file in this folder: options, mathematics and construction. It may bring heads
(parameters trained with the model), says through a tap what it needs of the block outputs, and
turns that into a scalar and metrics:

  batch = objective.encode(frozen, batch)                   frozen encoders, if any
  noisy = objective.draw(batch, key)                        t, noise, x_t, target, dropped labels
  output, loss_N, _ = flow.forward(network, noisy, taps)    the model once, whatever is combined
  loss = mean(loss_N) + sum of term.factor.at(step) term.loss(its features, context)

A flow owns its forward pass, so it may also differentiate it (MeanFlow) or give the model more than
x, t and y (REG). A term may look at the whole batch, frozen features included, and at the teacher,
the averaged network, which receives no gradient.
"""

import abc
from collections.abc import Callable, Mapping
import dataclasses
import functools
import math
import operator
from typing import Any, ClassVar

from flax import nnx
import jax
import jax.numpy as jnp

from diversedit_jax import options, rng, types
from diversedit_jax.data import images, sources
from diversedit_jax.data import latents as latents_lib
from diversedit_jax.frozen.encoders import base as encoders_lib
from diversedit_jax.interpolants import section
from diversedit_jax.methods import schedules
from diversedit_jax.models import config as model_config
from diversedit_jax.models import sit, taps
from diversedit_jax.sampling import guidance, trajectory

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class NoisyBatch:
  """Everything random of one step, for every example of the batch."""

  x_t: jax.Array  # [N, H, W, C], the noisy input
  t: jax.Array  # [N]
  y: jax.Array  # [N], the null label where dropped
  target: jax.Array  # [N, H, W, C], what the flow regresses
  noise: jax.Array  # [N, H, W, C]
  batch: types.Batch  # What the draw was made from, and whatever else the data bring.
  extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # What else the flow drew.
  drawn: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # By the terms, by name.

  @property
  def clean(self) -> jax.Array:
    """The data without noise, [N, H, W, C]."""
    return clean(self.batch)


jax.tree_util.register_dataclass(NoisyBatch)


def clean(batch: types.Batch) -> jax.Array:
  """What the model learns to make, [N, H, W, C] float32: images, or latents."""
  return _floating(batch['images' if 'images' in batch else 'latents'])


def sample_latents(
  batch: types.Batch, key: jax.Array, scaling: latents_lib.Scaling | None
) -> types.Batch:
  """The batch with latents drawn from its moments, if it has any; a new draw at every key."""
  if 'moments' not in batch:
    return batch
  rest = {name: x for name, x in batch.items() if name != 'moments'}
  *shape, channels = batch['moments'].shape
  eps_NHWC = rng.normal(key, (*shape, channels // 2))
  return {**rest, 'latents': latents_lib.sample(batch['moments'], eps_NHWC, scaling)}


class Network(nnx.Module):
  """The model and the heads that the terms bring; all its parameters are trained and averaged."""

  def __init__(
    self,
    architecture: model_config.Architecture,
    execution: model_config.Execution = model_config.PLAIN,
    terms: tuple['Term', ...] = (),
    *,
    rngs: nnx.Rngs,
  ):
    self.model = sit.SiT(architecture, execution, rngs=rngs)
    heads = {term.name: term.heads(architecture, execution, rngs=rngs) for term in terms}
    self.heads = nnx.Dict({name: head for name, head in heads.items() if head is not None})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
  """What a method may look at while it is made.

  method: its name, all parts. parts: all parts that there are by name, as the config sets them.
  architecture, execution: the model, shaped for the data. source: training data.
  interpolant: path, prediction, weighting and law of time.
  label_dropout: probability of the null label. ema_decay: decay of the averaged network.
  batch_size: examples of a step. examples: those of a microbatch.
  mirrored: whether examples are mirrored by a fair coin.
  """

  method: str
  parts: Mapping[str, 'Part']
  architecture: model_config.Architecture
  execution: model_config.Execution
  source: sources.Source
  interpolant: section.Interpolant
  label_dropout: float
  ema_decay: float
  batch_size: int
  examples: int
  mirrored: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part(options.Section, abc.ABC):
  """A flow or a term. Its fields made by `options.option` are keys of the config.

  `registry.register` sets its name, its section and what it cannot stand beside.

  opened: the frozen encoders that it looks at.
  """

  opened: tuple[encoders_lib.Encoder, ...] = dataclasses.field(default=(), repr=False)
  name: ClassVar[str]
  not_with: ClassVar[Mapping[str, str]] = {}
  reads: ClassVar[tuple[str, ...]] = ()  # Further sections whose options it looks at.
  needs_pixels: ClassVar[bool] = False  # Whether it shows pixels to a frozen encoder.
  needs_teacher: ClassVar[bool] = False  # Whether it runs the averaged network.
  couples_examples: ClassVar[bool] = False  # Whether its loss is no mean over examples.
  recipe: ClassVar[Mapping[str, Any]] = {}  # What its paper sets otherwise, by key of the config.

  def prepare(self, setup: Setup) -> 'Part':
    """This part as it is used: what follows from the data and the model filled in.

    Raises:
      UserError: for what they do not allow.
    """
    del setup
    return self


class Flow(Part):
  """Draws the noisy input, owns the forward pass and scores the prediction."""

  @property
  def encoders(self) -> tuple[str, ...]:
    """Names of the frozen encoders whose features are part of its input."""
    return tuple(encoder.name for encoder in self.opened)

  def adapt(
    self, architecture: model_config.Architecture, execution: model_config.Execution
  ) -> tuple[model_config.Architecture, model_config.Execution]:
    """The model as this flow needs it."""
    return architecture, execution

  def terms(self, setup: Setup) -> tuple['Term', ...]:
    """Terms that belong to the flow, prepared."""
    del setup
    return ()

  @abc.abstractmethod
  def check_model(
    self, architecture: model_config.Architecture, execution: model_config.Execution
  ) -> None:
    """Refuses a model that the flow cannot use (UserError)."""

  @abc.abstractmethod
  def check_sampler(self, sampler: trajectory.SamplerConfig) -> None:
    """Refuses a sampler that the flow cannot use (UserError)."""

  @abc.abstractmethod
  def draw(self, batch: types.Batch, key: jax.Array) -> NoisyBatch:
    """Times, noise and dropped labels for a batch."""

  @abc.abstractmethod
  def at(self, noisy: NoisyBatch, t_N: jax.Array) -> NoisyBatch:
    """The same data, noise and labels at other times."""

  @abc.abstractmethod
  def run(
    self, network: Network, noisy: NoisyBatch, tap: taps.Tap, blocks: int | None = None
  ) -> types.Output:
    """The model on a noisy batch, without a loss; only its first blocks if a number is given."""

  @abc.abstractmethod
  def forward(
    self, network: Network, noisy: NoisyBatch, tap: taps.Tap
  ) -> tuple[types.Output, jax.Array, Metrics]:
    """Prediction and the tap's features, the per-example loss [N] and metrics, from one pass."""

  @abc.abstractmethod
  def velocity(self, network: Network, clamp: float = 0.0) -> guidance.Predict:
    """(x, t_N, y_N) -> velocity of the structure of x; clamp: as of `sampler.clamp`."""

  @abc.abstractmethod
  def sample(
    self,
    network: Network,
    keys_N: jax.Array,
    labels_N: jax.Array,
    config: trajectory.SamplerConfig,
    guide: guidance.Predict | None = None,
  ) -> jax.Array:
    """Samples [N, H, W, C], each a function of its key and label.

    guide: the velocity of `config.autoguidance`.
    """

  def extra_passes(self) -> float:
    """What a step costs beyond one forward and one backward pass, in forward passes."""
    return 0.0


Teacher = Callable[[jax.Array, int], jax.Array]
"""(t_N, block) -> [N, T, D], the output of that block (counted from 1) of the averaged network for
the same data, noise and labels at t_N, or at whatever else the flow's `at` takes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
  """What a term may look at besides the features it asked for.

  noisy: batch of this step. drawn: what its own `draw` returned. heads: its own, or None.
  teacher: one forward pass of the averaged network, without gradient.
  step: number of updates made, int32.
  output: what the model gave in this step; `pred` is for `noisy.target`, and None where the flow
    compares something else with it (MeanFlow).
  """

  noisy: NoisyBatch
  drawn: Any
  heads: nnx.Module | None
  teacher: Teacher
  step: jax.Array
  output: types.Output | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term(Part):
  """One additional loss on the block outputs; a subclass has `loss` and overrides what it needs.

  It says so if its loss is a mean over examples, which microbatches do not change.
  """

  schedule: str = options.option(
    'constant',
    doc=f'What multiplies its weight over the run, counted in updates: {schedules.FORMS}; see '
    'docs/methods.md.',
  )
  couples_examples = True

  def __post_init__(self):
    super().__post_init__()
    schedules.parse(self.schedule, f'{self.section}.schedule')

  @property
  def factor(self) -> schedules.Schedule:
    """What multiplies the loss over the run; `loss` itself knows nothing of it."""
    return schedules.parse(self.schedule, f'{self.section}.schedule')

  def check(self, architecture: model_config.Architecture, examples: int) -> None:
    """Refuses a model, or a number of examples per microbatch, that the term cannot use."""
    del architecture, examples

  def heads(
    self,
    architecture: model_config.Architecture,
    execution: model_config.Execution,
    *,
    rngs: nnx.Rngs,
  ) -> nnx.Module | None:
    """Extra parameters, or None."""
    del architecture, execution, rngs

  def draw(self, key: jax.Array, n: int) -> Any:
    """What is random for each example, [N, ...]; drawn before the batch is cut."""
    del key, n
    return ()

  def tap(self, key: jax.Array, depth: int) -> taps.Tap:
    """What the term needs of the block outputs; the key is of this step."""
    del key, depth
    return taps.nothing()

  @abc.abstractmethod
  def loss(self, features: Any, context: Context) -> tuple[jax.Array, Metrics]:
    """The scalar that is added to the batch mean of the flow's loss, and metrics by name."""

  def for_sampling(self, network: Network) -> Network:
    """The network as samplers should see it, or what stands for it.

    Args:
      network: its `model` is a SiT, or the same to whoever calls it.

    Raises:
      UserError: something that is needed for that is not there.
    """
    return network

  def sampling_facts(self) -> Mapping[str, Any]:
    """What `for_sampling` changes, for protocol cards."""
    return {}

  def flops(self, architecture: model_config.Architecture, examples: int) -> float:
    """What it adds to a training step with so many examples per microbatch.

    FLOPs per example, of matrix products only; a multiply-add is 2.
    """
    del architecture, examples
    return 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """A flow with its terms and the encoders they look at: the whole training loss of a method."""

  flow: Flow
  terms: tuple[Term, ...] = ()
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
    network: Network,
    keys_N: jax.Array,
    labels_N: jax.Array,
    config: trajectory.SamplerConfig,
    guide: guidance.Predict | None = None,
  ) -> jax.Array:
    """Samples of the flow, see there, of the network as its terms want it sampled."""
    return self.flow.sample(self._as_sampled(network), keys_N, labels_N, config, guide)

  def velocity(self, network: Network, clamp: float = 0.0) -> guidance.Predict:
    """The velocity of the flow, see there, of the network as its terms want it sampled."""
    return self.flow.velocity(self._as_sampled(network), clamp)

  def _as_sampled(self, network):
    for term in self.terms:
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
      added = features(pixels(batch))
    else:
      added = jax.lax.map(features, microbatches(pixels(batch), parts))
      added = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), added)
    return {**batch, **jax.lax.stop_gradient(added)}

  @jax.named_scope('draw')
  def draw(self, batch: types.Batch, key: jax.Array) -> NoisyBatch:
    """All randomness of a step that belongs to single examples."""
    batch = sample_latents(batch, rng.stream(key, 'posterior'), self.scaling)
    noisy = self.flow.draw(batch, key)
    n = noisy.t.shape[0]
    drawn = {term.name: term.draw(rng.stream(key, term.name), n) for term in self.terms}
    return dataclasses.replace(noisy, drawn=drawn)

  def loss(
    self,
    network: Network,
    noisy: NoisyBatch,
    *,
    key: jax.Array,
    step: jax.Array,
    teacher: Network | None = None,
  ) -> tuple[jax.Array, Metrics]:
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
    network: Network,
    noisy: NoisyBatch,
    *,
    key: jax.Array,
    step: jax.Array,
    teacher: Network | None = None,
  ) -> tuple[dict[str, jax.Array], Metrics]:
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
      context = Context(
        noisy=noisy,
        drawn=noisy.drawn.get(term.name),
        heads=network.heads.get(term.name),
        teacher=teach,
        step=step,
        output=output,
      )
      with jax.named_scope(term.name):
        values[term.name], parts = term.loss(output.features[term.name], context)
        if not term.factor.constant:
          factor = term.factor.at(step)
          values[term.name] *= factor
          parts = {**parts, 'schedule': factor}
      metrics |= {f'{term.name}/{k}': v for k, v in parts.items()}
    return values, metrics


def check_block(field: str, block: int, depth: int) -> None:
  """Refuses a block, counted from 1, that the model does not have (UserError)."""
  if not 1 <= block <= depth:
    raise types.UserError(f'{field}: block {block} is not one of 1 to {depth} (counted from 1)')


def pixels(batch: types.Batch) -> jax.Array:
  """Pixels in [-1, 1], float32, whether they are the data or lie beside latents."""
  return _floating(batch['pixels'] if 'pixels' in batch else batch['images'])


def _floating(x_NHWC: jax.Array) -> jax.Array:
  if x_NHWC.dtype == jnp.uint8:
    return images.from_uint8(x_NHWC)
  return x_NHWC.astype(jnp.promote_types(x_NHWC.dtype, jnp.float32))


def microbatches(noisy: Any, n: int) -> Any:
  """[N, ...] -> [n, N/n, ...] by strided rows, so that each part stays spread over the devices."""

  def split(x):
    return jnp.swapaxes(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 0, 1)

  return jax.tree.map(split, noisy)


def mean_metrics(stacked: Mapping[str, jax.Array]) -> Metrics:
  """The mean over a leading axis of microbatches."""
  return {k: jnp.mean(v, axis=0) for k, v in stacked.items()}
