"""Which family weights are of, and which config fits them: by names and shapes alone."""

from collections.abc import Mapping
import math
from typing import Any

import numpy as np

from diversedit_jax import trees, types
from diversedit_jax.convert import families
from diversedit_jax.models import sizes

_SIZED = ('model/patch_embed/kernel', 'model/patch_embed/bias', 'model/final/linear/bias')


def detect(weights: Mapping[str, Any]) -> str:
  """The family of a state dict, or the one in which our parameters can be written.

  Args:
    weights: arrays by the other system's names, or our parameters, nested or by slash-joined names.

  Returns:
    A name of `families.FAMILIES`; 'sit' where nothing tells of another. The original SiT trained
    without `learn_sigma` is such a case: its names and shapes are REPA's, its clock is not.

  Raises:
    UserError: a head of twice the channels, which the original SiT and DiT share.
  """
  shapes = {name: tuple(np.shape(leaf)) for name, leaf in trees.named_leaves(dict(weights)).items()}
  for name, family in families.FAMILIES.items():
    if family.mark and _has(family, shapes):
      return name
  if learns_sigma(families.FAMILIES['sit'], shapes):
    raise types.UserError(
      'the head has two channels for each of the input: the original SiT and DiT have such a head '
      'under the same names, and nothing tells them apart. Say which it is: '
      '--family=sit_original or --family=dit'
    )
  return 'sit'


def learns_sigma(family: families.Family, shapes: Mapping[str, tuple[int, ...]]) -> bool | None:
  """Whether the head has 2C channels, by their names or ours; None where the shapes do not tell."""
  rules = {rule.ours: rule for rule in family.rules}
  for names in ([rules[path].torch for path in _SIZED], _SIZED):
    if all(name in shapes for name in names):
      patches, width, head = (math.prod(shapes[name]) for name in names)
      return head * width == 2 * patches
  return None


def config_keys(inferred: Mapping[str, Any], family: families.Family) -> list[str]:
  """What a config must say for a model that these weights fit, as 'model.qk_norm=True'.

  Args:
    inferred: of `mapping.infer_config`.
  """
  keys = _size(inferred)
  if inferred['mlp_ratio'] not in (None, 4.0):
    keys.append(f'model.mlp_ratio={inferred["mlp_ratio"]:g}')
  if inferred['skips']:
    keys.append('model.skip.enabled=True')
  keys += [f'model.{name}=True' for name in ('qk_norm', 'learn_sigma') if inferred[name]]
  # The method gives the model these two, not a key of its own.
  keys += [
    f'method={m}'
    for m, part in (('meanflow', 'interval'), ('reg', 'class_token'))
    if inferred[part]
  ]
  return keys + list(family.config)


def _size(inferred) -> list[str]:
  """The name of a published size, or the four numbers; heads that nothing tells are a '?'."""
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


def _has(family, shapes) -> bool:
  """Whether any name, theirs or ours, is of the part that marks the family."""
  marked = [rule for rule in family.rules if rule.ours.startswith(f'{family.mark}/')]
  return any(rule.torch in shapes or rule.ours in shapes for rule in marked)
