"""Finds the family of weights and the config that fits them, by names and shapes alone."""

from collections.abc import Iterable, Mapping
import math
from typing import Any

import numpy as np

from diversedit_jax import trees, types
from diversedit_jax.convert import diffusers_dit, families
from diversedit_jax.models import blocks, sizes

_SIZED = ('model/patch_embed/kernel', 'model/patch_embed/bias', 'model/final/linear/bias')


def detect(weights: Mapping[str, Any]) -> str:
  """The family of a state dict, or the family in which our parameters can be written.

  Args:
    weights: arrays by the other system's names, or our parameters, nested or by slash-joined names.

  Returns:
    A name of `families.FAMILIES`; 'sit' if nothing points to another. The original SiT trained
    without `learn_sigma` gives 'sit' too: its names and shapes are REPA's, its clock is not.

  Raises:
    UserError: the head has twice the channels, as both the original SiT and DiT have.
  """
  shapes = {name: tuple(np.shape(leaf)) for name, leaf in trees.named_leaves(dict(weights)).items()}
  if diffusers_dit.recognises(shapes):
    return 'dit'
  for name, family in families.FAMILIES.items():
    fits = learns_sigma(family, shapes) in (None, family.learns_sigma)
    if fits and is_marked(family, shapes):
      return name
  if len(shapes.get('x_embedder.proj.weight', ())) == 2:  # A convolution in all others.
    return 'selfflow'
  if learns_sigma(families.FAMILIES['sit'], shapes):
    raise types.UserError(
      'the head has twice the channels of the input, as in the original SiT and in DiT, which '
      'have the same names and shapes; give --family=sit_original or --family=dit'
    )
  return 'sit'


def is_marked(family: families.Family, names: Iterable[str]) -> bool:
  """Whether a name, theirs or ours, has one of the family's marks."""
  return any(name.startswith(family.marks) for name in names)


def learns_sigma(family: families.Family, shapes: Mapping[str, tuple[int, ...]]) -> bool | None:
  """Whether the head has 2C channels, by their names or ours; None where the shapes do not tell."""
  rules = {rule.ours: rule for rule in family.rules}
  for names in ([rules[path].torch for path in _SIZED], _SIZED):
    if all(name in shapes for name in names):
      patches, width, head = (math.prod(shapes[name]) for name in names)
      return head * width == 2 * patches
  return None


def config_keys(inferred: Mapping[str, Any], family: families.Family) -> list[str]:
  """The config keys of a model that these weights fit, as 'model.qk_norm=True'.

  Args:
    inferred: the sizes from `mapping.infer_config`.
    family: the family of the weights.
  """
  keys = _size(inferred)
  if inferred['mlp_ratio'] not in (None, 4.0):
    keys.append(f'model.mlp_ratio={inferred["mlp_ratio"]:g}')
  if inferred['skips']:
    keys.append('model.skip.enabled=True')
  keys += [f'model.{name}=True' for name in ('qk_norm', 'learn_sigma') if inferred[name]]
  keys += _parts(inferred) + _head(inferred)
  # These parts of the model come with a method and have no key of their own.
  brought = {'meanflow': 'interval', 'reg': 'class_token', 'internal': 'base'}
  methods = [method for method, part in brought.items() if inferred[part]]
  if methods:
    keys.append(f'method={"+".join(methods)}')
  if inferred['base']:
    keys.append('internal.block=?')
  return keys + list(family.config)


def _parts(inferred) -> list[str]:
  """The block by its published name, and the parts that are not its own."""
  parts_of = {name: blocks.parts(name).items() for name in blocks.NAMES}
  unlike = {name: [k for k, v in parts if inferred[k] != v] for name, parts in parts_of.items()}
  block = min(unlike, key=lambda name: len(unlike[name]))
  named = [f'model.block={block}'] if block != 'sit' else []
  return [*named, *(f'model.{part}={inferred[part]}' for part in unlike[block])]


def _head(inferred) -> list[str]:
  keys = []
  if inferred['context']:
    both = zip(('time', 'label'), inferred['context'], strict=True)
    keys += [f'model.context.{name}={count}' for name, count in both]
  if inferred['decoder']:
    both = zip(('depth', 'width', 'heads'), inferred['decoder'], strict=True)
    keys += [f'model.head.{name}={"?" if x is None else x}' for name, x in both]
  return keys


def _size(inferred) -> list[str]:
  """The name of a published size, or the four numbers, with '?' for unknown ones."""
  asked = [inferred[name] for name in ('depth', 'width', 'patch_size')]
  for name, size in sizes.SIZES.items():
    if asked == [size.depth, size.width, size.patch_size] and inferred['heads'] in (
      None,
      size.heads,
    ):
      return [f'model.size={name}']
  depth, width, patch_size = ('?' if x is None else x for x in asked)
  return [
    "model.size=''",
    f'model.depth={depth}',
    f'model.width={width}',
    f'model.heads={inferred["heads"] or "?"}',
    f'model.patch_size={patch_size}',
  ]
