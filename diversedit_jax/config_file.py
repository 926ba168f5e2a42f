"""Config files: found by path or by name, run, and changed by `--config.SECTION.KEY=VALUE`.

The experiments of `configs/` come with the package, so they are found from any folder. What a
config file imports from `configs` is looked for beside itself first, then among these.
"""

from collections.abc import Mapping, Sequence
import importlib.util
import pathlib
import re
import sys
import traceback
import types as python_types

from absl import flags, logging
import ml_collections

from diversedit_jax import cli, options, paths, trees, types
from diversedit_jax.experiment import declarations, published, study
from diversedit_jax.weights import location

_PACKAGE = pathlib.Path(__file__).parent
# In a wheel they lie within the package (setup.py), in a checkout beside it.
SHIPPED = (_PACKAGE if (_PACKAGE / 'configs').is_dir() else _PACKAGE.parent) / 'configs'
_OVERRIDE = re.compile(r'--?(?P<no>no)?config\.(?P<key>[^=]+)(?:=(?P<text>.*))?', re.DOTALL)


def parse(argv: Sequence[str]) -> list[str]:
  """`cli.parse`, with every `--config.KEY=VALUE` as a value of the flag `override`.

  Raises:
    UserError: as `cli.parse`; an override without a value, or a second `--config`.
  """
  try:
    given = [argv[0], *flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)]
  except flags.Error as error:
    raise types.UserError(str(error).removeprefix('ERROR:: ')) from error
  if sum(re.match(r'--?config(=|$)', token) is not None for token in given) > 1:
    raise types.UserError('--config is given twice; its arguments go into one, after a colon')
  known, rewritten, tokens = declarations.keys(), [], iter(given)
  for token in tokens:
    found = _OVERRIDE.fullmatch(token)
    if token == '--':  # What follows are no flags.
      rewritten += [token, *tokens]
      break
    if found is None:
      rewritten.append(token)
      continue
    key, text = found['key'], found['text']
    if found['no'] or (text is None and key in known and known[key].type is bool):
      if text is not None or (key in known and known[key].type is not bool):
        raise types.UserError(f'{token}: --noconfig.KEY is for keys that are True or False')
      text = str(not found['no'])
    elif text is None:
      text = next(tokens, None)
      if text is None:
        raise types.UserError(f'{token} has no value; write {token}=VALUE')
    rewritten.append(f'--override={key}={text}')
  return cli.parse(rewritten)


def load(spec: str) -> ml_collections.ConfigDict:
  """The config of 'FILE.py', 'FILE.py:ARGUMENTS', or a shipped experiment's name ('xl256').

  Or of a folder that `--mode=export` wrote, here or on the hub.

  Raises:
    UserError: no such file, one that is not a config, or a fault in it, with its line.
  """
  if spec.startswith(location.SCHEME) or _is_published(spec):
    return published.config(spec).lock()
  file, argument = find(spec)
  source = file.read_bytes()
  module = python_types.ModuleType('config_of_the_run')
  module.__file__ = str(file)
  sys.modules[module.__name__] = module  # Where dataclasses look names up.
  _provide_configs(file.parent)
  try:
    exec(compile(source, str(file), 'exec', dont_inherit=True), module.__dict__)
    if not callable(getattr(module, 'get_config', None)):
      raise types.UserError(f'{file} is no config: it defines no get_config()')
    config = module.get_config() if argument is None else module.get_config(argument)
  except types.UserError:
    raise
  except Exception as error:
    refusal = _refusal(file, error)
    if refusal is None:
      raise
    raise types.UserError(refusal) from error
  if not isinstance(config, Mapping | ml_collections.ConfigDict):
    raise types.UserError(
      f'{file}: get_config returned {type(config).__name__}, expected a ConfigDict'
    )
  return ml_collections.ConfigDict(config).lock()


def _is_published(spec):
  folder = paths.path(spec or 'none')
  return folder.is_dir() and published.read(folder) is not None


def name(spec: str) -> str:
  """The name of a config without folder and ending, 'xl256' of 'configs/xl256.py:skips=False'."""
  return pathlib.PurePath(spec.partition(':')[0]).stem


def find(spec: str) -> tuple[pathlib.Path, str | None]:
  """The file of a spec and the arguments after its colon, None without a colon.

  Raises:
    UserError: there is none, with the nearest name; or it is a folder.
  """
  parts = spec.split(':')
  # A colon may be part of the path: the first one that leaves a file is taken.
  for end in [len(parts), *range(1, len(parts))]:
    file = _file(':'.join(parts[:end]))
    if file is not None:
      return file, ':'.join(parts[end:]) if end < len(parts) else None
  name = parts[0]
  if not name:
    raise types.UserError(f'--config={spec} names no file; give --config=FILE, as --config=digits')
  path = paths.path(name)
  if path.is_dir():
    raise types.UserError(f'--config={name} is a folder, expected a file such as {name}/digits.py')
  known = [f'configs/{file.stem}.py' for file in SHIPPED.glob('[a-z]*.py')]
  known += [str(path.with_name(file.name)) for file in path.parent.glob('*.py')]
  raise types.UserError(f'there is no config {name!r}{trees.did_you_mean(name, set(known))}')


