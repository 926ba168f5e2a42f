"""What decides samples and scores, and whether a file of them has the same identity."""

from collections.abc import Mapping
import json
import pathlib
from typing import Any

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import types
from diversedit_jax.data import files
from diversedit_jax.evaluation import card, multihost, scorers
from diversedit_jax.experiment import flat_config
from diversedit_jax.modes import run_context
from diversedit_jax.sampling import trajectory


def make(
  experiment: experiment_lib.Experiment,
  sampler: trajectory.SamplerConfig,
  scorer: scorers.Scorer,
  number: int,
  facts: Mapping[str, Any],
) -> dict[str, Any]:
  """What decides samples and their scores, as JSON has it.

  Args:
    experiment, sampler: how samples are made.
    scorer: what scores them.
    number: number of samples.
    facts: facts of labels and weights.
  """
  weaker = sampler.needs_null and sampler.guidance_scale <= 1  # In 0.1 these did not guide.
  return _plain(
    {
      'samples': {
        **run_context.sampler_facts(experiment, sampler),
        **scorer.facts(),
        **facts,
        'number': number,
        'class_token_scale': sampler.class_token_scale,
        **({'guidance': card.GUIDANCE} if weaker else {}),
        'network': flat_config.network(experiment.config.to_dict()),
      },
      'compared': scorer.compared(),
    }
  )


def differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
  """What differs between two identities: by key, the stored and the given value.

  A key of the network that an identity lacks, because the key came later, means its default.
  """
  stored, given = (_flat(_complete(identity)) for identity in (stored, given))
  return flat_config.differences(stored, given)


def is_of(path: pathlib.Path, identity: Mapping[str, Any], what: str) -> bool:
  """Whether a file is there and has this identity.

  Raises:
    UserError: it has another one; what differs is listed. Or not all processes see the same.
  """
  there = path.is_file()
  fault = _fault(path, identity, what) if there else ''
  # The first process writes the file later, so all look before any goes on, and all refuse or none.
  multihost.check_same(2 if fault else int(there), path.parent)
  if fault:
    raise types.UserError(fault)
  return there


def check_card(path: pathlib.Path, facts: Mapping[str, Any], way_on: str) -> None:
  """Refuses to replace samples whose protocol card, beside them, says something else.

  Args:
    path: file of the card. facts: card of the samples that would replace them.
    way_on: end of the message.

  Raises:
    UserError: what differs is listed; or there are samples without a card.
  """
  fault, archive = '', path.with_suffix('.npz')
  if path.is_file():
    try:
      stored = files.read_json(path)
    except types.UserError as error:
      stored, fault = {}, str(error)
    given = _plain(facts)
    # Another device or version makes the same samples but for rounding; older cards say less.
    same = [k for k in stored if k in given and k not in _OF_THE_MAKING]
    changed = flat_config.differences(*(_flat({k: of[k] for k in same}) for of in (stored, given)))
    if changed:
      fault = f'{archive} holds samples of another protocol: {_listed(changed)}'
  elif archive.is_file():
    fault = f'{archive} holds samples without {path.name}, which would say whose they are'
  multihost.check_same(bool(fault), path.parent)
  if fault:
    raise types.UserError(f'{fault}. {way_on}')


_OF_THE_MAKING = ('seconds', 'device', 'attention', 'versions', 'batch_size')


def _flat(facts):
  """Facts by whole key, without names of networks: the digests beside them say which it was."""
  names = ('.file', '.autoencoder')
  return {k: v for k, v in flat_config.flatten(facts).items() if not k.endswith(names)}


def _listed(changed):
  return ', '.join(f'{k}: there {a!r}, now {b!r}' for k, (a, b) in list(changed.items())[:8])


def _fault(path, identity, what):
  """Says how the identity in a file differs from `identity`; '' if they match."""
  try:
    known = files.read_json(path)
  except types.UserError as error:
    return str(error)
  changed = differences(known.get('identity', known), identity)
  if not changed:
    return ''
  held = path.parent if what == 'samples' else path
  listed = _listed(changed)
  return f'{held} has {what} of another protocol: {listed}. Choose another eval.name, or remove it'


def _plain(facts):
  """Facts as they come back from a JSON file."""
  return json.loads(json.dumps(facts))


def _complete(identity):
  """An identity of samples, or of scores, with defaults for network keys that it lacks."""
  if 'samples' in identity:
    return {**identity, 'samples': _complete(identity['samples'])}
  if 'network' not in identity:
    return identity
  return {**identity, 'network': flat_config.decisive(flat_config.complete(identity['network']))}
