"""A folder of weights to give away, which says by itself what they are.

model.safetensors  arrays by our slash-joined names, without the heads of a method
config.json        library and version of this form, the run's config, what the weights are of which
                   step, and what the data are without their examples
README.md          the model card         eval/  scores, each with its protocol

`--mode=export` writes it; Hugging Face's hub takes it as it is. `--config` and `--checkpoint` read
it, here or on the hub.
"""

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any

from absl import logging
import ml_collections

from diversedit_jax import __version__, types
from diversedit_jax.data.sources import described
from diversedit_jax.evaluation import card
from diversedit_jax.experiment import declarations, flat_config, run_dir
from diversedit_jax.weights import location

LIBRARY, FORMAT = 'diversedit_jax', 1
MODEL, SETTINGS = 'model.safetensors', 'config.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
  """What such a folder says.

  file: its config.json.
  config: flat and complete, in this version's terms.
  weights: 'kind', see `card.protocol_card`; 'step', training steps or None; 'sha256' of the file;
    'label_dropout', share of labels that was dropped in training or before it, see `null_label`;
    'attention', kernels that they were trained with, by platform.
  data: see `described.describe`.
  """

  file: pathlib.Path
  config: Mapping[str, Any]
  weights: Mapping[str, Any]
  data: Mapping[str, Any]

  @property
  def label_dropout(self) -> float | None:
    """Share of labels that was dropped in training or before it; None if that is not known."""
    return self.weights.get('label_dropout', self.config['train.label_dropout'])

  def check(self, config: ml_collections.ConfigDict, data: Mapping[str, Any]) -> None:
    """Refuses a config under which the weights mean something else, key by key (UserError).

    data: see `run_dir.check_same_network`.
    """
    model = self.file.with_name(MODEL)
    if model.is_file() and self.weights['sha256'] not in (None, location.digest(model)):
      logging.warning(
        '%s is not the file that %s describes: its SHA-256 is another', model, self.file
      )
    there = {'space': self.data['space']}
    there |= {'latents': self.data['latents']} if self.data['latents'] else {}
    run_dir.check_same_network(
      str(self.file.parent),
      self.config,
      config,
      there=there,
      given=data,
      remedy=f'Give --config={self.file.parent}, which is its own',
    )


def nested(flat: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """A config from its values by whole key."""
  config = declarations.defaults()
  with config.ignore_type():
    for key, value in flat.items():
      *sections, last = key.split('.')
      into = config
      for name in sections:
        into = into[name]
      into[last] = value
  return config


def read(path: str | os.PathLike[str]) -> Published | None:
  """What the folder at a path says, or the folder of the file there; None for other folders.

  Raises:
    UserError: it was written by a later version, or is not whole.
  """
  path = pathlib.Path(path)
  file = (path if path.is_dir() else path.parent) / SETTINGS
  try:
    content = json.loads(file.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return None  # Whatever it is, it is not ours.
  if not isinstance(content, dict) or content.get('library_name') != LIBRARY:
    return None
  written = content.get('format_version')
  if not isinstance(written, int) or written > FORMAT:
    raise types.UserError(
      f'{file} has the form {written!r}, written by diversedit_jax {content.get("version")}; this '
      f'is {__version__}, which reads up to {FORMAT}: pip install --upgrade diversedit_jax'
    )
  try:
    config = flat_config.understood(file, {**content['config'], LIBRARY: content['version']})
    parts = {name: dict(content[name]) for name in ('weights', 'data')}
    described.from_facts(parts['data'])
    card.check_weights(parts['weights']['kind'])
    parts['weights'] = {'step': None, 'sha256': None, **parts['weights']}
  except (KeyError, TypeError, ValueError) as error:
    raise types.UserError(f'{file} is not whole: {error}') from error
  return Published(file=file, config=config, **parts)


def config(given: str | os.PathLike[str]) -> ml_collections.ConfigDict:
  """The config of such a folder, here or on the hub; its data are only described.

  Raises:
    UserError: there is none.
  """
  found = read(location.resolve(given, (MODEL,)).absolute())
  if found is None:
    raise types.UserError(
      f'{given} is no folder that --mode=export wrote: there is no {SETTINGS} of {LIBRARY} in it'
    )
  made = nested(found.config)
  made.data.source = f'{described.KIND}:{found.file}'
  return made


def settings(
  flat: Mapping[str, Any], weights: Mapping[str, Any], data: Mapping[str, Any]
) -> dict[str, Any]:
  """The content of `config.json`; see `Published`. Paths of this machine are left out."""
  known = declarations.keys()
  told = {
    key: _without_place(key, value, known[key].default)
    if known[key].option.path and isinstance(value, str)
    else value
    for key, value in flat.items()
  }
  return {
    'library_name': LIBRARY,
    'format_version': FORMAT,
    'version': __version__,
    'weights': dict(weights),
    'data': dict(data),
    'config': nested(told).to_dict(),
  }


def _without_place(key, value, default):
  """A value that names nothing on this machine: a place on the hub, a word, or the default."""
  if value.startswith(location.SCHEME) or not {'/', os.sep} & set(value):
    return value
  if key != 'data.source':
    return default
  kind, colon, path = value.partition(':')
  return f'{kind}{colon}{pathlib.PurePath(path).name}'
