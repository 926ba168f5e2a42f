"""Protocol cards hold what was given, and JSON files hold no NaN."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax.evaluation import card
from diversedit_jax.types import UserError

FACTS = {
  'seed': 3,
  'sampler': 'heun',
  'steps': 20,
  'nfe': 39,
  'guidance_scale': 1.8,
  'guidance_interval': (0.0, 0.7),
  'guidance_channels': None,
  'label_policy': 'balanced',
  'quantiser': 'round_half',
  'weights': 'ema',
  'step': 4000,
  'checkpoint': 'checkpoints/4000',
  'num_samples': 1000,
  'seconds': 12.5,
}


def test_card_survives_json(tmp_path):
  made = card.protocol_card(**FACTS, batch_size=np.int64(256))
  card.write_json(tmp_path / 'eval' / 'digits.json', made)
  text = (tmp_path / 'eval' / 'digits.json').read_text()
  assert text.endswith('}\n')
  read = json.loads(text)
  assert read == made
  for name in set(FACTS) - {'guidance_scale', 'guidance_interval', 'guidance_channels'}:
    assert read[name] == FACTS[name]
  guidance = {'scale': 1.8, 'interval': [0, 0.7], 'channels': 'all', 'formula': card.GUIDANCE}
  assert read['guidance'] == guidance
  assert read['batch_size'] == 256
  assert read['device'] == {'kind': jax.devices()[0].device_kind, 'count': len(jax.devices())}
  assert read['versions']['jax'] == jax.__version__
  assert set(read['versions']) == {'diversedit_jax', 'jax', 'jaxlib', 'flax', 'numpy'}


def test_card_names_no_machine_folder():
  made = card.protocol_card(**FACTS | {'checkpoint': '/home/someone/run/checkpoints/4000'})
  assert made['checkpoint'] == 'checkpoints/4000'


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'weights': 'emma'}, "did you mean 'ema'"),
    ({'guidance_interval': (0.7, 0.0)}, 'low <= high; got 0.7, 0.0'),
    ({'seconds': -1.0}, "'seconds': -1.0"),
  ],
)
def test_card_refusals(change, message):
  with pytest.raises(UserError, match=message):
    card.protocol_card(**FACTS | change)


def test_numpy_and_jax_values_become_plain(tmp_path):
  facts = {'a': np.float32(0.5), 'b': jnp.arange(3), 'c': (np.bool_(True), None), 1: np.eye(2)}
  card.write_json(tmp_path / 'x.json', facts)
  expected = {'a': 0.5, 'b': [0, 1, 2], 'c': [True, None], '1': [[1, 0], [0, 1]]}
  assert json.loads((tmp_path / 'x.json').read_text()) == expected


@pytest.mark.parametrize(
  ('facts', 'kind', 'message'),
  [
    ({'a': {'b': [1.0, float('nan')]}}, ValueError, 'a/b/1 is nan'),
    ({'a': {1, 2}}, TypeError, 'a is a set'),
  ],
)
def test_json_refusals_keep_the_old_file(tmp_path, facts, kind, message):
  path = tmp_path / 'x.json'
  path.write_text('old')
  with pytest.raises(kind, match=message):
    card.write_json(path, facts)
  assert path.read_text() == 'old' and len(list(tmp_path.iterdir())) == 1
