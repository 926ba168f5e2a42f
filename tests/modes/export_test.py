"""`--mode=export` and what reads the folder: --config, --checkpoint, here and on a hub."""

import dataclasses
import json
import re
import shutil

from absl import flags as flags_lib
from absl.testing import flagsaver
from helpers import hub as hub_lib
from helpers import logs, small_runs
import huggingface_hub
import numpy as np
import pytest

from diversedit_jax import cli, config_file, convert, main, types
from diversedit_jax import experiment as experiment_lib
from diversedit_jax.experiment import flat_config, published
from diversedit_jax.frozen import inception_files, vae, vae_files
from diversedit_jax.modes import export, identity, inspect, run_context, sample
from diversedit_jax.weights import array_files, location

pytestmark = pytest.mark.usefixtures('compilation_cached')
STEP = 30


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of data at a path of this machine, with scores of its step and of another."""
  root = tmp_path_factory.mktemp('export')
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (40, 8, 8, 1)).astype(np.float32)
  np.savez(root / 'data.npz', images=images, labels=np.arange(40) % 5)
  run = small_runs.untrained(
    root / 'run',
    STEP,
    data__source=f'arrays:{root}/data.npz',
    eval__inception=f'{root}/inception.pth',
    vae__weights='',
  )
  other = json.loads((run.workdir / 'eval' / 'digits.json').read_text())
  other['protocol']['step'] = STEP - 1
  (run.workdir / 'eval' / 'before.json').write_text(json.dumps(other))
  run.checkpoint = str(run.workdir / 'checkpoints' / str(STEP))
  return run


@pytest.fixture(scope='module')
def folder(run):
  """The exported folder; it and the run's data are not beside each other."""
  folder = run.workdir.parent / 'elsewhere' / 'small-digits'
  written = export.run(run.experiment, str(folder), run.checkpoint)
  assert {path.relative_to(folder).as_posix() for path in written} == {
    path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()
  }
  return folder


def samples(config, origin, workdir):
  """Eight samples, and their card."""
  with config.unlocked():
    config.sample.number = 8
  archive, card, _ = sample.run(experiment_lib.build(config), str(workdir), str(origin))
  return small_runs.arrays(archive)['images'], json.loads(card.read_text())


def test_the_folder_has_the_weights_and_names_no_place_of_the_machine(run, folder):
  arrays = convert.load(folder / 'model.safetensors')
  ema = {name: x for name, x in run.items['ema'].items() if name.startswith('model/')}
  assert arrays.keys() == ema.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(array, ema[name])
  content = json.loads((folder / 'config.json').read_text())
  assert content['library_name'] == 'diversedit_jax' and content['format_version'] == 1
  assert content['weights'] == {
    'kind': 'ema',
    'step': STEP,
    'origin': f'checkpoints/{STEP}',
    'label_dropout': 0.1,
    'sha256': location.digest(folder / 'model.safetensors'),
  }
  told, given = (
    flat_config.complete(flat_config.flatten(of))
    for of in (content['config'], json.loads(json.dumps(run.experiment.config.to_dict())))
  )
  assert flat_config.differences(given, told) == {
    'data.source': (f'arrays:{run.workdir.parent}/data.npz', 'arrays:data.npz'),
    'eval.inception': (f'{run.workdir.parent}/inception.pth', ''),
  }
  for file in folder.rglob('*'):
    assert file.is_dir() or str(run.workdir.parent).encode() not in file.read_bytes(), file


def test_the_hub_reads_the_card(folder):
  """The hub's own client reads it."""
  card = huggingface_hub.ModelCard.load(folder / 'README.md').data
  assert (card.library_name, card.license) == ('diversedit_jax', None)
  assert card.tags[-1] == 'diverse' and card.model_name == 'small-digits'
  found = {result.metric_type: result.metric_value for result in card.eval_results}
  assert found == {'class_consistency': 0.5, 'frechet_distance': 12.0}
  assert card.eval_results[0].metric_args['guidance_scale'] == 2.0
  # Scores of other weights are left out.
  assert [path.name for path in (folder / 'eval').iterdir()] == ['digits.json']


