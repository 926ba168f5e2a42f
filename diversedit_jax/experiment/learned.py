"""What a run learned from, as its data.json says: which examples, and what its classes are."""

from collections.abc import Callable, Iterable, Mapping
import pathlib
from typing import Any

from diversedit_jax.data import files
from diversedit_jax.experiment import flat_config

FILE = 'data.json'


def read(path: pathlib.Path) -> dict[str, Any]:
  """What the run in a directory learned from; {} if it does not say.

  Raises:
    UserError: the file is damaged.
  """
  return files.read_json(path / FILE, may_lack=True)


def that_say_something(names: Iterable[str]) -> tuple[str, ...]:
  """Names of classes; () if each is only the number of its class."""
  names = tuple(names)
  return () if names == tuple(str(k) for k in range(len(names))) else names


def label_names(
  path: pathlib.Path, digest: Callable[[], str], names: tuple[str, ...]
) -> tuple[str, ...]:
  """Names of the classes that a run learned from, as it recorded them.

  A run of before 0.3 did not. Its classes have the `names` of data with its own digest, and else
  names that nobody knows, ().
  """
  known = read(path)
  if 'label_names' in known:
    return tuple(known['label_names'])
  return names if names and known.get('sha256') == digest() else ()


def changes(stored: Mapping[str, Any], given: Mapping[str, Any]) -> str:
  """How data differ, in words; with the way on where only the order of classes does."""
  old, new = stored.get('label_names'), given.get('label_names')
  plain = lambda data: {k: v for k, v in data.items() if k != 'label_names'}
  text = flat_config.listed(flat_config.differences(plain(stored), plain(given)))
  if old and new and old != new:
    at = next((k for k, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
    text += f', {len(old)} classes before and {len(new)} now'
    text += '' if at is None else f', label {at}: stored {old[at]!r}, given {new[at]!r}'
  same = stored.get('examples') == given['examples'] and old in (None, new and sorted(new))
  if new and same and new != sorted(new):
    text += (
      '. Classes named by numbers are in the order of the numbers since 0.3; '
      '--config.data.classes=alphabetical gives the order of before'
    )
  return text
