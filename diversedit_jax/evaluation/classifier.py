"""A small classifier of one's own pictures, to score samples where Inception means little or is not
at hand.

Three stages of 3x3 convolutions, each halving the picture, and a mean over positions:

  stage    x <- GELU(LN(Conv3(x))), twice, the second with stride 2
  pool     z = GELU(Linear(mean_hw x)), the features of Fréchet distance, precision and recall
  logits   Linear(z), whose likeliest class the class consistency asks for

It is trained here on the real training split. Its numbers compare with those of the same file only.
"""

from collections.abc import Iterator, Sequence
import functools
import itertools
import os
import pathlib
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from diversedit_jax import progress, rng, trees, types
from diversedit_jax.data import files, images, order, sources
from diversedit_jax.evaluation import feature_network, pictures
from diversedit_jax.evaluation import scores as scores_lib
from diversedit_jax.weights import array_files

WIDTHS = (32, 64, 128)
POOL = 128
_FACTS = 'facts/'  # Arrays of the file that are no weights.
_BATCH = 128
_RATE = 2e-3
_FLOOR = 10_000  # Training pictures of which the floor is made.


class Classifier(nnx.Module):
  """The network above. classes: number of them. widths: channels of each stage."""

  def __init__(self, classes: int, widths: Sequence[int] = WIDTHS, *, rngs: nnx.Rngs):
    stages, before = [], 3
    for width in widths:
      for inputs, stride in ((before, 1), (width, 2)):
        conv = nnx.Conv(inputs, width, (3, 3), strides=stride, use_bias=False, rngs=rngs)
        stages.append(nnx.Dict(conv=conv, norm=nnx.LayerNorm(width, rngs=rngs)))
      before = width
    self.stages = nnx.List(stages)
    self.pool = nnx.Linear(before, POOL, rngs=rngs)
    self.head = nnx.Linear(POOL, classes, rngs=rngs)

  def __call__(self, x_NHWC: jax.Array) -> dict[str, jax.Array]:
    """'pool' [N, 128] and 'logits' [N, K] of pictures in [-1, 1]."""
    for stage in self.stages:
      x_NHWC = jax.nn.gelu(stage['norm'](stage['conv'](x_NHWC)))
    z_ND = jax.nn.gelu(self.pool(jnp.mean(x_NHWC, axis=(1, 2))))
    return {'pool': z_ND, 'logits': self.head(z_ND)}


class Fitted(NamedTuple):
  """A trained classifier. params: a nested dict. facts: see `fit`."""

  params: dict[str, Any]
  facts: dict[str, float]


