"""Finds the file of weights in a folder, as Hugging Face's programs leave them."""

from collections.abc import Sequence
import pathlib
import re

from diversedit_jax import types
from diversedit_jax.weights import misfits

INDEX = '.index.json'
NAMES = tuple(
  f'{stem}{suffix}'
  for suffix in ('.safetensors', f'.safetensors{INDEX}', '.bin', f'.bin{INDEX}')
  for stem in ('model', 'diffusion_pytorch_model', 'pytorch_model')
)
"""What libraries call the weights in a folder, the best first."""

_SUFFIXES = ('.safetensors', '.bin', '.pt', '.pth', '.ckpt', '.npz')
_SHARD = re.compile(r'.*-\d{5}-of-\d{5}\.\w+')
# What training leaves beside the weights, and statistics of an autoencoder's latents.
_OTHERS = re.compile(
  r'(optimizer|scheduler|scaler|random_states|rng_state|training_args).*|(.+-)?latents[-_]stats\..*'
)


def names(within: Sequence[str] = ()) -> tuple[str, ...]:
  """`NAMES`, and then the same in some folders."""
  return (*NAMES, *(f'{folder}/{name}' for folder in within for name in NAMES))


def find(path: pathlib.Path, within: Sequence[str] = ()) -> pathlib.Path:
  """The file at a path, or the one file or index of weights in the folder there.

  Args:
    path: a file or a folder.
    within: names of folders to look into where there is none.

  Raises:
    UserError: the folder has none or several, which are listed.
  """
  if not path.is_dir():
    return path
  known = _known(path)
  whole = _whole(known)
  for name in NAMES:
    if path / name in whole:
      return path / name
  if len(whole) == 1:
    return whole[0]
  if whole:
    names = misfits.first_few([p.name for p in whole])
    raise types.UserError(f'folder {path} has several files of weights: {names}; name one')
  if shards := [p.name for p in known if _SHARD.fullmatch(p.name)]:
    raise types.UserError(
      f'folder {path} has shards ({misfits.first_few(shards)}) without their index '
      f'(*{INDEX}), which is published beside them'
    )
  for name in within:
    if (path / name).is_dir():
      return find(path / name)
  if any(p.suffix == '.distcp' for p in path.iterdir()):
    raise types.UserError(
      f'folder {path} is a distributed checkpoint of PyTorch; make one file of it with '
      f'`python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} weights.pt`'
    )
  raise types.UserError(
    f'folder {path} has no file of weights ({", ".join(_SUFFIXES)}); '
    f'it holds {misfits.first_few(sorted(p.name for p in path.iterdir())) or "nothing"}'
  )


def alone(path: pathlib.Path) -> pathlib.Path | None:
  """The one file or index of weights in a folder; None if there are others, or none."""
  whole = _whole(_known(path))
  return whole[0] if len(whole) == 1 else None


def _known(path):
  files = sorted(p for p in path.iterdir() if p.is_file())
  return [p for p in files if p.suffix in _SUFFIXES or p.name.endswith(INDEX)]


def _whole(known):
  return [p for p in known if not _SHARD.fullmatch(p.name) and not _OTHERS.fullmatch(p.name)]
