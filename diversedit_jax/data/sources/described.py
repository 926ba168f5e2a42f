"""The facts of a source without its examples: enough for a model of them, not to train on them.

`--mode=export` writes them into `config.json` beside the weights, so that whoever gets the folder
can build the model and sample without the data.
"""

import dataclasses
import json
from typing import Any, NoReturn

import numpy as np

from diversedit_jax import paths, types
from diversedit_jax.data import latents
from diversedit_jax.data.sources import base

KIND = 'described'
_PLAIN = ('name', 'space', 'shape', 'num_classes', 'pixel_shape', 'label_names')


def describe(source: base.Source) -> dict[str, Any]:
  """The facts that `DescribedSource` takes, as JSON has them."""
  facts = {name: getattr(source, name) for name in _PLAIN}
  scaling = None if source.scaling is None else dataclasses.asdict(source.scaling)
  more = {'examples': len(source), 'scaling': scaling, 'latents': source.latent_facts()}
  return json.loads(json.dumps(facts | more))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DescribedSource(base.Source):
  """See `base.Source`; asked for an example or a digest it refuses.

  examples: how many there were. latents: see `base.Source.latent_facts`.
  """

  name: str
  space: base.Space
  shape: tuple[int, int, int]
  num_classes: int
  examples: int
  pixel_shape: tuple[int, int, int] | None = None
  label_names: tuple[str, ...] = ()
  scaling: latents.Scaling | None = None
  latents: dict[str, Any] | None = None
  can_mirror: bool = True
  # What was asked of the data holds of their description.
  options: tuple[str, ...] = ('classes', 'crop', 'orientation', 'cache')
  reads_files: bool = True

  def __len__(self) -> int:
    return self.examples

  @property
  def labels(self) -> np.ndarray:
    """Not known (UserError)."""
    self._refuse()

  def digest(self) -> str:
    """Not known (UserError)."""
    self._refuse()

  def gather(self, indices: np.ndarray, flips: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Not known (UserError)."""
    self._refuse()

  def latent_facts(self) -> dict[str, Any] | None:
    """See `base.Source`."""
    return self.latents

  def check_encoder(self, file: str, encoder_sha256: str) -> None:
    """See `base.Source`."""
    known = (self.latents or {}).get('encoder_sha256', encoder_sha256)
    if known != encoder_sha256:
      raise types.UserError(
        f'{self.name} was made with another autoencoder than vae.weights={file}: its encoder is '
        f'{known[:12]}..., not {encoder_sha256[:12]}...'
      )

  def _refuse(self) -> NoReturn:
    raise types.UserError(
      f'of the data {self.name} there is only a description, which came with the weights: to train '
      'or to analyse, give data like them, --config.data.source=KIND:PATH'
    )


def from_facts(facts: dict[str, Any]) -> DescribedSource:
  """The source that `describe` described.

  Raises:
    UserError: facts are missing.
  """
  try:
    given = {name: facts[name] for name in (*_PLAIN, 'examples', 'latents')}
    scaling = facts['scaling'] and latents.Scaling(**facts['scaling'])
  except (KeyError, TypeError) as error:
    raise types.UserError(f'a description of data is not whole: {error} is missing') from error
  tuples = {name: tuple(x) if isinstance(x, list) else x for name, x in given.items()}
  return DescribedSource(**tuples, scaling=scaling)


def _open(request: base.Request) -> DescribedSource:
  file = paths.path(request.rest)
  try:
    facts = json.loads(file.read_text(encoding='utf-8'))['data']
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise types.UserError(
      f'data {request.spec!r}: expected described:FILE, the config.json of --mode=export ({error})'
    ) from error
  return from_facts(facts)


base.register(KIND, _open)
