"""Keys of a config that are misspelt or missing are refused by name, with the nearest."""

from helpers import config_changes
import pytest

from configs import common, digits

compiler_out_of_reach = config_changes.compiler_out_of_reach
section_of, dotted = config_changes.section_of, config_changes.dotted
refusal = config_changes.refusal

# section -> (misspelt key, the key that was meant)
MISSPELT = {
  'repa': ('pair', 'pairs'),
  'dispersive': ('preest', 'preset'),
  'sra': ('t_mx', 't_max'),
  'reg': ('class_wieght', 'class_weight'),
  'meanflow': ('kapa', 'kappa'),
  '': ('optimiser', 'optimizer'),
  'data': ('sorce', 'source'),
  'vae': ('wieghts', 'weights'),
  'model': ('depht', 'depth'),
  'model.skip': ('enable', 'enabled'),
  'interpolant': ('time_low', 'time_law'),
  'diversity': ('group', 'groups'),
  'train': ('batchsize', 'batch_size'),
  'optimizer': ('learning_rat', 'learning_rate'),
  'mesh': ('tensors', 'tensor'),
  'log': ('tensorbord', 'tensorboard'),
  'checkpoint': ('keep_evry', 'keep_every'),
  'preview': ('colums', 'columns'),
  'sampler': ('guidance_scael', 'guidance_scale'),
  'sample': ('weight', 'weights'),
  'eval': ('numbr', 'number'),
  'sweep': ('guidance_scale', 'guidance_scales'),
  'analysis': ('bandwith', 'bandwidth'),
  'plan': ('device', 'devices'),
}


def test_every_section_is_misspelt_below():
  base = common.base()
  sections = {key for key in base if hasattr(base[key], 'keys')}
  assert set(MISSPELT) == sections | {'', 'model.skip'}


@pytest.mark.parametrize(('section', 'keys'), MISSPELT.items())
def test_unknown_key_is_refused_with_the_nearest(section, keys):
  wrong, meant = keys
  config = digits.get_config()
  with config.unlocked():
    section_of(config, section)[wrong] = 1
  where = dotted('config', section, wrong)
  assert refusal(config) == f'unknown key {where}; did you mean {meant!r}?'


# Sections whose dataclass has the published value for a missing key, and their other keys.
WITH_DEFAULTS = {
  'model': ('size', 'skip', 'depth', 'width', 'heads', 'patch_size'),
  'diversity': (),
  'optimizer': (),
  'sampler': (),
}


@pytest.mark.parametrize('section', MISSPELT)
def test_missing_key_is_refused(section):
  whole = section_of(digits.get_config(), section)
  for key in WITH_DEFAULTS.get(section, list(whole)):
    config = digits.get_config()
    with config.unlocked():
      del section_of(config, section)[key]
    assert refusal(config) == f'{dotted("config", section)} lacks {key}'
