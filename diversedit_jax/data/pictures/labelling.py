"""Who says the class of a picture: a file that the user names, or one in the collection.

dataset.json        {"labels": [["00000/img00000000.png", 5], ...]}, as the tools of StyleGAN2,
                    EDM2 and REPA write it; names count from its own folder, null means none
NAME.cls            a number or a name beside each picture, as in WebDataset
NAME.json           the same as the entry 'label' or the like, where there are no class folders, or
                    as an entry that the user names
a table             CSV with columns of paths and labels, see `rows`
a list              'NAME LABEL' lines, or one label a line in the order of the pictures' names
ILSVRC's devkit     its `.tar.gz` or folder: labels of the 50,000 validation pictures
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import json
import os

from diversedit_jax import paths, types
from diversedit_jax.data.pictures import base, devkit, kinds, rows

WORDS = ('none', 'folders', 'prefix', 'any')
_SHOWN = 3
_EXPECTED = (
  f'one of {", ".join(WORDS[:3])}, or a file: a CSV, a dataset.json, a list, or the development '
  'kit of ILSVRC-2012'
)

Label = str | int
Found = Sequence[tuple[str, int]]
Peek = Callable[[int, int], bytes]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
  """What the user said about classes.

  given: as they wrote it: one of `WORDS`, a file, an entry, or '' where they left it to the
    collection.
    none     no classes: all pictures are of one
    folders  the top folder, whatever else is there
    prefix   what a file's name has before the first '_', as in guided-diffusion
    any      what the collection says, or no classes, without a word about it; for references
  entry: the entry of NAME.json that says the label; '' where it is known by its name.
  by_name: labels by the name of a picture.
  in_order: labels in the order of the sorted names.
  classes: all classes in order, where the labels bring them.
  """

  given: str = ''
  entry: str = ''
  by_name: Mapping[str, Label] = dataclasses.field(default_factory=dict)
  in_order: Sequence[Label] = ()
  classes: tuple[str, ...] | None = None

  @property
  def file(self) -> bool:
    """Whether a file says the labels."""
    return bool(self.by_name or self.in_order)

  def of(self, names: Sequence[str], where: str) -> list[Label | None]:
    """The label of each picture by a file; None where it does not name the picture.

    Raises:
      UserError: it names none of them, or is of another number of pictures.
    """
    if self.in_order:
      if len(self.in_order) != len(names):
        raise types.UserError(
          f'{self.given} holds {len(self.in_order)} labels, but {where} holds {len(names)} pictures'
        )
      place = {name: k for k, name in enumerate(sorted(names))}
      return [self.in_order[place[name]] for name in names]
    found = _by_name(self.by_name, names)
    if names and not any(label is not None for label in found):
      shown = lambda some: ', '.join(list(some)[:_SHOWN])
      raise types.UserError(
        f'{self.given} names no picture of {where}: it names {shown(self.by_name)}, and there are '
        f'{shown(names)}'
      )
    return found


def read(spec: str | None) -> Labels:
  """What a user said, see `Labels`.

  Raises:
    UserError: the file cannot be read, or is none of the forms above.
  """
  if spec is None or spec in WORDS:
    return Labels(given=spec or '')
  if devkit.is_devkit(spec):
    ids, classes = devkit.read(spec)
    return Labels(given=spec, in_order=ids, classes=classes)
  path = paths.path(spec)
  if rows.is_table(path):
    pairs = ((file, label) for _, file, label in rows.read(path, collection=False))
    return Labels(given=spec, by_name=_once(pairs, spec))
  if not path.suffix and len(path.parts) == 1 and not path.exists():
    return Labels(given=spec, entry=spec)
  try:
    data = path.read_bytes()
  except OSError as error:
    raise types.UserError(
      f'labels {spec!r}: cannot be read: {error.strerror}; expected {_EXPECTED}'
    ) from error
  if path.suffix.lower() == '.json':
    said = _of_json(data, spec)
    if said is None:
      raise types.UserError(f'labels {spec!r}: its "labels" are null; leave it out')
    return Labels(given=spec, by_name=said)
  return _of_list(spec, rows.text_of(spec, data).splitlines())


def in_collection(
  names: Sequence[str], found: Found, peek: Peek, where: str
) -> list[Label | None] | None:
  """The label of each picture by dataset.json or NAME.cls, None where it has none.

  None as a whole if the collection says nothing of the kind, or that there are no labels.
  """
  tables = [(n, i) for i, (n, _) in enumerate(found) if n.rpartition('/')[2] == 'dataset.json']
  for table, i in sorted(tables, key=lambda t: len(t[0])):
    folder = table.removesuffix('dataset.json')
    if not all(name.startswith(folder) for name in names):
      continue
    if said := _of_json(_content(found, i, peek), f'{where}/{table}', strict=False):
      return _by_name(said, [name.removeprefix(folder) for name in names])
  return _beside(names, found, '.cls', lambda data, at: rows.label_of(_text(data, at), at), peek)


def says_labels(name: str) -> bool:
  """Whether a file of this name is one of those that say labels in a collection."""
  return name.endswith(('.cls', '.json'))


def in_json(
  names: Sequence[str], found: Found, peek: Peek, where: str, entry: str = ''
) -> list[Label | None] | None:
  """Labels of NAME.json beside each picture, of an entry or of that named as a label is.

  None if nothing says which entry; else None where a picture has none.

  Raises:
    UserError: a file is damaged, several entries may be the label, or none has the given name.
  """

  def may(name, value):
    simple = isinstance(value, str | int) and not isinstance(value, bool)
    return simple or name.lower() in rows.LABELS

  def read(data, at):
    entries = _json(data, at)
    entries = entries if isinstance(entries, dict) else {}
    entries = {k: (v, at) for k, v in entries.items() if v is not None}
    if entry:
      return {entry: entries[entry]} if entry in entries else {}
    return {
      k: entries[k] for k in rows.alike([k for k in entries if may(k, entries[k][0])], 'label')
    }

  said = _beside(names, found, '.json', read, peek) or []
  given = sorted(set().union(*filter(None, said)))
  if entry and not given:
    raise types.UserError(
      f'labels {entry!r}: no such file, and no such entry in a JSON file beside a picture of '
      f'{where}; expected {_EXPECTED}'
    )
  name = entry or rows.only(given, f'JSON files of {where}', what='entries')
  if name is None:
    return None
  return [rows.label_of(*e[name]) if e and name in e else None for e in said]


def _content(found, i, peek):
  name, size = found[i]
  try:
    return peek(i, size)
  except base.BadPicture as error:
    raise types.UserError(f'{name}, which says labels, cannot be read: {error}') from error


def _beside(names, found, suffix, label, peek):
  """Labels in files beside the pictures; None if there is none."""
  places = {n.removesuffix(suffix): i for i, (n, _) in enumerate(found) if n.endswith(suffix)}
  said = []
  for name in names:
    folder, slash, file = name.rpartition('/')
    # WebDataset's key ends at the first dot of the file's name.
    i = places.get(kinds.stem(name), places.get(folder + slash + file.partition('.')[0]))
    said.append(None if i is None else label(_content(found, i, peek), found[i][0]))
  return said if any(x is not None for x in said) else None


def _by_name(said: Mapping[str, Label], names: Iterable[str]) -> list[Label | None]:
  """Labels by the whole name, or the file's alone, with or without its suffix."""
  forms = lambda name: [f(n) for n in (name, os.path.basename(name)) for f in (str, kinds.stem)]
  index = {}
  for name, label in said.items():
    for form in forms(name.replace('\\', '/').removeprefix('./')):
      index.setdefault(form, set()).add(label)
  one = lambda name: next((index[f] for f in forms(name) if len(index.get(f, ())) == 1), (None,))
  return [next(iter(one(name))) for name in names]


