"""What the parts of the analysis look at: networks, examples, and the outputs of their blocks."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import numpy as np

from diversedit_jax import progress, rng, sharding
from diversedit_jax.analysis import section, similarity
from diversedit_jax.data import sources
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.models import config, taps

INPUT = 'input'
UNTOLD = {'view': 'mean', 'labels': 'null'}
"""How parts look that ask what a block has found out: the class is not told to the network."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
  """A network whose blocks are looked at, and how its input is made.

  name: what figures call it. params: of graphdef. objective: the flow alone, see `flow_only`.
  frozen: weights of the encoders that the flow looks at. programs: compiled before, by view.
  """

  name: str
  graphdef: nnx.GraphDef
  params: Mapping[str, Any]
  objective: objective_lib.Objective
  frozen: Mapping[str, Any]
  mesh: jax.sharding.Mesh
  architecture: config.Architecture
  programs: dict[str, Callable[..., jax.Array]] = dataclasses.field(default_factory=dict)

  @property
  def depth(self) -> int:
    """Number of blocks."""
    return self.architecture.depth

  def batches(
    self,
    source: sources.Source,
    indices_N: np.ndarray,
    t_N: np.ndarray | float,
    *,
    key: jax.Array,
    size: int,
    view: str = 'mean',
    labels: str = 'true',
  ) -> Iterator[np.ndarray]:
    """Outputs of every block for noised real examples, batch after batch.

    The noise of an example depends on the key and its index alone, so it is the same at all times
    and for all networks.

    Args:
      source: of the examples. indices_N: which. t_N: time of each, or of all.
      key: of the noise. size: examples of a batch.
      view: see `similarity.view`; 'all' is every token, 'input' the noised examples themselves.
      labels: 'true', or 'null' for every example; without classes there are none.

    Yields:
      float32 [L, b, p], [L, b, T, D] of 'all', [1, b, H, W, C] of 'input'.
    """
    if view not in self.programs:
      self.programs[view] = self._program(view)
    null = self.architecture.null_label
    t_N = np.broadcast_to(np.asarray(t_N, np.float32), len(indices_N))
    size = sharding.round_up(min(size, len(indices_N)), self.mesh)
    for start in range(0, len(indices_N), size):
      these, t = (sharding.pad_rows(x[start : start + size], size) for x in (indices_N, t_N))
      # Copies of a last example fill the batch.
      batch = source.gather(these)
      if labels == 'null' and null is not None:
        batch['labels'] = np.full_like(batch['labels'], null)
      given = self.params, self.frozen, batch, these.astype(np.int32), t, key
      with jax.set_mesh(self.mesh):
        found = self.programs[view](*given)
      found = np.asarray(found)[:, : len(indices_N) - start].astype(np.float32)
      kept = view in ('mean', 'all', INPUT)
      yield found if kept else similarity.view(found, view).astype(np.float32)

  def _program(self, view):
    # The mean is taken where the features are: all of them would be gigabytes at full size.
    tap = taps.token_mean() if view == 'mean' else taps.every()

    def features(params, frozen, batch, index_N, t_N, key):
      network = nnx.merge(self.graphdef, params)
      batch = self.objective.encode(frozen, batch)

      def draw(key, example):
        one = {name: x[None] for name, x in example.items()}
        return jax.tree.map(lambda x: x[0], self.objective.draw(one, key))

      draws = jax.vmap(draw)(rng.per_example(key, index_N), batch)
      labels_N = batch['labels'] if self.architecture.num_classes else draws.y
      draws = dataclasses.replace(self.objective.flow.at(draws, t_N), y=labels_N)
      if view == INPUT:
        return draws.x_t[None]
      return self.objective.flow.run(network, draws, tap).features

    return jax.jit(features, out_shardings=sharding.replicated(self.mesh))


@dataclasses.dataclass(kw_only=True)
class Scope:
  """What one `--mode=analyze` looks at.

  held_out, training: the two splits. objective: the whole training loss, with its terms.
  key: of all noise. step: updates behind the weights, 0 if it is not known.
  batch_size: examples of one gradient in training.
  kept: parameters by step of the run's checkpoints, read when called; {} without a run.
  other: the network to compare with; None without `analysis.against`.
  made: features that were computed before, by what was asked.
  """

  config: section.AnalysisConfig
  subject: Subject
  held_out: sources.Source
  training: sources.Source
  objective: objective_lib.Objective
  key: jax.Array
  step: int = 0
  batch_size: int = 64
  kept: Mapping[int, Callable[[], Mapping[str, Any]]] = dataclasses.field(default_factory=dict)
  other: Subject | None = None
  made: dict[Any, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)

  @property
  def blocks(self) -> list[int]:
    """Numbers of the blocks, from 1."""
    return list(range(1, self.subject.depth + 1))

  @property
  def cka_name(self) -> str:
    """What decides the numbers of `cka`, for headings."""
    config = self.config
    return (
      f'{config.estimator} CKA, {config.kernel} kernel, {len(self.indices)} examples, view '
      f'{config.view}'
    )

  @functools.cached_property
  def indices(self) -> np.ndarray:
    """The held-out examples, spread evenly: where classes follow each other there are all."""
    return spread(len(self.held_out), self.config.examples)

  def batches(self, t: float, subject: Subject | None = None, **how: Any) -> Iterator[np.ndarray]:
    """Block outputs of the held-out examples at a time, see `Subject.batches`.

    subject: None is that of the scope. how: view and labels; those of the config if not given.
    """
    config = self.config
    how = {'view': config.view, 'labels': config.labels, 'size': config.batch_size} | how
    return (subject or self.subject).batches(self.held_out, self.indices, t, key=self.key, **how)

  def features(self, **how: Any) -> np.ndarray:
    """Block outputs at `analysis.times`, see `along`; made once for each way of looking."""
    how = {'view': self.config.view, 'labels': self.config.labels} | how
    known = tuple(how.items())
    if known not in self.made:
      self.made[known] = self.along(self.config.times, **how)
    return self.made[known]

  def along(self, times: Iterable[float], **how: Any) -> np.ndarray:
    """Block outputs at some times, float32 [S, L, n, p]; arguments as of `batches`."""
    times = list(times)
    done = progress.Progress(f'block outputs at {len(times)} times', len(times), 'times')
    rows = []
    for t in times:
      rows.append(np.concatenate(list(self.batches(t, **how)), axis=1))
      done.at(len(rows))
    return np.stack(rows)

  def cka(self, batches: Iterable[np.ndarray], others: Iterable[np.ndarray] | None = None):
    """CKA [L, L], or [L, M] with the blocks of others, by the config's kernel and estimator."""
    config = self.config
    return similarity.of_batches(
      batches,
      others,
      kernel=config.kernel,
      estimator=config.estimator,
      bandwidth=config.bandwidth,
      degree=config.degree,
    )


def spread(there: int, wanted: int) -> np.ndarray:
  """Indices of so many of `there` examples, all if there are fewer, at even distances."""
  count = min(there, wanted)
  return np.arange(count) * there // count