def test_the_example_of_the_card_runs_without_the_data(run, folder, tmp_path, monkeypatch):
  copy = shutil.copytree(folder, tmp_path / 'copy')
  (code,) = re.findall(r'```python\n(.*?)```', (copy / 'README.md').read_text(), re.DOTALL)
  assert len(code.strip().splitlines()) <= 10
  monkeypatch.chdir(copy)
  exec(code, {})
  made = small_runs.arrays(copy / 'out' / 'samples' / 'samples.npz')['images']
  facts = json.loads((copy / 'out' / 'samples' / 'samples.json').read_text())
  expected, known = samples(run.experiment.config, run.checkpoint, tmp_path / 'out')
  np.testing.assert_array_equal(made, expected)
  assert facts['checkpoint'] == 'copy/model.safetensors'
  same = ('step', 'weights', 'sampler', 'guidance', 'parameters')
  assert {k: facts[k] for k in same} == {k: known[k] for k in same}


def test_its_own_config_decides_what_fits(run, folder, tmp_path):
  config = run.experiment.config.copy_and_resolve_references()
  config.model.width, config.interpolant.path = 32, 'cosine'
  for key, message in {
    'model.width': '16, given 32',
    'interpolant.path': "'linear', given 'cos",
  }.items():
    with pytest.raises(types.UserError, match=rf'small-digits belongs to.*{key}: stored {message}'):
      samples(config, folder, tmp_path)
  config = config_file.load(str(folder))
  config_file.override(config, ['sample.weights=params'])
  with pytest.raises(types.UserError, match='holds one set: give sample.weights=ema'):
    samples(config, folder, tmp_path)
  with pytest.raises(types.UserError, match='only a description.*--config.data.source'):
    run_context.data_facts(experiment_lib.build(config).source)


def test_nothing_is_overwritten_and_what_cannot_be_exported_is_refused(run, folder, tmp_path):
  before = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
  with pytest.raises(types.UserError, match='holds model.safetensors, config.json, README.md'):
    export.run(run.experiment, str(folder), run.checkpoint)
  assert before == {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
  broken = dict(run.items['ema'])
  broken['model/patch_embed/bias'] = np.full(16, np.inf, np.float32)
  convert.save(tmp_path / 'x.safetensors', broken)
  with pytest.raises(types.UserError, match='model/patch_embed/bias holds values that are not'):
    export.run(run.experiment, str(tmp_path / 'out'), str(tmp_path / 'x.safetensors'))
  assert not (tmp_path / 'out').exists()
  (tmp_path / 'file').touch()
  for output, message in {
    tmp_path / 'file': 'is a file, expected a folder',
    tmp_path / 'file' / 'out': 'cannot be written: Not a directory',
    'hf://lab/digits': 'is a URL, expected a folder',
  }.items():
    with pytest.raises(types.UserError, match=message):
      export.run(run.experiment, str(output), run.checkpoint)


def test_weights_that_are_not_those_described_are_warned_of(run, folder, tmp_path):
  copy = shutil.copytree(folder, tmp_path / 'copy')
  about = published.read(copy)
  with logs.noted() as told:
    about.check(run.experiment.config, {})
    assert not told
    (copy / 'model.safetensors').unlink()
    convert.save(copy / 'model.safetensors', run.items['params'])
    about.check(run.experiment.config, {})
  assert len(told) == 1 and 'its SHA-256 is another' in told[0]


def test_the_command_line_reaches_the_mode(folder, tmp_path, capsys, monkeypatch):
  flags_lib.FLAGS.mark_as_parsed()
  for name in ('keep_programs', 'keep_memory'):  # They change the whole process.
    monkeypatch.setattr(cli, name, lambda: None)
  flags = {'config': str(folder), 'checkpoint': str(folder), 'output': str(tmp_path / 'out')}
  with flagsaver.flagsaver(mode='export', **flags):
    main.main(['main.py'])
  assert capsys.readouterr().out.splitlines()[0] == str(tmp_path / 'out' / 'model.safetensors')
  with flagsaver.flagsaver(mode='inspect', checkpoint=str(tmp_path / 'out'), full=True):
    main.main(['main.py'])
  assert f'ema of step {STEP}, from --mode=export' in capsys.readouterr().out
  flags['output'] = None
  with (
    flagsaver.flagsaver(mode='export', **flags),
    pytest.raises(types.UserError, match='output=DIR'),
  ):
    main.main(['main.py'])


def test_other_origins_and_other_weights(run, folder, tmp_path):
  of_params = dataclasses.replace(run.experiment.sample, weights='params')
  params = dataclasses.replace(run.experiment, sample=of_params)
  export.run(params, str(tmp_path / 'params'), run.checkpoint)
  array = convert.load(tmp_path / 'params' / 'model.safetensors')['model/patch_embed/bias']
  np.testing.assert_array_equal(array, run.items['params']['model/patch_embed/bias'])
  assert not (tmp_path / 'params' / 'eval').exists()  # The scores are of the average.
  assert 'model-index' not in (tmp_path / 'params' / 'README.md').read_text()
  export.run(run.experiment, str(tmp_path / 'again'), str(folder))
  first, again = (json.loads((x / 'config.json').read_text()) for x in (folder, tmp_path / 'again'))
  assert again.pop('weights') == first.pop('weights') | {'origin': 'small-digits/model.safetensors'}
  assert again == first
  assert (tmp_path / 'again' / 'eval' / 'digits.json').is_file()


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'format_version': 2}, r'has the form 2, .* reads up to 1: pip install --upgrade'),
    ({'data': {}}, r'is not whole: .*name'),
    ({'weights': {'kind': 'best'}}, "is not whole: unknown weights 'best'"),
    ({'config': {'method': 'of tomorrow'}}, "no method 'of tomorrow'"),
  ],
)
def test_a_folder_that_is_not_understood_is_told(folder, tmp_path, change, message):
  content = json.loads((folder / 'config.json').read_text()) | change
  (tmp_path / 'config.json').write_text(json.dumps(content))
  with pytest.raises(types.UserError, match=message):
    published.config(tmp_path)