def _once(pairs, where):
  """Labels by name; refuses a name with two."""
  said = {}
  for name, label in pairs:
    if said.setdefault(name, label) != label:
      raise types.UserError(
        f'{where}: {name} has two labels, {said[name]!r} and {label!r}; remove one'
      )
  return said


def _of_json(data, where, strict=True):
  """Labels by name; None if they are null, {} if it is another kind of file and not `strict`."""
  found = _json(data, where)
  try:
    said = found['labels']
    if said is None:
      return None
    pairs = said.items() if isinstance(said, dict) else said
    pairs = [(str(name), label) for name, label in pairs]
  except (ValueError, TypeError, KeyError) as error:
    if not strict:
      return {}
    raise types.UserError(
      f'{where}: expected {{"labels": [["00000/img00000000.png", 5], ...]}}'
    ) from error
  return _once(((name, rows.label_of(label, f'{where}: {name}')) for name, label in pairs), where)


def _json(data, where):
  try:
    return json.loads(data)
  except (ValueError, RecursionError) as error:
    raise types.UserError(
      f'{where}: damaged, not JSON: {error}; repair it, or give --labels=folders or --labels=none '
      '(data.labels in a config)'
    ) from error


def _text(data, at):
  try:
    return data.decode()
  except UnicodeDecodeError as error:
    raise types.UserError(f'{at}: not UTF-8, expected a number or the name of a class') from error


def _of_list(spec, lines):
  """Labels of a list, one a line, perhaps after a name."""
  lines = {f'{spec}:{k}': line.strip() for k, line in enumerate(lines, 1) if line.strip()}
  for mark in (None, ',', ';'):
    pairs = {at: line.rsplit(mark, 1) for at, line in lines.items()}
    if pairs and all(len(pair) == 2 for pair in pairs.values()):
      said = ((name.strip(), rows.label_of(label, at)) for at, (name, label) in pairs.items())
      return Labels(given=spec, by_name=_once(said, spec))
  if not lines or any(len(line.split()) != 1 for line in lines.values()):
    raise types.UserError(
      f'labels {spec!r}: expected one label a line, or a name and a label, on every line'
    )
  labels = [rows.label_of(line, at) for at, line in lines.items()]
  if all(isinstance(label, int) for label in labels) and (min(labels), max(labels)) == (1, 1000):
    raise types.UserError(
      f"labels {spec!r} are numbers from 1 to 1000, as of ILSVRC's development kit, whose order is "
      'not that of the WordNet ids; give the kit itself (ILSVRC2012_devkit_t12.tar.gz), which says '
      'what they mean'
    )
  return Labels(given=spec, in_order=labels)
