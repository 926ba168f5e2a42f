"""Config files: found from any folder, whatever `configs` is there, and changed by overrides."""

import pathlib
import subprocess
import sys

from absl import flags
import pytest

from configs import common
from diversedit_jax import config_file, types

ROOT = pathlib.Path(__file__).parents[1]
OWN = """
from configs import common, {name}

def get_config(arg=None):
  config = common.base()
  config.seed = {name}.SEED
  return config
"""
PRINT = 'import sys; from diversedit_jax import config_file as c; print(c.load(sys.argv[1]).seed)'


def seed_of(spec, cwd):
  """The seed of a config, loaded by a program that was started in a folder."""
  command = [sys.executable, '-c', f'import sys; sys.path.insert(1, {str(ROOT)!r}); {PRINT}', spec]
  done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return int(done.stdout)


def test_a_config_is_found_wherever_one_stands(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  shipped = ROOT / 'configs' / 'xl256.py'
  for name in ('configs/xl256.py', 'xl256.py', 'xl256', '~/xl256.py', str(shipped)):
    monkeypatch.setenv('HOME', str(shipped.parent))
    assert config_file.find(name) == (shipped, None)
    for argument in ('method=flow,data=a:b.py:c', 'skips', ''):
      assert config_file.find(f'{name}:{argument}') == (shipped, argument)
  (tmp_path / 'xl256.py').write_text('')  # What is here comes first.
  assert config_file.find('xl256.py') == (tmp_path / 'xl256.py', None)
  (tmp_path / 'a:b.py').write_text('')
  assert config_file.find('a:b.py') == (tmp_path / 'a:b.py', None)
  with pytest.raises(
    types.UserError, match="no config 'configs/xl265.py'; did you mean 'configs/x"
  ):
    config_file.find('configs/xl265.py')


def test_a_foreign_package_of_the_same_name_is_not_taken(tmp_path):
  """Neither in the folder where one stands, nor above the config; the config's own is."""
  for place in ('here', 'lab/configs', 'lab/runs', 'here/configs'):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
  (tmp_path / 'here/configs/__init__.py').write_text('')
  (tmp_path / 'here/configs/common.py').write_text('def base(): raise SystemExit("foreign")')
  (tmp_path / 'lab/configs/mine.py').write_text('SEED = 5')
  (tmp_path / 'lab/configs/exp.py').write_text(OWN.format(name='mine'))
  assert seed_of(f'{ROOT}/configs/digits.py', tmp_path / 'here') == 0
  assert seed_of('../lab/configs/exp.py', tmp_path / 'here') == 5


def parsed(*argv):
  """The overrides of a command line, and what is left of it."""
  holder = flags.FlagValues()
  flags.DEFINE_multi_string('override', [], '', flag_values=holder)
  flags.DEFINE_string('config', None, '', flag_values=holder)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(flags, 'FLAGS', holder)
    rest = config_file.parse(['main', *argv])
  return holder.override, rest[1:]


def changed(*argv):
  config = common.base()
  config_file.override(config, parsed(*argv)[0])
  return config


def test_overrides_are_read_by_the_declared_type():
  config = changed(
    '--config.seed=0x10',
    '--config.train.steps',
    '1_000',
    '-config.optimizer.learning_rate=2',
    '--config.model.skip.enabled',
    '--noconfig.eval.keep_samples',
    '--config.data.flip=True',
    '--config.data.crop=None',
    '--config.data.labels=none',
    '--config.data.num_classes=none',
    '--config.data.size=32',
    '--config.vae.scale=(1,2.5)',
    '--config.vae.shift=0.5',
    '--config.sweep.guidance_highs=0.5',
    '--config.sweep.guidance_scales=1',
    '--config.sweep.guidance_scales=(2, 3)',
    '--config.diversity.weights=[1, 0.5, 0]',
    '--config.train.averages=0.9, std=0.05',
    '--config.sweep.weights=("ema", \'ema@0.9\')',
    '--config.data.source=folder:/a=b,c',
    '--config.eval.reference=',
  )
  assert (config.seed, config.train.steps, config.optimizer.learning_rate) == (16, 1000, 2.0)
  assert config.model.skip.enabled and config.data.flip and not config.eval.keep_samples
  assert (config.data.crop, config.data.num_classes, config.data.size) == (None, None, 32)
  assert config.data.labels == 'none'  # Which is a text that means something.
  assert (config.vae.scale, config.vae.shift) == ((1, 2.5), 0.5)
  assert config.sweep.guidance_highs == (0.5,) and config.sweep.guidance_scales == (1, 2, 3)
  assert config.diversity.weights == (1, 0.5, 0)
  assert config.train.averages == ('0.9', 'std=0.05')
  assert config.sweep.weights == ('ema', 'ema@0.9')
  assert (config.data.source, config.eval.reference) == ('folder:/a=b,c', '')


def test_the_last_value_counts_and_other_arguments_stay(tmp_path):
  (tmp_path / 'flags').write_text('--config.seed=1\n--config=digits\n')
  given, rest = parsed(f'--flagfile={tmp_path}/flags', '--config.seed=2', 'word')
  assert given == ['seed=1', 'seed=2'] and rest == ['word']
  assert changed('--config.seed=1', '--config.seed=2').seed == 2
  assert parsed('--', '--config.seed=1') == ([], ['--config.seed=1'])


def test_a_fault_of_the_package_keeps_its_traceback(tmp_path, monkeypatch):
  (tmp_path / 'exp.py').write_text('from configs import common\nget_config = common.base\n')
  monkeypatch.setattr('diversedit_jax.experiment.declarations.sections', None)
  with pytest.raises(AttributeError):
    config_file.load(str(tmp_path / 'exp.py'))