def test_the_same_network_from_elsewhere_makes_no_other_scores():
  of = lambda file, digest: {
    'compared': {'networks': {'inception': {'file': file, 'sha256': digest}}}
  }
  assert not identity.differences(of('x.pth', 'ab'), of('hf://lab/fid@main/x.pth', 'ab'))
  assert list(identity.differences(of('x.pth', 'ab'), of('x.pth', 'cd'))) == [
    'compared.networks.inception.sha256'
  ]


def test_a_folder_of_others_is_none(tmp_path):
  (tmp_path / 'config.json').write_text('{"_class_name": "AutoencoderKL"}')
  assert published.read(tmp_path) is None
  with pytest.raises(types.UserError, match='no folder that --mode=export wrote'):
    published.config(tmp_path)


def test_config_and_checkpoint_of_a_hub(run, folder, tmp_path):
  with hub_lib.served(tmp_path / 'home') as hub:
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob('*.*')}
    hub.files = {('lab/digits', name): path.read_bytes() for name, path in files.items()}
    autoencoder = vae_files.random(
      vae.VAEConfig(block_channels=(32, 32), layers_per_block=1, scale=1.0), 0
    )
    arrays = vae_files.to_arrays(autoencoder.params, autoencoder.config)
    array_files.save(tmp_path / 'vae.safetensors', arrays)
    hub.files['lab/vae', vae_files.FILE] = (tmp_path / 'vae.safetensors').read_bytes()
    made, facts = samples(
      config_file.load('hf://lab/digits@v1'), 'hf://lab/digits', tmp_path / 'made'
    )
    digest = location.digest(folder / 'model.safetensors')
    pinned = f'hf://lab/digits@{hub_lib.COMMIT}/model.safetensors'
    assert facts['checkpoint'] == f'{pinned}#sha256={digest}'
    assert (facts['step'], facts['weights']) == (STEP, 'ema')
    expected, _ = samples(run.experiment.config, run.checkpoint, tmp_path / 'out')
    np.testing.assert_array_equal(made, expected)
    page = inspect.run('', 'hf://lab/digits')
    assert f'file         {pinned}, ' in page and f'SHA-256      {digest}' in page
    # The other networks come by the same way, and say which file they are.
    found = vae_files.load('hf://lab/vae', scale=1.0)
    assert found.decoder_sha256 == autoencoder.decoder_sha256
    digest = location.digest(tmp_path / 'vae.safetensors')
    assert found.file == f'hf://lab/vae@{hub_lib.COMMIT}/{vae_files.FILE}#sha256={digest}'
    with pytest.raises(types.UserError, match='the repository has none of pt_inception-2015-12-05'):
      inception_files.load('hf://lab/vae')
