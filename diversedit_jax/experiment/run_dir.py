"""The directory of a run: what it is made of, and when a command may use it.

config.json    resolved config                versions.json  of the packages, at each start
metrics.jsonl  one row per report             telemetry/     similarities, sizes of blocks
checkpoints/   Orbax                          samples/       grids, .npz with cards
tensorboard/   events                         eval/          scores; analysis/ figures
data.json      which examples it learns from  audit.json     what --mode=audit found
changes.json   values that changed on the way, beside the config.until-STEP-*.json before each
init.json      from which weights it started, if not from random ones
attention.json its kernel of attention on each platform
left_out.json  steps whose updates were not finite and are left out
goodput.jsonl  where the seconds of each start went
replay/        steps computed again          report/        page and numbers of it
set_aside/     what was made after a step to which the run went back
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import pathlib
from typing import Any

import ml_collections

from diversedit_jax import __version__, locks, paths, types
from diversedit_jax.data import files
from diversedit_jax.experiment import continuing, declarations, flat_config, kernels, learned
from diversedit_jax.methods import registry
from diversedit_jax.training import goodput, nonfinite

AUDIT = 'audit.json'
_INIT = 'init.json'
_LOCK = '.training.lock'
_RESULTS = ('samples', 'eval', 'analysis')
# Entries of data.json that say what a sample is.
SPACE = ('space', 'latents')
_ENCODER = 'latents.encoder_sha256'
# What training writes and would mix with what is there, as patterns below the directory.
_OF_A_RUN = (
  'checkpoints',
  'metrics.jsonl',
  'telemetry',
  'tensorboard',
  learned.FILE,
  _INIT,
  kernels.FILE,
  'versions.json',
  nonfinite.FILE,
  goodput.FILE,
  'samples/preview-*',
  'eval/during',
)


def open_for_training(
  workdir: str,
  config: ml_collections.ConfigDict,
  versions: Mapping[str, str],
  *,
  data: Mapping[str, Any] | None = None,
  write: bool,
  continue_with: Sequence[str] = (),
  continue_from: int | None = None,
) -> pathlib.Path:
  """A new or continued run directory.

  A key that one of the two configs lacks means its default, so a new key changes no old run.

  Args:
    workdir: as the user gave it. config: resolved. versions: to record.
    data: what identifies the examples: 'name', 'examples', 'sha256', the entries of `SPACE` and
      perhaps 'label_names'; None leaves it open.
    write: whether this process writes (the first one does).
    continue_with: keys whose values a run may change on the way, see `continuing`.
    continue_from: an earlier checkpoint to go on from; what came later is set aside.

  Raises:
    UserError: if it cannot be written, holds part of a run that would be overwritten, or a run of
      another config or of other data.
  """
  path = directory(workdir)
  if str(path).startswith('s3://'):
    raise types.UserError(
      f'workdir {path}: Orbax writes no checkpoints to s3://; give a folder on a disk, '
      'or gs://BUCKET/FOLDER (--output and --checkpoint of other modes may be in s3://)'
    )
  held = sorted(name for name in _OF_A_RUN if any(map(_is_content, path.glob(name))))
  stored, given = flat_config.stored(path), flat_config.of(config)
  if held and stored is None:
    raise types.UserError(
      f'workdir {path} holds {", ".join(held)} but no config.json: not a whole run; restore its '
      'config.json, or choose another folder'
    )
  for flag, value in (('with', ','.join(continue_with)), ('from', continue_from)):
    if value and stored is None:
      raise types.UserError(
        f'--continue_{flag}={value}: workdir {path} holds no run that could go on'
      )
  changed = flat_config.differences(stored, given) if stored is not None else {}
  known_data = learned.read(path) if stored is not None else {}
  same_data = bool(data and known_data and known_data['sha256'] == data['sha256'])
  continuing.check(path, changed, given, same_data=same_data, named=continue_with)
  if data is not None and known_data and not same_data:
    raise types.UserError(
      f'workdir {path} learns from other data: {learned.changes(known_data, data)}. Its order of '
      f'examples would change; restore the data, or {continuing.from_weights(path)}'
    )
  if not write:
    return path
  files.make_writable(path, f'workdir {path}')
  if continue_from is not None:
    continuing.rewind(path, continue_from, changed=bool(changed))
  if changed:
    continuing.record_changes(path, changed)
  # The config first: without it a directory is no run.
  if changed or stored is None:
    whole = declarations.complete(config).to_dict()
    files.write_json(path / flat_config.FILE, {flat_config.WRITTEN_BY: __version__, **whole})
  if data is not None and known_data != dict(data):
    files.write_json(path / learned.FILE, dict(data))
  history = path / 'versions.json'
  known = files.read_json(history, list, may_lack=True)
  if known[-1:] != [dict(versions)]:
    files.write_json(history, [*known, dict(versions)])
  return path


@contextlib.contextmanager
def claimed(workdir: str) -> Iterator[None]:
  """Keeps other runs out of a directory during the block; the first process of a run calls it.

  Raises:
    UserError: a run trains there; it is named. Or the directory cannot be written.
  """
  path = directory(workdir)
  files.make_writable(path, f'workdir {path}')
  way_on = 'wait for its end, stop it, or choose another workdir'
  with locks.claim(path / _LOCK, f'workdir {path} is trained in', way_on):
    yield


def started_from(workdir: str) -> tuple[pathlib.Path, dict[str, Any] | None]:
  """The directory, and the run's keys `init_from` and init.*, None if it holds no run.

  Raises:
    UserError: as `open_for_training`, for a workdir or a config that cannot be read.
  """
  path = directory(workdir)
  stored = flat_config.stored(path)
  if stored is None:
    return path, None
  return path, {k: v for k, v in stored.items() if k == 'init_from' or k.startswith('init.')}


def beginning(path: pathlib.Path) -> dict[str, Any]:
  """The content of init.json, what is recorded of the weights that a run started from; or {}.

  Raises:
    UserError: the file is damaged.
  """
  return files.read_json(path / _INIT, may_lack=True)


def record_beginning(path: pathlib.Path, facts: Mapping[str, Any]) -> None:
  """Writes init.json of a run that begins."""
  files.write_json(path / _INIT, dict(facts))


def open_for_reading(
  workdir: str, config: ml_collections.ConfigDict, data: Mapping[str, Any] | None = None
) -> pathlib.Path:
  """The directory of an existing run whose network and interpolant are the config's, in any dtype.

  Args:
    workdir: as the user gave it. config: resolved.
    data: entries that `SPACE` names, as far as they are known, are compared with those that the
      run learned from. The examples may be others, or elsewhere by now.

  Raises:
    UserError: if there is no run, or they differ (what differs is listed).
  """
  path = open_recorded(workdir)
  check_same_network(
    f'workdir {path}',
    flat_config.stored(path),
    config,
    there=learned.read(path),
    given=data or {},
    remedy='Choose another workdir, or give the stored values',
  )
  return path


def open_recorded(workdir: str) -> pathlib.Path:
  """The directory of an existing run, whatever its config is: to look at what it recorded.

  Raises:
    UserError: there is no run.
  """
  path = directory(workdir)
  if not (path / flat_config.FILE).is_file():
    raise types.UserError(f'workdir {path} holds no run (no config.json); train first')
  return path


def check_same_network(
  of: str,
  stored: Mapping[str, Any],
  config: ml_collections.ConfigDict,
  *,
  there: Mapping[str, Any],
  given: Mapping[str, Any],
  remedy: str,
) -> None:
  """Refuses weights whose network or interpolant is not the config's, in any dtype.

  Args:
    of: what they lie in, for the message. stored: their config, flat and complete.
    config: resolved.
    there, given: entries that `SPACE` names, as far as they are known, of the data that they
      learned from and of those at hand.
    remedy: end of the message.

  Raises:
    UserError: they differ; what differs is listed.
  """
  changed, declared = flat_config.differences(stored, flat_config.of(config)), declarations.keys()
  if 'method' in changed and len({registry.trained_parts(m) for m in changed['method']}) == 1:
    del changed['method']  # The same parameters, trained by another loss.
  decides = lambda key: key == 'method' or (key in declared and declared[key].decides_network)
  others = {key: pair for key, pair in changed.items() if decides(key)}
  if others:
    raise types.UserError(
      f'{of} belongs to another config; it differs in {flat_config.listed(others)}. {remedy}'
    )
  known = [name for name in SPACE if name in there and name in given]
  flat = [flat_config.flatten({k: of[k] for k in known}) for of in (there, given)]
  others = flat_config.differences(*flat)
  if 'latents.encoder' in flat[0] and not all(_ENCODER in of for of in flat):
    others.pop(_ENCODER, None)  # Samples need no encoder, whose weights may not be there.
  if others:
    raise types.UserError(
      f'{of} was trained on latents of another space, encoder or scale: '
      f'{flat_config.listed(others)}. Give data of the same kind'
    )


def open_for_output(workdir: str, folder: str = '', way_on: str = '') -> pathlib.Path:
  """A directory for results, or a folder in it; created if missing.

  Raises:
    UserError: if it cannot be written; way_on ends the message.
  """
  path = directory(workdir)
  path = path / folder if folder else path
  files.make_writable(path, f'workdir {path}', way_on)
  return path


def newest_checkpoint(workdir: str) -> str:
  """The newest checkpoint of a run, as --checkpoint takes it.

  Raises:
    UserError: there is no run, or no checkpoint.
  """
  path = directory(workdir)
  step = continuing.newest_step(path)
  if not step:
    raise types.UserError(f'no checkpoint in {path}/checkpoints; train first')
  return f'{path}/checkpoints/{step}'


def check_results(path: pathlib.Path) -> None:
  """Refuses a run in which results cannot be written (UserError), with the way to look at it."""
  way_on = (
    '; --output=DIR writes results elsewhere, and --checkpoint='
    f'{path}/checkpoints/{continuing.newest_step(path)} --workdir=DIR does too'
  )
  for folder in (path, *(path / name for name in _RESULTS)):
    if folder.is_dir():
      files.make_writable(folder, f'workdir {path}', way_on)


def directory(workdir: str) -> pathlib.Path:
  """A directory as the user named it, which need not be there.

  Raises:
    UserError: it is none that a run can be in: no name, a URL, a file, a bucket that is not there.
  """
  if not workdir:
    raise types.UserError('no workdir: give --workdir=DIR, where the run is or shall be')
  if '://' in str(workdir) and not paths.is_bucket(workdir):
    raise types.UserError(
      f'workdir {workdir} is a URL, expected a directory, or one in a bucket: gs://BUCKET/FOLDER'
    )
  path = paths.utf8(paths.absolute(paths.path(workdir, bucket=True)))
  if paths.is_bucket(path):
    files.check_bucket(path, f'workdir {path}')
  if path.exists() and not path.is_dir():
    raise types.UserError(f'workdir {path} is a file, expected a directory')
  return path


def _is_content(path):
  """Whether something is there that training would mix with: a file, or one in a folder.

  What a system leaves in a folder that was made beforehand, a mounted disk say, is none.
  """
  if not path.is_dir():
    return True
  return any(p.name != 'lost+found' and not p.name.startswith('.') for p in path.iterdir())
