"""The train state: step, parameters, their average and the optimizer's moments, as plain trees."""

from collections.abc import Callable, Mapping, Sequence
import functools
import math
from typing import Any, NamedTuple

from flax import nnx, struct
import jax
import jax.numpy as jnp
import optax

from diversedit_jax import checkpoint, restore_targets, sharding, trees, types
from diversedit_jax.training import average, initial, optim, patterns

Params = dict[str, Any]


@struct.dataclass
class TrainState:
  """step: updates made, int32. params, ema: nested dicts, float32. opt_state: optax.

  averages: further ones by name, each like ema.
  """

  step: jax.Array
  params: Params
  ema: Params
  opt_state: Any
  averages: dict[str, Params] = struct.field(default_factory=dict)

  def items(self) -> dict[str, Any]:
    """The checkpoint's items of arrays; the step is the checkpoint's own."""
    more = {average.item(name): tree for name, tree in self.averages.items()}
    return {'params': self.params, 'ema': self.ema, 'opt': self.opt_state, **more}

  def weights(self, name: str) -> Params:
    """The parameters that `sample.weights` names: those of an item."""
    return self.items()[name]


class Placed(NamedTuple):
  """Initial parameters on the devices, by path: whole arrays; and rows of others, with numbers."""

  arrays: Mapping[str, jax.Array]
  parts: Mapping[str, tuple[Any, jax.Array]]


AT_RANDOM = Placed({}, {})


def _fixed(variables) -> set[str]:
  """Names of the parameters that their modules mark as fixed, with `nnx.Param(x, fixed=True)`."""
  marked = lambda x: x.get_metadata().get('fixed', False)
  flat = nnx.to_flat_state(variables)
  return {'/'.join(map(str, path)) for path, x in flat if marked(x)}


