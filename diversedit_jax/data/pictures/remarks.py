"""What is odd about the labels of a collection, in words: nothing wrong, but rarely meant."""

from collections.abc import Sequence

import numpy as np

from diversedit_jax.data.pictures import base, naming


def of_labels(labels: np.ndarray, names: Sequence[str]) -> list[str]:
  """Remarks on labels [n] and the names of all classes, () if they only have numbers."""
  remarks = []
  places = [str(k) for k in range(len(names))]
  if len(labels) and labels.min() == 1 and (not len(names) or list(names) == places):
    remarks.append(
      'labels begin at 1, so class 0 has no example and the model gets a class too many; subtract '
      '1 from each label in the file that holds them (docs/data.md has the command)'
    )
  elif base.are_numbers(names) and [str(int(name)) for name in names] != places:
    remarks.append(
      f'classes are named by numbers that are not their labels: {mapping(names)}; --classes=FILE '
      '(data.classes in a config) sets another order'
    )
  if 0 < len(names) < 1000 and all(naming.is_wordnet(name) for name in names):
    remarks.append(
      f'{len(names)} classes named by WordNet ids: labels count these classes, not the 1,000 of '
      "ILSVRC-2012; set classes='imagenet' for those"
    )
  return remarks


def mapping(names: Sequence[str]) -> str:
  """Labels and names of classes in a line, at most eight: "0 is 'ant', 1 is 'bee'"."""
  shown = list(enumerate(names))
  if len(shown) > 8:
    shown = [*shown[:4], None, *shown[-3:]]
  return ', '.join('...' if item is None else f'{item[0]} is {item[1]!r}' for item in shown)
