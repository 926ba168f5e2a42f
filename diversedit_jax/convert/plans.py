"""The tensors of a model in a family: every PyTorch tensor, every leaf of ours, and their shapes.

A plan is drawn from the names and shapes of either side. Modules are counted by the numbers in
names, and each letter of the shapes takes the value that most tensors give it, so that one misfit
is reported as such and does not change what is expected of all others.
"""

import collections
from collections.abc import Iterator, Mapping
import dataclasses
import math
import re

from diversedit_jax.convert import families, layouts

_PLACEHOLDERS = ('block', 'decoder', 'skip', 'head')
_STACKED = ('block', 'decoder', 'skip')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
  """Numbers of modules, and the optional parts that are present.

  blocks: all but those of a decoder, which `decoder` counts.
  """

  blocks: int
  decoder: int
  skips: int
  heads: int
  parts: frozenset[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
  """One leaf of our tree and the PyTorch tensors in it, in the order in which they are stacked."""

  ours: str
  torch: tuple[str, ...]
  stacked: bool
  layout: layouts.Layout
  terms: layouts.Terms

  @property
  def our_terms(self) -> layouts.Terms:
    """Our shape in letters, the leading axis as a number."""
    lead = (str(len(self.torch)),) if self.stacked else ()
    return lead + self.layout.terms(self.terms)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """All entries, with the letters of their shapes."""

  counts: Counts
  entries: tuple[Entry, ...]
  sizes: Mapping[str, int]

  def shape(self, terms: layouts.Terms) -> tuple[int | str, ...]:
    """Replaces letters by numbers; an unknown letter stays a letter."""
    return tuple(_resolve(term, self.sizes) for term in terms)

  def torch_shapes(self) -> dict[str, tuple[int | str, ...]]:
    """Expected shapes of the PyTorch tensors."""
    return {name: self.shape(e.terms) for e in self.entries for name in e.torch}

  def our_shapes(self) -> dict[str, tuple[int | str, ...]]:
    """Expected shapes of our leaves."""
    return {e.ours: self.shape(e.our_terms) for e in self.entries}


def of_torch(family: families.Family, shapes: Mapping[str, layouts.Shape]) -> Plan:
  """The plan of a state dict with these shapes."""
  numbers = {placeholder: set() for placeholder in _PLACEHOLDERS}
  parts = set()
  for rule in family.rules:
    for _, number in _matches(rule.torch, shapes, '[0-9]+'):
      for placeholder, text in number.items():
        numbers[placeholder].add(text)
      parts.add(rule.part)
  counts = Counts(
    blocks=len(numbers['block']),
    decoder=len(numbers['decoder']),
    skips=len(numbers['skip']),
    heads=len(numbers['head']),
    parts=frozenset(parts),
  )
  entries = _entries(family, counts)
  seen = [(e.terms, shapes[n]) for e in entries for n in e.torch if n in shapes]
  return Plan(counts=counts, entries=entries, sizes=_sizes(seen, family.sizes))


def of_ours(
  family: families.Family, shapes: Mapping[str, layouts.Shape], *, patch_size: int
) -> Plan:
  """The plan of a parameter tree with these shapes by path; they do not tell the patch size."""
  lengths: dict[tuple[str, str], collections.Counter[int]] = collections.defaultdict(
    collections.Counter
  )
  heads, parts = set(), set()
  for rule in family.rules:
    for path, place in _matches(rule.ours, shapes, '[^/]+'):
      for placeholder, text in place.items():
        if placeholder == 'head':
          heads.add(text)
        elif shapes[path]:
          lengths[placeholder, text][shapes[path][0]] += 1
      parts.add(rule.part)
  length = {place: votes.most_common(1)[0][0] for place, votes in lengths.items()}
  halves = ('block', 'first'), ('block', 'second'), ('skip', 'fuse')
  halves = max(length.get(place, 0) for place in halves)
  counts = Counts(
    blocks=2 * halves or length.get(('block', 'layers'), 0),
    decoder=length.get(('decoder', 'layers'), 0),
    skips=halves,
    heads=len(heads),
    parts=frozenset(parts),
  )
  entries = _entries(family, counts)
  seen = [(e.our_terms, shapes[e.ours]) for e in entries if e.ours in shapes]
  return Plan(counts=counts, entries=entries, sizes=_sizes(seen, {'p': patch_size}))


def _matches(template, names, filling) -> Iterator[tuple[str, dict[str, str]]]:
  """Names that fit a template, with the text at the place of its placeholder."""
  pattern = re.escape(template)
  for placeholder in _PLACEHOLDERS:
    pattern = pattern.replace(rf'\{{{placeholder}\}}', rf'(?P<{placeholder}>{filling})')
  for name in names:
    if match := re.fullmatch(pattern, name):
      yield name, match.groupdict()


def _entries(family, counts) -> tuple[Entry, ...]:
  blocks = max(counts.blocks, 1)  # Without any block, the names of the first one are missing.
  half = blocks // 2
  mirrored = range(blocks - 1, half - 1, -1)
  places = {
    'block': {'first': range(half), 'second': mirrored}
    if counts.skips
    else {'layers': range(blocks)},
    'decoder': {'layers': range(counts.decoder)},
    'skip': {'fuse': [i - half for i in mirrored]} if counts.skips else {},
    'head': {str(i): [i] for i in range(counts.heads)},
  }
  return tuple(
    entry
    for rule in family.rules
    if not rule.part or rule.part in counts.parts
    for entry in _expand(rule, places)
  )


def _expand(rule, places) -> Iterator[Entry]:
  """The entries of one rule: one for each value of its placeholder in our tree."""
  layout = layouts.LAYOUTS[rule.layout]
  placeholder = next((p for p in _PLACEHOLDERS if f'{{{p}}}' in rule.torch), None)
  if placeholder is None:
    yield Entry(ours=rule.ours, torch=(rule.torch,), stacked=False, layout=layout, terms=rule.shape)
    return
  for place, numbers in places[placeholder].items():
    yield Entry(
      ours=rule.ours.format(**{placeholder: place}),
      torch=tuple(rule.torch.format(**{placeholder: i}) for i in numbers),
      stacked=placeholder in _STACKED,
      layout=layout,
      terms=tuple(term.format(**{placeholder: place}) for term in rule.shape),
    )


def _sizes(seen, given) -> dict[str, int]:
  """The values of letters by majority, first of lone ones, then of the one new one in a product.

  The new one may be there squared, as a convolution's kernel.
  """
  sizes = dict(given)
  for alone in (True, False):
    votes = collections.defaultdict(collections.Counter)
    for terms, shape in seen:
      if len(terms) != len(shape):
        continue
      for term, found in zip(terms, shape, strict=True):
        factors = term.split('*')
        new = [f for f in factors if not f.isdigit() and f not in sizes]
        known = math.prod(int(sizes.get(f, f)) for f in factors if f not in new)
        if len({*new}) == 1 and alone == (len(factors) == 1) and known and found % known == 0:
          value = round((found // known) ** (1 / len(new)))
          if value ** len(new) * known == found:
            votes[new[0]][value] += 1
    sizes |= {letter: counter.most_common(1)[0][0] for letter, counter in votes.items()}
  return sizes


def _resolve(term, sizes) -> int | str:
  factors = [str(sizes.get(f, f)) for f in term.split('*')]
  return math.prod(map(int, factors)) if all(f.isdigit() for f in factors) else '*'.join(factors)