class Trainable:
  """Builds, shards, initialises and restores the state of one network under one optimizer."""

  def __init__(
    self,
    make_network: Callable[[nnx.Rngs], nnx.Module],
    tx: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    *,
    shard_over_data: bool = False,
    freeze: str = '',
    averages: Sequence[average.Average] = (),
  ):
    """Traces the network once, without allocating it.

    Args:
      make_network: nnx.Rngs -> Network.
      tx: the optimizer.
      mesh: from `sharding.make_mesh`.
      shard_over_data: splits moments and average over 'data' as well.
      freeze: patterns of parameters that are not trained, see `patterns`.
      averages: those that are kept beside the main one.

    Raises:
      UserError: a pattern of no parameter, or nothing is left to train.
    """
    self._make, self._tx, self.mesh = make_network, tx, mesh
    self.averages = {str(one): one for one in averages}
    self.graphdef, variables, rest = nnx.split(
      nnx.eval_shape(lambda: make_network(nnx.Rngs(0))), nnx.Param, ...
    )
    if jax.tree.leaves(rest):
      raise ValueError(f'modules must hold parameters only, found {list(trees.named_leaves(rest))}')
    self.params = nnx.to_pure_dict(variables)
    names = trees.named_leaves(self.params)
    self.fixed = patterns.matching(freeze, names, 'optimizer.freeze') | _fixed(variables)
    if not self.trained(self.params):
      raise types.UserError(f'optimizer.freeze={freeze!r} leaves nothing to train')
    self.param_shardings = nnx.to_pure_dict(sharding.shardings_of(variables, mesh))
    self.ema_shardings = self.param_shardings
    if shard_over_data:
      self.ema_shardings = sharding.split_over_data(self.params, self.param_shardings, mesh)

  def trained(self, params: Params) -> Params:
    """What is not frozen of parameters or of their shardings, which is what the optimizer sees."""
    return trees.without(params, self.fixed)

  @functools.cached_property
  def opt_state(self) -> Any:
    """Shapes of the optimizer's state."""
    return jax.eval_shape(self._tx.init, self.trained(self.params))

  @functools.cached_property
  def shardings(self) -> TrainState:
    """Shardings of the whole state, moments beside the average.

    Made on first use, because `optax.tree_map_params` allocates.
    """
    whole, placed = sharding.replicated(self.mesh), self.ema_shardings
    of_opt = optax.tree_map_params(
      self._tx,
      lambda x, s: x if isinstance(x, optax.MaskedNode) else s,  # Parameters of another optimizer.
      self.opt_state,
      self.trained(placed),
      transform_non_params=lambda _: whole,
      is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )
    return TrainState(
      step=whole,
      params=self.param_shardings,
      ema=placed,
      opt_state=of_opt,
      averages=dict.fromkeys(self.averages, placed),
    )

  def moment_bytes(self) -> int:
    """Bytes of the optimizer's state on a device, by shapes and names alone; nothing is made."""
    placed = trees.named_leaves(self.trained(self.ema_shardings))
    total = 0
    for path, x in trees.named_leaves(self.opt_state).items():
      its = next((s for name, s in placed.items() if path.endswith(f'/{name}')), None)
      shape = x.shape if its is None else its.shard_shape(x.shape)
      total += math.prod(shape) * x.dtype.itemsize
    return total

  def place(self, start: initial.Start) -> Placed:
    """The arrays of a start on the devices, each where its parameter will be; `init` takes them."""
    shardings, whole = trees.named_leaves(self.param_shardings), sharding.replicated(self.mesh)
    put = lambda x, where: jax.make_array_from_callback(x.shape, where, lambda index: x[index])
    arrays = {n: put(x, shardings[n]) for n, x in start.values.items() if n not in start.rows}
    parts = {n: (rows, put(start.values[n], whole)) for n, rows in start.rows.items()}
    return Placed(arrays, parts)

  def init(self, key: jax.Array, placed: Placed = AT_RANDOM) -> TrainState:
    """A fresh state, each array created in its place; averages start as copies.

    placed: what takes the place of random parameters; its arrays become those of the state.
    """
    return self._create(key, *placed)

  @functools.cached_property
  def _create(self):
    """Traced and compiled once, however often a state is made anew."""

    def create(key, arrays, parts):
      network = self._make(nnx.Rngs(params=key))
      params = _replaced(nnx.to_pure_dict(nnx.state(network, nnx.Param)), arrays, parts)
      return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=self._tx.init(self.trained(params)),
        averages={name: jax.tree.map(jnp.copy, params) for name in self.averages},
      )

    return jax.jit(create, out_shardings=self.shardings, donate_argnums=1)

  def targets(self, *names: str) -> dict[str, Any]:
    """Restore targets of checkpoint items: 'params', averages by `average.item`, 'opt'.

    All by default; then an average that a checkpoint lacks is left out.
    """
    shardings, found = self.shardings, {}
    for name in names or (*checkpoint.ITEMS, *map(average.item, self.averages)):
      if name == 'opt':
        target = restore_targets.make(self.opt_state, shardings.opt_state)
        found[name] = restore_targets.OneOf((target, optim.other_form(target)))
        continue
      placed = shardings.params if name == 'params' else shardings.ema
      found[name] = restore_targets.make(self.params, placed)
      if not names and name not in checkpoint.ITEMS:
        found[name] = restore_targets.IfThere(found[name])
    return found

  def assemble(self, step: int, items: Mapping[str, Any]) -> TrainState:
    """A state from restored items; an average that is not among them begins as the parameters."""
    step = jax.device_put(jnp.asarray(step, jnp.int32), self.shardings.step)
    opt_state = items['opt']
    if jax.tree.structure(opt_state) != jax.tree.structure(self.opt_state):
      opt_state = optim.other_form(opt_state)
    copied = jax.jit(lambda x: jax.tree.map(jnp.copy, x), out_shardings=self.ema_shardings)
    given = {name: items.get(average.item(name)) for name in self.averages}
    averages = {k: copied(items['params']) if x is None else x for k, x in given.items()}
    return TrainState(
      step=step,
      params=items['params'],
      ema=items['ema'],
      opt_state=opt_state,
      averages=averages,
    )


def _replaced(params, arrays, parts):
  """Parameters with given arrays, and rows of arrays, in their place."""

  def of(path, leaf):
    name = trees.path_name(path)
    if name in parts:
      rows, values = parts[name]
      return leaf.at[rows].set(values)
    return arrays.get(name, leaf)

  return jax.tree_util.tree_map_with_path(of, params)


def bytes_per_device(state: Any) -> int:
  """Bytes of the state on the first device."""
  first = jax.devices()[0]
  return sum(
    shard.data.nbytes
    for leaf in jax.tree.leaves(state)
    for shard in leaf.addressable_shards
    if shard.device == first
  )
