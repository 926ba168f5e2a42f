"""The parts of a training objective: one flow, and terms that read the block outputs of its pass.

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
import types as python_types
from typing import Any, ClassVar

from flax import nnx
import jax

from diversedit_jax import options, types
from diversedit_jax.data import sources
from diversedit_jax.frozen.encoders import base as encoders_lib
from diversedit_jax.interpolants import section
from diversedit_jax.methods import batches, schedules
from diversedit_jax.models import config as model_config
from diversedit_jax.models import networks, taps
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
    return batches.clean(self.batch)


jax.tree_util.register_dataclass(NoisyBatch)


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
    self.model = networks.make(architecture, execution, rngs=rngs)
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
  reads: ClassVar[tuple[str, ...]] = ()  # Further keys that it looks at, or whole sections.
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

  def adapt(
    self, architecture: model_config.Architecture, execution: model_config.Execution
  ) -> tuple[model_config.Architecture, model_config.Execution]:
    """The model as this part needs it."""
    return architecture, execution

  def idle(self, key: str) -> str:
    """Why an option of its section, by its name there, has no effect beside the others; '' if it
    acts."""
    del key
    return ''


class Flow(Part):
  """Draws the noisy input, owns the forward pass and scores the prediction."""

  @property
  def encoders(self) -> tuple[str, ...]:
    """Names of the frozen encoders whose features are part of its input."""
    return tuple(encoder.name for encoder in self.opened)

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

  def score(self, pred: jax.Array, noisy: NoisyBatch) -> jax.Array:
    """The loss [N] of any prediction [N, H, W, C] for the data of a batch, as `forward` weighs it.

    Raises:
      ValueError: by a flow that compares no prediction with `noisy.target` (MeanFlow).
    """
    raise ValueError(f'a term asks {self.name} for the loss of a prediction, and it has none')

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

Score = Callable[[jax.Array], jax.Array]
"""Prediction [N, H, W, C] -> the flow's loss of it, [N], for the batch of this step."""


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
  score: Score | None = None


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
  combines: ClassVar[bool] = (
    False  # Whether `for_sampling` combines predictions; it then acts last.
  )

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
    """The network as samplers should see it, or what stands for it, as `saying` makes it.

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


def saying(network: Network, change: Callable[..., jax.Array]) -> Network:
  """What stands for a network in samplers: the same, with another prediction.

  change: (output, t_N, y_N) -> prediction [N, H, W, C], of what the model gave.
  """
  return python_types.SimpleNamespace(model=_Saying(network.model, change), heads=network.heads)


class _Saying:
  """What a flow calls in place of a SiT."""

  def __init__(self, model, change):
    self.model, self.change, self.architecture = model, change, model.architecture

  def __call__(self, x_NHWC, t_N, y_N, **inputs):
    output = self.model(x_NHWC, t_N, y_N, **inputs)
    return output._replace(pred=self.change(output, t_N, y_N))


def check_block(field: str, block: int, depth: int) -> None:
  """Refuses a block, counted from 1, that the model does not have (UserError)."""
  if not 1 <= block <= depth:
    raise types.UserError(f'{field}: block {block} is not one of 1 to {depth} (counted from 1)')
