"""Which methods there are and which go together; each registers itself in its own file.

A method's name lists its parts, as in 'repa+diverse'. Exactly one part is the flow, which owns the
forward pass; it is 'flow' where none is named. All others are terms on the block outputs of that
one pass.
"""

from collections.abc import Callable, Mapping

from diversedit_jax import options, trees, types
from diversedit_jax.methods import base

METHODS: dict[str, type[base.Part]] = {}
"""Parts by name; filled by importing `methods`."""


def register(
  name: str, *, section: str | None = None, not_with: Mapping[str, str] | None = None
) -> Callable[[type[base.Part]], type[base.Part]]:
  """A decorator that makes a flow or a term known as part of a method.

  Args:
    name: as in `method=NAME`, and the key of its heads and metrics.
    section: section of the config for its options; None is the name.
    not_with: other parts that it cannot stand beside, with the reason.

  Raises:
    ValueError: if the name is taken.
  """

  def known(cls: type[base.Part]) -> type[base.Part]:
    if METHODS.setdefault(name, cls) is not cls:
      raise ValueError(f'a method {name!r} exists already')
    cls.name, cls.section, cls.not_with = name, section or name, dict(not_with or {})
    return cls

  return known


def parse(method: str) -> tuple[str, ...]:
  """The parts of a method: the flow first, then the terms by name.

  Raises:
    UserError: for an unknown or repeated part, or two that do not go together, with the reason.
  """
  names = method.split('+')
  for name in names:
    trees.check_known('method', name, METHODS)
  if len(set(names)) < len(names):
    raise types.UserError(f'method {method!r} names a part twice')
  flows = [name for name in names if _is_flow(name)]
  if len(flows) > 1:
    raise types.UserError(
      f'method {method!r}: {" and ".join(flows)} each make the forward pass; name one of them'
    )
  for name in names:
    for other, reason in METHODS[name].not_with.items():
      if other in names:
        raise types.UserError(f'method {method!r}: {name} does not go with {other}: {reason}')
  return (*(flows or ['flow']), *sorted(name for name in names if not _is_flow(name)))


def trained_parts(method: str) -> tuple[str, ...]:
  """The parts that decide which parameters there are, or what the model predicts."""
  return tuple(name for name in parse(method) if _is_flow(name) or _has_parameters(METHODS[name]))


def needs(method: str, what: str) -> bool:
  """Whether any part of a method has a trait, such as 'needs_pixels' or 'couples_examples'."""
  return any(getattr(METHODS[name], what) for name in parse(method))


def sections() -> dict[str, type[base.Part]]:
  """The sections of the config that parts declare, and the part that declares each.

  Raises:
    ValueError: if two parts declare the same section.
  """
  found: dict[str, type[base.Part]] = {}
  for _, cls in sorted(METHODS.items()):
    if options.keys([cls]) and found.setdefault(cls.section, cls) is not cls:
      raise ValueError(f'{cls.name} and {found[cls.section].name} both declare {cls.section}')
  return found


def reads(method: str, key: str) -> bool:
  """Whether a part of a method reads a key of the config, as 'repa.weights'."""
  section, _, _ = key.partition('.')
  parts = [METHODS[name] for name in parse(method)]
  return any(part.section == section or {section, key} & {*part.reads} for part in parts)


def _has_parameters(term):
  return term.heads is not base.Term.heads or term.adapt is not base.Term.adapt


def _is_flow(name):
  return issubclass(METHODS[name], base.Flow)