def fit(
  train: sources.Source,
  test: sources.Source,
  *,
  epochs: int,
  seed: int,
  widths: Sequence[int] = WIDTHS,
) -> Fitted:
  """Trains on all pictures of a source; AdamW, cosine, mirrored at random.

  Args:
    train, test: labelled pictures of the same classes. epochs: passes over `train`.
    seed: of parameters, order and mirroring. widths: channels of each stage.

  Returns:
    The classifier, with 'test_accuracy', its share of right answers on the held-out split, and
    'fid_floor', the Fréchet distance in its features of real training pictures to the held-out
    ones, below which differences mean nothing.

  Raises:
    UserError: pictures that are not square and coloured, or without classes.
  """
  for source in (train, test):
    pictures.check_source(source)
  if not train.num_classes:
    raise types.UserError(f'{train.name} has no classes, so there is nothing to classify')
  graphdef, state = nnx.split(Classifier(train.num_classes, widths, rngs=nnx.Rngs(seed)))
  params = nnx.to_pure_dict(state)
  size = min(_BATCH, len(train))
  steps = max(epochs * (len(train) // size), 1)
  tx = optax.adamw(optax.cosine_decay_schedule(_RATE, steps), weight_decay=1e-2)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def update(params, opt_state, x, y, key):
    mirrored = jax.random.bernoulli(key, shape=(len(x), 1, 1, 1))
    x = images.from_uint8(jnp.where(mirrored, x[:, :, ::-1], x))

    def loss(params):
      logits = nnx.merge(graphdef, params)(x)['logits']
      return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    value, grads = jax.value_and_grad(loss)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value

  opt_state, key = tx.init(params), jax.random.key(seed)
  meter = progress.Progress('classifier: training', steps * size, 'images')
  for step in range(steps):
    batch = train.gather(order.batch_indices(seed, step, size, len(train)))
    x, y = pictures.pixels(batch), batch['labels']
    params, opt_state, _ = update(params, opt_state, x, y, rng.stream(key, 'mirror', step))
    meter.at((step + 1) * size)
  return Fitted(params, _facts(graphdef, params, train, test, seed))


def _facts(graphdef, params, train, test, seed):
  run = jax.jit(lambda params, x: nnx.merge(graphdef, params)(images.from_uint8(x)))
  few = order.permutation(seed, 0, len(train))[:_FLOOR]
  pool, _ = _features(run, params, train, few)
  held_out, right = _features(run, params, test, np.arange(len(test)))
  statistics = (scores_lib.gaussian_statistics(x) for x in (pool, held_out))
  (mu, sigma), (mu_r, sigma_r) = statistics
  floor = scores_lib.frechet_distance(mu, sigma, mu_r, sigma_r)
  return {'test_accuracy': float(right.mean()), 'fid_floor': float(floor)}


def _features(run, params, source, indices):
  """'pool' [n, 128] and whether the likeliest class is right [n], of some pictures."""
  found = []
  for part in _parts(indices):
    batch = source.gather(part)
    made = jax.device_get(run(params, pictures.pixels(batch)))
    found.append((made['pool'], made['logits'].argmax(axis=1) == batch['labels']))
  pool, right = zip(*found, strict=True)
  return np.concatenate(pool).astype(np.float64), np.concatenate(right)


def _parts(indices) -> Iterator[np.ndarray]:
  return (indices[start : start + 512] for start in range(0, len(indices), 512))


def save(path: pathlib.Path, fitted: Fitted) -> None:
  """Writes a classifier to one file, whole or not at all."""
  facts = {f'{_FACTS}{name}': np.float64(value) for name, value in fitted.facts.items()}
  with files.atomic(path) as temporary:
    array_files.save(temporary, {k: np.asarray(x) for k, x in _named(fitted.params)} | facts)


def open_network(path: str | os.PathLike[str], classes: int) -> feature_network.FeatureNetwork:
  """The classifier of a file, to score samples of so many classes.

  Raises:
    UserError: as `array_files.load`; or it is no classifier, or one of other classes.
  """
  arrays = array_files.load(path)
  facts = {k.removeprefix(_FACTS): float(x) for k, x in arrays.items() if k.startswith(_FACTS)}
  weights = {k: x for k, x in arrays.items() if not k.startswith(_FACTS)}
  strided = (weights.get(f'stages/{2 * i + 1}/conv/kernel') for i in range(len(weights)))
  widths = [kernel.shape[-1] for kernel in itertools.takewhile(lambda x: x is not None, strided)]
  abstract = nnx.eval_shape(lambda: Classifier(classes, widths or WIDTHS, rngs=nnx.Rngs(0)))
  graphdef, state = nnx.split(abstract)
  wanted = nnx.to_pure_dict(state)
  found, needed = ({k: x.shape for k, x in named} for named in (weights.items(), _named(wanted)))
  if found != needed:
    other = weights.get('head/kernel')
    of = 'no classifier' if other is None else f'a classifier of {other.shape[-1]} classes'
    raise types.UserError(
      f'eval.classifier={path} holds {of}, and the data have {classes} classes; --mode=classifier '
      'with the same data makes one'
    )
  leaves = [weights[name] for name in needed]
  params = jax.tree.unflatten(jax.tree.structure(wanted), leaves)

  def features(params, x_NHWC):
    with jax.default_matmul_precision('highest'):  # As in Inception.
      return nnx.merge(graphdef, params)(images.from_uint8(x_NHWC))

  return feature_network.FeatureNetwork(
    name='classifier',
    file=pathlib.PurePath(path).name,
    sha256=array_files.digest(weights.items()),
    random=False,
    resize='none',
    params=params,
    features=features,
    labelled=True,
    measured=facts,
  )


def _named(params):
  return trees.named_leaves(params).items()
