"""Parts of `--mode=analyze` by name; each registers itself in its own file of `parts`."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from diversedit_jax import trees, types
from diversedit_jax.analysis import panels

ALL = 'all'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
  """What a part found.

  figures: panels by the name of the file that shows them.
  summary: a few numbers, or lists of them, for tables and logs.
  protocol: what must be known to read them, beside what all parts share.
  arrays: for `analysis/PART.npz`, what no figure shows as numbers; none are written if empty.
  sheet: panels for the sheet.
  headings: what is written above figures, by their names.
  """

  figures: Mapping[str, Sequence[panels.Panel]]
  summary: Mapping[str, Any]
  protocol: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  sheet: Sequence[panels.Panel] = ()
  headings: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """A part of the analysis.

  run: (scope.Scope) -> Findings; every process calls it.
  lacks: (scope.Scope) -> why this run or these data do not allow it, '' if they do.
  default: whether it belongs to the sheet, which is made if no parts are named.
  """

  run: Callable[[Any], Findings]
  lacks: Callable[[Any], str]
  default: bool


PARTS: dict[str, Part] = {}
"""Parts by name; filled by importing `analysis`."""


def register(
  name: str, *, default: bool = False, lacks: Callable[[Any], str] = lambda scope: ''
) -> Callable[[Callable[[Any], Findings]], Callable[[Any], Findings]]:
  """A decorator that makes the function of a part known, see `Part`.

  Raises:
    ValueError: if the name is taken.
  """

  def known(run):
    if name in PARTS or name == ALL:
      raise ValueError(f'a part {name!r} exists already')
    PARTS[name] = Part(run=run, lacks=lacks, default=default)
    return run

  return known


def defaults() -> tuple[str, ...]:
  """The parts of the sheet."""
  return tuple(name for name, part in PARTS.items() if part.default)


def check(names: Sequence[str]) -> None:
  """Refuses an unknown or repeated name, and others beside 'all' (UserError)."""
  for name in names:
    trees.check_known('part of analysis.parts', name, (*PARTS, ALL))
  if len(set(names)) < len(names) or (ALL in names and len(names) > 1):
    raise types.UserError(f'analysis.parts={",".join(names)} names a part twice')


def chosen(names: Sequence[str], scope: Any) -> tuple[list[str], dict[str, str]]:
  """The parts to run in order, and why others are left out.

  Args:
    names: as in `analysis.parts`; none are those of the sheet. scope: a `scope.Scope`.

  Raises:
    UserError: a part that is named, or belongs to the sheet, cannot be made.
  """
  wanted = PARTS if tuple(names) == (ALL,) else names or defaults()
  reasons = {name: why for name in wanted if (why := PARTS[name].lacks(scope))}
  if reasons and wanted is not PARTS:
    name, why = next(iter(reasons.items()))
    raise types.UserError(f'analysis.parts: {name} {why}')
  return [name for name in wanted if name not in reasons], reasons
