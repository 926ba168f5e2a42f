"""Chooses the network in a file that may hold several, and finds its proper names.

Checkpoints keep a network as a part ('ema', 'state_dict'), and what wraps it writes its own name
before those of the network: Lightning ('model.'), DDP ('module.'), an average ('ema_model.'). Both
are the beginning of a name here, and one rule holds for both. Where some names are known that only
this network has (its anchors), its names are those with the same beginning as an anchor. Without
anchors they are those of one part, less what all of them begin with. Names that wrappers put
between (`_WRAPPERS`) are dropped wherever they are.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import os
import re
from typing import NamedTuple

from diversedit_jax import types
from diversedit_jax.weights import misfits

# torch.compile; FSDP, now and before; activation checkpointing.
_WRAPPERS = re.compile(
  r'(?<![^./])(?:_orig_mod|_fsdp_wrapped_module|_fpw_module|_checkpoint_wrapped_module)\.'
)
_BEST = ('ema', r'(?i:(.+[_-])?ema\d*([_-].+)?)')
_BEST += ('model', 'state_dict', 'model_state_dict', 'module', 'net', 'network', 'params')
# What trains a network.
_TRAINING = re.compile(
  r'(?:^|[._])(?:opt|opt_\w+|optim\w*|rng\w*|\w*scaler|\w*schedulers?|callbacks|state\.\d+)(?=[./]|$)'
)


class Choice(NamedTuple):
  """The names of one network.

  names: those in the file, by proper name.
  notes: what was taken, dropped and left out.
  """

  names: Mapping[str, str]
  notes: tuple[str, ...]


def choose(
  names: Iterable[str],
  parts: Iterable[str] = ('',),
  *,
  key: str | None = None,
  prefer: Sequence[str] = (),
  anchors: Sequence[str] = (),
) -> Choice:
  """The names of the network that is asked for.

  Args:
    names: those of all arrays in the file.
    parts: beginnings of the names of state dicts, as 'ema.'; '' is the whole file.
    key: the part to take, as 'ema' or 'state_dict.model'; None looks for the best.
    prefer: names of parts to try before averages and the usual names, the best first.
    anchors: names that only this network has.

  Raises:
    UserError: there is no such part, or there are several and no reason to prefer one; the message
      has their names.
  """
  proper = _unwrapped(names)
  parts = list(dict.fromkeys(_WRAPPERS.sub('', part) for part in parts))
  start = '' if key is None else _keyed(key, proper, parts)
  inside = [name for name in proper if name.startswith(start)]
  anchored = _before_anchors(inside, start, anchors)
  others = anchored or (parts if key is None else [start])
  found = [part for part in others if not _TRAINING.search(part)] or others
  counts = {p: sum(name.startswith(p) for name in inside) for p in found}
  part = _preferred(counts, prefer)
  deeper = tuple(p for p in others if p.startswith(part) and p != part)
  own = [name for name in inside if name.startswith(part) and not name.startswith(deeper)]
  common = '' if anchors else _common([name[len(part) :] for name in own])
  chosen = {name[len(part + common) :]: proper[name] for name in own}
  rest = [n for n in inside if anchored and not n.startswith(tuple(found))]
  notes = (*_notes(counts, part, common, parts, rest), *_wrapped(chosen.values()))
  return Choice(chosen, notes)


def _unwrapped(names) -> dict[str, str]:
  """Names in the file by name without those of wrappers."""
  proper: dict[str, str] = {}
  for name in names:
    short = _WRAPPERS.sub('', name)
    if short in proper:
      raise types.UserError(f'has {short} twice, with and without a prefix in its name')
    proper[short] = name
  return proper


def _keyed(key, names, parts) -> str:
  """The beginning of names that a key stands for."""
  for end in './':
    if any(name.startswith(key + end) for name in names):
      return key + end
  inner = re.compile(rf'.*?\.{re.escape(key)}\.')
  found = {match[0] for name in names if (match := inner.match(name))}
  if len(found) == 1:
    return found.pop()
  known = ', '.join(repr(p[:-1]) for p in parts if p) or 'none'
  raise types.UserError(f'has no part {key!r}; its parts: {known}')


def _before_anchors(names, start, anchors) -> list[str]:
  """What stands before an anchor, at the beginning of names."""
  before = {
    name.removesuffix(anchor): None
    for anchor in anchors
    for name in names
    if name == start + anchor or name.endswith((f'.{anchor}', f'/{anchor}'))
  }
  return list(before)


def _preferred(counts: Mapping[str, int], prefer) -> str:
  """The best of several beginnings of names, which are given with the number of arrays."""
  if len(counts) == 1:
    return next(iter(counts))
  left = list(counts)
  for wanted in (*map(re.escape, prefer), *_BEST):
    shared = os.path.commonprefix([_words(part) for part in left])
    hits = [p for p in left if any(re.fullmatch(wanted, w) for w in _words(p)[len(shared) :])]
    left = hits or left
    # A network may hold others, which are parts of it.
    if hits and all(part.startswith(min(hits, key=len)) for part in hits):
      return min(hits, key=len)
  if counts.get('') == max(counts.values()):
    return ''
  listed = [f'{_called(p)} ({n} arrays)' for p, n in counts.items()]
  example = next(p[:-1] for p in counts if p)
  raise types.UserError(
    f'has several networks: {misfits.first_few(listed)}; say which, as with --key={example}'
  )


def _wrapped(names) -> Iterator[str]:
  """A note if wrappers stand in names."""
  found = [wrappers for name in names if (wrappers := _WRAPPERS.findall(name))]
  if found:
    kinds = sorted({repr(wrapper) for wrappers in found for wrapper in wrappers})
    yield f'dropped {misfits.first_few(kinds)} from {len(found)} names'


def _called(part) -> str:
  return repr(part[:-1]) if part else 'the whole'


def _words(part) -> list[str]:
  return part.replace('/', '.').split('.')[:-1]


def _common(names: Sequence[str]) -> str:
  """The longest dotted beginning of all names, short of any whole name."""
  if len(names) < 2 or any('/' in name for name in names):
    return ''
  return ''.join(f'{x}.' for x in os.path.commonprefix([name.split('.')[:-1] for name in names]))


def _notes(counts, part, common, parts, rest) -> Iterator[str]:
  if len(counts) > 1:
    yield f'took {_called(part)} of the networks {misfits.first_few(list(map(_called, counts)))}'
  within = max((p for p in parts if part.startswith(p)), key=len, default='')
  if prefix := part[len(within) :] + common:
    yield f'dropped {prefix!r}, with which all its names begin'
  if rest := [name for name in rest if not _TRAINING.search(name)]:
    yield f'left out what lies beside it: {misfits.first_few(rest)}'
