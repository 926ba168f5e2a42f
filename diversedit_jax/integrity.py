"""Checkpoints read as they were written: checksums in `meta`, and reads that are tried again.

Orbax's files have checksums where names and shapes lie, and none where the numbers lie: a bit that
flips there changes them silently. So `meta` keeps a checksum of each array, made of the values on
the devices, and is itself sealed by one. An error of reading is told apart: one that may pass says
nothing of the checkpoint, and is waited for; damage is what is found twice.
"""

from collections.abc import Callable, Mapping
import json
import time
from typing import Any
import zlib

from absl import logging
import jax

from diversedit_jax import faults, meeting, trees, types

PAUSES = (1, 2, 5, 10, 20, 40)
"""Seconds before each new try where an error may pass."""
_SUMS, _SEAL = 'checksums', 'seal'
_FINE, _DAMAGED, _PASSES, _REFUSED = range(4)
_checksums = jax.jit(trees.checksums)


class Damaged(Exception):
  """A checkpoint is not what was written."""


def sealed(meta: Mapping[str, Any], sums: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """The meta of a checkpoint with checksums.

  Args:
    meta: what JSON can hold. sums: item -> `trees.checksums` of it.
  """
  whole = {**meta, _SUMS: {item: _numbers(of_item) for item, of_item in sums.items()}}
  return whole | {_SEAL: _seal(whole)}


def opened(meta: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, int]]]:
  """What `sealed` was given; no checksums for a checkpoint from before there were any.

  Raises:
    Damaged: the seal is broken.
  """
  rest = {key: value for key, value in meta.items() if key != _SEAL}
  if _SEAL in meta and meta[_SEAL] != _seal(rest):
    raise Damaged('meta is not what was written')
  return {k: v for k, v in rest.items() if k != _SUMS}, rest.get(_SUMS, {})


def check(items: Mapping[str, Any], sums: Mapping[str, Mapping[str, int]]) -> None:
  """Compares what was read, in the types that were written, with the checksums there are.

  Raises:
    Damaged: naming the arrays.
  """
  for item, tree in items.items():
    if item in sums:
      found = _numbers(_checksums(tree))
      wrong = [f'{item}/{name}' for name, n in found.items() if n != sums[item].get(name)]
      if wrong:
        more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
        raise Damaged(f'not as written: {", ".join(wrong[:3])}{more}')


Verify = Callable[[Any], None]


def read(
  name: str, attempt: Callable[[], Any], verify: Verify, *, alone: bool = False
) -> tuple[Any, str]:
  """What an attempt reads, and ''; or None and why it is damaged. All processes come to the same.

  Args:
    name: of what is read, for messages.
    attempt: reads, and waits for no other process.
    verify: raises `Damaged` on all processes or none; called when all have read.
    alone: whether the other processes do not take part.

  Raises:
    UserError: what is asked for is not there, or may not be read; or an error that may pass has
      not passed.
  """
  pauses, was_damaged = list(PAUSES), False
  while True:
    found, error = _caught(attempt)
    verdict, elsewhere = _worst(error, alone)
    if verdict == _FINE:
      _, error = _caught(lambda found=found: verify(found))
      verdict = _verdict(error)
    text = elsewhere if error is None else faults.said(error)
    if verdict == _FINE:
      return found, ''
    if verdict == _REFUSED:
      raise _refusal(name, error, elsewhere) from error
    if verdict == _DAMAGED and was_damaged:
      return None, text
    if not pauses:
      raise types.UserError(
        f'{name} cannot be read just now: {text}. It is not known to be damaged and nothing was '
        'changed; the same command goes on when it can be read'
      ) from error
    was_damaged, pause = verdict == _DAMAGED, pauses.pop(0)
    logging.warning('%s: %s; reading it again in %g s', name, text, pause)
    time.sleep(pause)


def failure(action: Callable[[], Any]) -> str:
  """What disks and networks say against an action, in one line; '' if nothing."""
  try:
    action()
  except Exception as error:
    line = faults.told(error) or (faults.said(error) if faults.passes(error) else '')
    if not line:
      raise
    return line
  return ''


def _caught(action):
  try:
    return action(), None
  except Exception as error:  # Orbax and TensorStore raise many types for a damaged file.
    return None, error


def _verdict(error):
  if error is None:
    return _FINE
  if isinstance(error, types.UserError) or faults.denied(error):
    return _REFUSED
  return _PASSES if faults.passes(error) else _DAMAGED


def _worst(error, alone):
  """The worst verdict of all processes, and what that process says for it."""
  said = '' if error is None else faults.told(error) or faults.said(error)
  if alone:
    return _verdict(error), said
  every = meeting.texts(f'{_verdict(error)}{said}')
  number = max(range(len(every)), key=lambda i: every[i][0])
  return int(every[number][0]), f'process {number}: {every[number][1:]}'


def _refusal(name, error, elsewhere):
  if error is None:
    return types.UserError(elsewhere)
  if isinstance(error, types.UserError):
    return error
  return types.UserError(f'{name} cannot be read: {faults.told(error) or faults.said(error)}')


def _numbers(sums):
  return {name: int(number) for name, number in jax.device_get(dict(sums)).items()}


def _seal(meta):
  return zlib.crc32(json.dumps(meta, sort_keys=True).encode())
