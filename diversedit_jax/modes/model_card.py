"""The model card of published weights: README.md as Hugging Face's hub reads it.

The head between two lines of dashes is YAML, of which JSON is a part; the hub shows the scores in
`model-index` beside the model. The licence is left to who publishes: its line is a comment.
"""

from collections.abc import Mapping
import json
import re
from typing import Any

from diversedit_jax.evaluation import card
from diversedit_jax.experiment import published

_TASK = 'unconditional-image-generation'
_TAGS = ('diffusion', 'diffusion-transformer', 'image-generation', 'jax', 'flax')
_HEAD = """---
{front}
# license: apache-2.0  # Yours to say; data, and weights that these began with, may bind you.
---

# {name}

A diffusion transformer of diversedit_jax: weights, the whole config (`config.json`), and the
protocol behind each score.

| | |
|---|---|
{facts}

## Scores

{scores}

## Use

With diversedit_jax and its extra `[hub]` installed:

```bash
python -m diversedit_jax.main --config=hf://ORG/REPO --checkpoint=hf://ORG/REPO \\
    --mode=sample --workdir=out
```

In Python, in a copy of this folder:

```python
{example}
```
"""
_EXAMPLE = """import numpy as np
from diversedit_jax import experiment
from diversedit_jax.experiment import published
from diversedit_jax.modes import sample

config = published.config('.')  # Or 'hf://ORG/REPO', here and below.
config.sample.number = 8{decoder}
files = sample.run(experiment.build(config), 'out', '.')
print(np.load(files[0])['images'].shape, *files)"""
_DECODER = """
config.vae.weights = 'hf://stabilityai/sd-vae-ft-mse'"""
_RAE = """
config.rae.decoder, config.rae.statistics = 'DECODER_FILE', 'STATISTICS_FILE'"""


def text(
  name: str,
  content: Mapping[str, Any],
  parameters: int,
  scores: Mapping[str, Mapping[str, Any]],
) -> str:
  """The whole card.

  Args:
    name: of the model. content: of its config.json. parameters: how many.
    scores: contents of files of scores, by path in the folder.
  """
  config, data, weights = content['config'], content['data'], content['weights']
  method, step = config['method'], weights['step']
  front = {
    'library_name': published.LIBRARY,
    'pipeline_tag': _TASK,
    'tags': [*_TAGS, *(part for part in method.split('+') if part != 'flow')],
    **_index(name, data['name'], scores),
  }
  trained = 'weights' if step is None else f'weights of step {step:,}'
  kind, at, of = weights['kind'].partition('@')
  averaged = f'averaged {trained}' + (f' ({of})' if at else '')
  kinds = {'ema': averaged, 'params': trained, 'file': trained}
  facts = {
    'weights': f'{kinds[kind]}, {parameters:,} parameters, float32',
    'method': method,
    'model': _model(config['model']),
    'makes': f'{data["space"]} {"x".join(map(str, data["shape"]))}, {data["num_classes"]} classes',
    **_attention(weights.get('attention')),
    'learned from': f'{data["name"]}, {data["examples"]:,} examples',
    'SHA-256': weights['sha256'],
  }
  decoder = _RAE if 'encoder' in (data['latents'] or {}) else _DECODER
  example = _EXAMPLE.format(decoder=decoder if data['space'] == 'latents' else '')
  return _HEAD.format(
    front='\n'.join(f'{key}: {json.dumps(value)}' for key, value in front.items()),
    name=name,
    facts='\n'.join(f'| {key} | {value} |' for key, value in facts.items()),
    scores=_table(scores) if scores else 'None yet.',
    example=example,
  )


def _attention(kernels):
  said = ', '.join(
    f'{kernel} on a {platform.upper()}' for platform, kernel in (kernels or {}).items()
  )
  return {'attention': f'trained with {said}'} if said else {}


def _model(options):
  sizes = [f'{name} {options[name]}' for name in ('depth', 'width', 'heads', 'patch_size')]
  return options['size'] or ', '.join(sizes)


def _index(name, data, scores):
  """The entry `model-index`; {} without scores, because the hub refuses one without results."""
  results = [
    {
      'task': {'type': _TASK},
      'dataset': {'name': data, 'type': re.sub(r'[^a-z0-9]+', '-', data.lower()).strip('-')},
      'metrics': [
        {'type': metric, 'name': metric, 'value': value, 'args': _arguments(content['protocol'])}
        for metric, value in content['scores'].items()
      ],
    }
    for content in scores.values()
  ]
  return {'model-index': [{'name': name, 'results': results}]} if results else {}


def _arguments(protocol):
  guidance = protocol['guidance']['scale']
  facts = ('sampler', 'nfe', 'num_samples', 'seed', 'attention')  # Older cards lack the last.
  return {k: protocol[k] for k in facts if k in protocol} | {'guidance_scale': guidance}


def _table(scores):
  lines = [
    '| score | value | samples | sampler | guidance | protocol |',
    '|---|---|---|---|---|---|',
  ]
  for path, content in scores.items():
    protocol = content['protocol']
    how = [
      f'{protocol["num_samples"]:,}',
      f'{protocol["sampler"]}, NFE {protocol["nfe"]}',
      card.guidance(protocol),
      f'[{path}]({path})',
    ]
    lines += [
      f'| {" | ".join([metric, f"{value:.4g}", *how])} |'
      for metric, value in content['scores'].items()
    ]
  return '\n'.join(lines)
