"""What a table of rules is made of, see `families`."""

from collections.abc import Mapping
import dataclasses
from typing import NamedTuple


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
  """One of their tensors, or one per number of a placeholder, and the leaf of our tree for it.

  torch: the name in the other system, which is PyTorch except for MeanFlow.
  ours: our path, with the same placeholder, if any; `families` lists the placeholders.
  shape: their shape; an entry is a product of letters and numbers, as '3*D'.
  layout: a name of `layouts.LAYOUTS`.
  part: the optional part of the model that it belongs to, present in all blocks or in none.
  """

  torch: str
  ours: str
  shape: tuple[str, ...]
  layout: str = 'same'
  part: str = ''


class Rotary(NamedTuple):
  """A table [T, d] of cosines or sines, d the width of a head.

  width: letter of the model's width there. placeless: letters of the numbers of tokens that have no
  place; their rows, of angle 0, are the last.
  """

  name: str
  width: str
  placeless: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """All tensors of a kind of model.

  position_table: name of the fixed sine-cosine table [1, T, D], which we compute and do not store;
    None if they do not store it either.
  zero_rows: number of zero rows at the top of that table, for tokens without a place.
  rotary: tables of rotary positions, which we compute too.
  continued: pairs (old, new) of module lists; `old` counts on from the end of `new`.
  marks: beginnings of names, theirs and ours; `detect` takes the first family of which a name has
    one. Empty where names do not tell.
  sizes: values of letters that the shapes do not tell.
  config: config keys that such weights need beyond what their shapes tell.
  notice: licence notice for users of such weights.
  """

  rules: tuple[Rule, ...]
  position_table: str | None = 'pos_embed'
  zero_rows: int = 0
  rotary: tuple[Rotary, ...] = ()
  continued: tuple[tuple[str, str], ...] = ()
  marks: tuple[str, ...] = ()
  sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
  config: tuple[str, ...] = ()
  notice: str = ''

  @property
  def learns_sigma(self) -> bool:
    """Whether the head has twice the channels."""
    (head,) = (rule for rule in self.rules if rule.ours == 'model/final/linear/bias')
    return '2' in head.shape[0].split('*')

  @property
  def has_decoder(self) -> bool:
    """Whether these are networks with a wide head."""
    return any('{decoder}' in rule.torch for rule in self.rules)

  @property
  def tables(self) -> tuple[str, ...]:
    """Names of the fixed tables that they store, and that we compute."""
    return tuple(filter(None, (self.position_table, *(one.name for one in self.rotary))))


def rule(torch: str, ours: str, *shape: str, layout: str = 'same', part: str = '') -> Rule:
  """A `Rule` whose shape is written term by term: a convolution's as *'DCpp'."""
  return Rule(torch=torch, ours=ours, shape=shape, layout=layout, part=part)


def linear(
  torch: str,
  ours: str,
  fan_in: str,
  fan_out: str,
  *,
  layout: str = 'linear',
  bias: str = 'same',
  part: str = '',
) -> tuple[Rule, ...]:
  """PyTorch's linear layer; `layout` and `bias` are the layouts of its two tensors."""
  kernel = rule(f'{torch}.weight', f'{ours}/kernel', fan_out, fan_in, layout=layout, part=part)
  return kernel, rule(f'{torch}.bias', f'{ours}/bias', fan_out, layout=bias, part=part)


def norm(torch: str, ours: str, width: str, *, part: str = '') -> tuple[Rule, ...]:
  """PyTorch's LayerNorm with its weight and bias."""
  weight = rule(f'{torch}.weight', f'{ours}/scale', width, part=part)
  return weight, rule(f'{torch}.bias', f'{ours}/bias', width, part=part)


def scale(torch: str, ours: str, width: str, part: str) -> Rule:
  """The weight of an RMSNorm, or of a LayerNorm whose bias is a part of its own."""
  return rule(f'{torch}.weight', f'{ours}/scale', width, part=part)


def rotary(module: str, width: str, placeless: tuple[str, ...] = ()) -> tuple[Rotary, ...]:
  """The two tables of a module."""
  return tuple(Rotary(f'{module}.freqs_{of}', width, placeless) for of in ('cos', 'sin'))


def skips() -> tuple[Rule, ...]:
  """DiverseDiT's long skips (arXiv 2603.04239)."""
  return (
    *norm('skip_norms.{skip}', 'model/blocks/{skip}/norm', '2*D'),
    *linear('skip_linears.{skip}.linear', 'model/blocks/{skip}/linear', '2*D', 'D'),
  )


def projectors() -> tuple[Rule, ...]:
  """REPA's MLPs (arXiv 2410.06940)."""
  return (
    *linear('projectors.{head}.0', 'heads/repa/{head}/fc1', 'D', 'P{head}', part='mlp'),
    *linear('projectors.{head}.2', 'heads/repa/{head}/fc2', 'P{head}', 'P{head}', part='mlp'),
    *linear('projectors.{head}.4', 'heads/repa/{head}/fc3', 'P{head}', 'Z{head}', part='mlp'),
  )