def _file(name):
  """The file of that name, here or shipped; None if there is none."""
  path = paths.path(name)
  if path.is_file():
    return path.absolute()
  folder = pathlib.Path(*path.parts[path.parts[:1] == ('configs',) : -1])
  shipped = SHIPPED / folder / f'{path.stem}.py'
  is_name = str(folder) in ('.', 'studies') and path.suffix in ('', '.py')
  if is_name and shipped.is_file():
    logging.info('config %s', shipped)
    return shipped
  return None


def override(config: ml_collections.ConfigDict, given: Sequence[str]) -> None:
  """Sets what 'KEY=VALUE' says, in order; several values of a key that holds any number are joined.

  Of a study, it is set in every variant.

  Raises:
    UserError: an unknown key, with the nearest, or a value of another type; or the seed of a study.
  """
  if study.is_study(config):
    if any(item.partition('=')[0] == 'seed' for item in given):
      raise types.UserError(
        'a study has seeds of its own, so --config.seed would have no effect; those that come with '
        'the package take the number of seeds: --config=FILE.py:seeds=2'
      )
    for variant in study.variants(config):
      override(variant, given)
    return
  known, values = declarations.keys(), {}
  for item in given:
    key, _, text = item.partition('=')
    if key not in known:
      raise types.UserError(f'unknown config key {key!r}{_nearest(key, known)}')
    value = options.read(known[key], text)
    values[key] = values[key] + value if key in values and known[key].kind == 'numbers' else value
  with config.unlocked(), config.ignore_type():
    for key, value in values.items():
      _set(config, key, value)


def _set(config, key, value):
  *sections, last = key.split('.')
  for name in sections:
    if name not in config:  # A config may leave out what has its default.
      config[name] = ml_collections.ConfigDict()
    config = config[name]
    if not isinstance(config, ml_collections.ConfigDict):
      raise types.UserError(f'config.{name} is a section of keys, got {config!r}')
  config[last] = value


def _nearest(key, known):
  sections = {name.rpartition('.')[0] for name in known} - {''}
  if key in sections:
    return f': it is a section; --mode=keys {key} lists its keys'
  section = key.rpartition('.')[0]
  if section in known:
    return f': {section} is a key without keys below it'
  names = [name for name in known if name.rpartition('.')[0] == section] or known
  hint = trees.did_you_mean(key, names)
  return hint if 'did you mean' in hint else '; --mode=keys lists every key'


def _provide_configs(folder):
  """Makes `configs` mean the folder of a config, the shipped ones, and what is found otherwise."""
  known = sys.modules.get('configs')
  if known is None:
    spec = importlib.util.find_spec('configs')
    others = [] if spec is None else list(spec.submodule_search_locations or ())
  else:
    others = list(known.__path__)
  wanted = list(dict.fromkeys([str(folder), str(SHIPPED), *others]))
  sys.path += [str(path) for path in (folder.parent, folder) if str(path) not in sys.path]
  if known is not None and others == wanted:
    return
  for name in [name for name in sys.modules if name == 'configs' or name.startswith('configs.')]:
    del sys.modules[name]
  package = python_types.ModuleType('configs')
  package.__path__ = wanted
  sys.modules['configs'] = package


def _refusal(file, error):
  """A fault of a config file in one line with its place; None for a fault of the package."""
  is_name = isinstance(error, KeyError) and len(error.args) == 1  # Its text is in quotes.
  said = ' '.join(str(error.args[0] if is_name else error).split())
  if isinstance(error, SyntaxError) and error.filename != '<string>':
    line = f': {error.text.strip()}' if error.text else ''
    place = f'{error.filename or file}{f", line {error.lineno}" if error.lineno else ""}'
    return f'{place}: {error.msg}{line}'
  frames = traceback.extract_tb(error.__traceback__)
  last = pathlib.Path(frames[-1].filename)
  called_wrongly = last == pathlib.Path(__file__)  # get_config takes other arguments.
  if last.is_relative_to(_PACKAGE) and not last.is_relative_to(SHIPPED) and not called_wrongly:
    return None
  place = next((frame for frame in reversed(frames) if frame.filename == str(file)), None)
  if place is None:
    return f'{file}: {type(error).__name__}: {said}'
  return f'{file}, line {place.lineno}: {type(error).__name__}: {said}, in `{place.line}`'
