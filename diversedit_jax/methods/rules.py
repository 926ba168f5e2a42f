"""Which methods go together: what each one adds, and what it cannot stand beside, in one table.

A method's name lists its parts, as in 'repa+diverse'. Exactly one part owns the forward pass; it is
'flow' where none is named. All others are terms on the block outputs of that one pass.
"""

from collections.abc import Mapping
import dataclasses

from diversedit_jax import trees, types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
  """What one part of a method is.

  owns_pass: it makes the inputs, the forward pass and the main loss.
  heads: it trains heads on the block outputs. encoder: it looks at frozen features.
  teacher: it runs the averaged network once per step.
  token: it puts a class token in front of the patches. interval: it gives the model a second time.
  not_with: other parts, with the reason.
  """

  owns_pass: bool = False
  heads: bool = False
  encoder: bool = False
  teacher: bool = False
  token: bool = False
  interval: bool = False
  not_with: Mapping[str, str] = dataclasses.field(default_factory=dict)


RULES = {
  'flow': Rule(owns_pass=True),
  'reg': Rule(
    owns_pass=True,
    heads=True,
    encoder=True,
    token=True,
    not_with={'repa': 'it contains that alignment, of the class token too (set repa.weight)'},
  ),
  'meanflow': Rule(
    owns_pass=True,
    interval=True,
    not_with={
      'sra': "SRA's teacher sees the data at one cleaner time, an average velocity has two times"
    },
  ),
  'repa': Rule(heads=True, encoder=True),
  'dispersive': Rule(),
  'sra': Rule(heads=True, teacher=True),
  'diverse': Rule(),
}


def parse(method: str) -> tuple[str, ...]:
  """The parts of a method in the order of `RULES`, the owner of the forward pass first.

  Raises:
    UserError: for an unknown or repeated part, or two that do not go together, with the reason.
  """
  names = method.split('+')
  for name in names:
    trees.check_known('method', name, RULES)
  if len(set(names)) < len(names):
    raise types.UserError(f'method {method!r} names a part twice')
  owners = [name for name in names if RULES[name].owns_pass]
  if len(owners) > 1:
    raise types.UserError(
      f'method {method!r}: {" and ".join(owners)} each make the forward pass; name one of them'
    )
  for name in names:
    for other, reason in RULES[name].not_with.items():
      if other in names:
        raise types.UserError(f'method {method!r}: {name} does not go with {other}: {reason}')
  if not owners:
    names.append('flow')
  return tuple(name for name in RULES if name in names)


def trained_parts(method: str) -> tuple[str, ...]:
  """The parts that decide which parameters there are, or what the model predicts."""
  return tuple(name for name in parse(method) if RULES[name].owns_pass or RULES[name].heads)


def needs(names: tuple[str, ...], what: str) -> bool:
  """True if any of the parts has the trait `what`, a field of `Rule`."""
  return any(getattr(RULES[name], what) for name in names)
