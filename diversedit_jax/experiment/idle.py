"""Keys that a command line gives and that have no effect, told in words.

Configs may set what another mode or method reads; what somebody types is meant to do something.
"""

from collections.abc import Iterable

from diversedit_jax.analysis import registry as registry_of_parts
from diversedit_jax.analysis import section as analysis
from diversedit_jax.experiment import declarations, experiment
from diversedit_jax.methods import registry

# Keys by mode that have a twin there.
_GUIDANCE = {
  'sampler.guidance_scale': 'sweep.guidance_scales',
  'sampler.guidance_low': 'sweep.guidance_lows',
  'sampler.guidance_high': 'sweep.guidance_highs',
}
_OF_SCORES = {'sample.labels': 'eval.labels', 'sample.name': 'eval.name'}
_TWINS = {
  'sample': {
    'eval.number': 'sample.number',
    'eval.labels': 'sample.labels',
    'eval.name': 'sample.name',
    'sweep.number': 'sample.number',
  },
  'eval': {**_OF_SCORES, 'sample.number': 'eval.number', 'sweep.number': 'eval.number'},
  'sweep': {
    **_OF_SCORES,
    **_GUIDANCE,
    'sample.number': 'sweep.number',
    'eval.number': 'sweep.number',
  },
}
# Keys that the digits' own scores do not read.
_OF_PICTURES = ('inception', 'encoder', 'encoder_weights', 'encoder_reference', 'quantiser')
_OF_PICTURES += ('fdr', 'fdr_weights', 'fdr_reference', 'fdr_real', 'cmmd', 'cmmd_reference')
_OF_PICTURES += ('classifier', 'precision_recall', 'kid_subsets', 'batch_size', 'keep_samples')


def remarks(made: experiment.Experiment, mode: str, given: Iterable[str]) -> list[str]:
  """Sentences about given keys without effect.

  Args:
    made: the experiment. mode: as in --mode. given: keys that the command line sets, by whole name.
  """
  found, keys = [], declarations.keys()
  for name in given:
    if name in keys and _at(made.config, name) != keys[name].default:
      why = _why(made, mode, name)
      found += [f'--config.{name} has no effect: {why}'] if why else []
  return found


def _why(made, mode, name):
  section, _, key = name.partition('.')
  if mode == 'sweep' and name == 'sample.weights' and made.sweep.weights:
    return 'sweep.weights says which weights are compared'
  if twin := _TWINS.get(mode, {}).get(name):
    return f'--mode={mode} reads {twin}'
  if section in registry.sections() and not registry.reads(made.method, name):
    return f'method={made.method} does not read it'
  for part in (made.objective.flow, *made.objective.terms):
    if part.section == section and (why := part.idle(key)):
      return why
  if section == 'vae' and not made.vae.weights and key in ('dtype', 'tile'):
    return 'nothing is decoded without vae.weights'
  if name == 'rae.pixels' and not made.rae.decoder:
    return 'nothing is decoded without rae.decoder'
  if section == 'rae' and key in ('weights', 'patch', 'dtype') and made.source.tokenizer is None:
    return 'no pixels are encoded' + ('' if made.rae.encoder else ' without rae.encoder')
  if name == 'rae.statistics' and not (made.rae.encoder or made.rae.decoder):
    return 'there are no such latents without rae.encoder'
  scores = mode in ('eval', 'sweep') or (mode == 'train' and made.evaluation.every)
  if scores and section == 'eval' and key in _OF_PICTURES and made.evaluation.reference == 'digits':
    return 'eval.reference=digits needs no network that looks at pictures'
  if mode == 'analyze' and section == 'analysis':
    chosen = set(made.analysis.parts or registry_of_parts.defaults())
    readers = analysis.PARTS_OF.get(key)
    if readers and not chosen & {*readers, registry_of_parts.ALL}:
      return f'it is for analysis.parts={",".join(readers)}'
  if key == 'schedule':
    terms = [term for term in made.objective.terms if term.section == section]
    if terms and terms[0].factor.until >= made.train.steps:
      return f'the run ends at step {made.train.steps}, before it changes anything'
  if name.startswith('model.context.') and not made.architecture.context_tokens:
    return f'model.conditioning={made.architecture.conditioning}'
  if name == 'log.profile' and made.log.profiled[0] > made.train.steps:
    return f'the run ends at step {made.train.steps}'
  if name == 'train.label_dropout' and not made.architecture.num_classes:
    return 'the data have no classes'
  if name.startswith('optimizer.muon.') and made.optimizer.name != 'muon':
    return f'optimizer.name={made.optimizer.name}'
  if name == 'train.max_skipped' and made.train.on_nonfinite == 'stop':
    return 'train.on_nonfinite=stop leaves nothing out'
  return ''


def _at(config, name):
  for part in name.split('.'):
    config = config[part]
  return tuple(config) if isinstance(config, list) else config
