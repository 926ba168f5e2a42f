"""Wrong command lines and configs, made from the declarations and a small grammar.

Each ends with one message on stderr and exit code 2, and writes nothing. They are real processes
(see `helpers.command_server`).
"""

import dataclasses
import re
import zlib

from helpers import command_server
import numpy as np
from PIL import Image
import pytest

from diversedit_jax.experiment import declarations

KEYS = declarations.keys()
_LOG = re.compile(r'[IW]\d{4} |\w+\.py:\d+: \w*Warning')
_LONGEST = 900  # Characters of a message.


@dataclasses.dataclass(frozen=True)
class Mistake:
  """A command line, and words of its message. DATA is the folder of the fixture `data`."""

  module: str
  argv: tuple[str, ...]
  words: str
  env: tuple[tuple[str, str | None], ...] = ()

  def __str__(self):
    return ' '.join([self.module.rpartition('.')[2], *self.argv, *(name for name, _ in self.env)])


def main(words, *argv, config='digits', **env):
  given = [] if config is None else [f'--config={config}']
  return Mistake('diversedit_jax.main', (*given, *argv), words, tuple(env.items()))


def prepare(words, *argv, source='DATA/pictures', output='store'):
  where = [f'--{k}={v}' for k, v in (('source', source), ('output', output)) if v is not None]
  return Mistake('diversedit_jax.prepare', (*where, *argv), words)


def convert(words, *argv, given='DATA/plain.npz', output='out.npz'):
  where = [f'--{k}={v}' for k, v in (('input', given), ('output', output)) if v is not None]
  return Mistake('diversedit_jax.convert', (*where, *argv), words)


def evaluate(words, *argv, samples='DATA/samples.npz', reference='DATA/samples.npz'):
  where = [f'--{k}={v}' for k, v in (('samples', samples), ('reference', reference)) if v]
  return Mistake('diversedit_jax.evaluate_npz', (*where, *argv), words)


# From the declarations: one wrong value for every key, an unknown key in every section.


def wrong_value(key):
  """A text that a key must refuse, of one of the kinds of mistakes; None for a text without rules.

  The kind is drawn by the name, so all kinds occur and each key always has the same.
  """
  facts, draw = key.option, zlib.crc32(key.name.encode())
  if facts.choices is not None:
    real = sorted(str(choice) for choice in facts.choices if choice)
    return f'{real[draw % len(real)]}x'
  if key.kind == 'True or False':
    return 'perhaps'
  if 'number' not in key.kind:
    return None
  wrong = ['some', '', 'nan', 'inf', '-inf', '1;2']
  if facts.at_least is not None or facts.above is not None:
    wrong.append('-7')
  if facts.at_most is not None or facts.below is not None:
    wrong.append('99999999999')
  if 'whole' in key.kind:
    wrong.append('1.5')
  text = wrong[draw % len(wrong)]
  return f'({text},)' if key.kind == 'numbers' else text


def of_keys():
  for name, key in KEYS.items():
    text = wrong_value(key)
    if text is not None:
      yield main(name, f'--config.{name}={text}', '--mode=plan')
  sections = {name.rpartition('.')[0] for name in KEYS} - {''}
  for section in sorted(sections):
    first = next(name for name in KEYS if name.startswith(f'{section}.'))
    yield main('did you mean', f'--config.{first}z=1', '--mode=plan')


# Written down: what excludes each other, files, flags, configs, surroundings.

ABSENT = '/nowhere/at all'
PICTURES = ('--config.data.source=folder:DATA/pictures', '--config.data.size=8')
LATENTS = ('--config.data.source=synthetic:8x8x4:10',)

TOGETHER = [
  ('method=meanflow', 'guidance_scale', '--config.sampler.guidance_scale=2.0'),
  ('method=flow', 'average velocities', '--config.sampler.kind=average_velocity'),
  ('method=flow', 'class_token_scale', '--config.sampler.class_token_scale=2'),
  ('method=flow+meanflow', 'meanflow'),
  ('method=reg+meanflow', 'reg'),
  ('method=diverse+diverse', 'diverse'),
  ('method=flow+repaa', 'repa'),
  ('method=sra', 'block', '--config.sra.teacher_block=99'),
  ('method=dispersive', 'block', '--config.dispersive.block=99'),
  ('method=diverse', 'diversity.layers', '--config.diversity.layers=0,3'),
  ('method=diverse', 'diversity.layers', '--config.diversity.layers=first'),
  ('method=repa', "no encoder 'dino'", '--config.repa.pairs=dino@3'),
  ('method=repa', 'repa.pairs', '--config.repa.pairs=pca@99'),
  ('skips=False', 'heads', '--config.model.width=97'),
  ('skips', 'depth', '--config.model.depth=5'),
  ('', 'patch_size', '--config.model.patch_size=3'),
  ('', 'model.size', '--config.model.size=S/2'),
  ('', 'accumulate', '--config.train.accumulate=3'),
  ('', 'batch_size', '--config.train.batch_size=5000'),
  ('', 'warmup', '--config.optimizer.warmup_steps=5000'),
  ('', 'workers', '--config.data.workers=2'),
  ('', 'guidance', '--config.sampler.guidance_low=0.8', '--config.sampler.guidance_high=0.2'),
  ('', 'train.label_dropout', '--config.train.label_dropout=1'),
  ('', 'optimizer.freeze', '--config.optimizer.freeze=nothing_like_it'),
  ('', 'sample.labels', '--config.sample.labels=11'),
  ('', 'sample.labels', '--config.sample.labels=balancd'),
  ('', 'eval.name', '--config.eval.name=../x'),
  ('', 'eval.encoder_weights', '--config.eval.encoder=dinov2-vit-b'),
  ('', 'plan.compile_for', '--config.plan.compile_for=h2000:8'),
  ('', 'data.space', '--config.data.space=latents'),
  ('', 'crop', '--config.data.crop=center'),
  ('', 'data source', '--config.data.source=folders:x'),
  ('', 'data.size', '--config.data.source=folder:DATA/pictures'),
  ('', ABSENT, f'--config.data.source=folder:{ABSENT}', '--config.data.size=8'),
  ('', ABSENT, f'--config.data.source=zip:{ABSENT}', '--config.data.size=8'),
  ('', ABSENT, f'--config.data.source=csv:{ABSENT}', '--config.data.size=8'),
  ('', ABSENT, f'--config.data.source=store:{ABSENT}'),
  ('', ABSENT, f'--config.data.source=arrays:{ABSENT}'),
  ('', 'plain.npz', '--config.data.source=arrays:DATA/plain.npz'),
  ('', 'text.npz', '--config.data.source=arrays:DATA/text.npz'),
  ('', 'text.npz', '--config.data.source=tar:DATA/text.npz', '--config.data.size=8'),
  ('', 'text.npz', '--config.data.source=zip:DATA/text.npz', '--config.data.size=8'),
  ('', 'tfds', '--config.data.source=tfds:no_such_set', '--config.data.size=8'),
  ('', 'synthetic', '--config.data.source=synthetic:8x8'),
  ('', ABSENT, *PICTURES, f'--config.data.classes={ABSENT}'),
  ('', 'num_classes', *PICTURES, '--config.data.num_classes=3'),
]


def of_combinations():
  for argument, words, *argv in TOGETHER:
    yield main(words, '--mode=plan', *argv, config=f'digits:{argument}'.removesuffix(':'))


CONFIGS = {
  'syntax': ('def get_config(:', 'line 1'),
  'fault': ('def get_config():\n  return {}["forgotten"]\n', 'line 2'),
  'import': ('import no_such_module\n', 'line 1'),
  'forgets': ('from configs import commn\n', 'commn'),
  'empty': ('', 'get_config'),
  'argument': ('def get_config(size):\n  return {}\n', 'size'),
  'number': ('def get_config():\n  return 3\n', 'get_config'),
  'key': (
    'from configs import common\ndef get_config():\n  c = common.base()\n  c.train.stepz = 1\n'
    '  return c\n',
    'stepz',
  ),
  'type': (
    'from configs import common\ndef get_config():\n  c = common.base()\n  c.train.steps = "a"\n'
    '  return c\n',
    'line 4',
  ),
  'bytes': ('x = "\0"', 'null bytes'),
}

FLAGS = [
  main('no config', config=None),
  main('no config', '--config.seed=1', '--mode=keys', config=None),
  main('twice', '--config=digits'),
  main('did you mean', config='configs/digts.py'),
  main(ABSENT, config=f'{ABSENT}.py'),
  main('names no file', config=''),
  main('is a folder', config='DATA'),
  main("did you mean 'method'", '--mode=plan', config='digits:metod=flow'),
  main("did you mean 'skips'", '--mode=plan', config='digits:skip'),
  main('steps', '--mode=plan', config='digits:steps=many'),
  main('nearest', '--mode=plan', config='paper:table1/SiT-B+DiverseDit2'),
  main('many experiments', '--mode=plan', config='paper'),
  main('nothing to list', '--mode=list'),
  main("did you mean 'plan'", '--mode=pln'),
  main("did you mean '--workdir'", '--wrkdir=x'),
  main('unexpected arguments', 'mode=plan'),
  main('no workdir', '--mode=train'),
  main('is a file', '--workdir=DATA/plain.npz'),
  main('cannot be written', '--workdir=DATA/plain.npz/run'),
  main('URL', '--workdir=gs://bucket/run'),
  main('--checkpoint is not for', '--checkpoint=x', '--mode=plan'),
  main('--continue_with is not for', '--continue_with=seed', '--mode=plan'),
  main('holds no run', '--workdir=run', '--mode=eval'),
  main('', '--mode=inspect', config=None),
  main(ABSENT, '--mode=inspect', f'--checkpoint={ABSENT}', config=None),
  main('text.pt', '--mode=inspect', '--checkpoint=DATA/text.pt', config=None),
  main('give one', '--mode=eval', '--workdir=a', '--output=b', '--checkpoint=DATA/plain.npz'),
  main('square pictures', '--workdir=run', '--config.eval.every=9', '--config.eval.reference=x'),
  main('--output', '--mode=export', '--workdir=run'),
  main('hf://', '--mode=sample', '--workdir=run', '--checkpoint=hf://one'),
  main(ABSENT, '--workdir=run', '--mode=sample', f'--checkpoint={ABSENT}'),
  main(ABSENT, '--mode=sample', '--workdir=run', *LATENTS, f'--config.vae.weights={ABSENT}'),
  main('optimizer', '--mode=keys', 'optimiser'),
  main('no value', '--mode=plan', '--config.seed'),
  main('--noconfig', '--mode=plan', '--noconfig.seed'),
  main('is a section', '--mode=plan', '--config.model=1'),
  main('without keys below', '--mode=plan', '--config.seed.x=1'),
  main('absent.flags', '--mode=plan', '--flagfile=absent.flags'),
  main('home folder', '--workdir=~nobody_of_this_name/run'),
  main('JAX_PLATFORMS', '--workdir=run', JAX_PLATFORMS='cudaa'),
  main('JAX_COORDINATOR_ADDRESS', '--distributed', '--workdir=run'),
  main('JAX_NUM_PROCESSES', '--distributed', '--workdir=run', JAX_NUM_PROCESSES='two'),
  main(
    'expected less', '--distributed', '--workdir=run', JAX_NUM_PROCESSES='2', JAX_PROCESS_ID='2'
  ),
  main('not HOST:PORT', '--distributed', '--workdir=run', JAX_COORDINATOR_ADDRESS='here'),
  prepare('--source', source=None),
  prepare('--output', output=None),
  prepare('did you mean', '--siz=8', '--store=pixels'),
  prepare('did you mean', '--store=pixel'),
  prepare('did you mean', '--store=pixels', '--crop=centre'),
  prepare('orientation', '--store=pixels', '--orientation=up'),
  prepare('needs --vae'),
  prepare(ABSENT, f'--vae={ABSENT}'),
  prepare('does not go with', '--store=pixels', '--twins'),
  prepare('does not go with', '--store=pixels', '--dtype=float16'),
  prepare('--size', '--store=pixels', '--size=0'),
  prepare('--size', '--store=pixels', '--size=big'),
  prepare('--threads', '--store=pixels', '--threads=-1'),
  prepare('--batch_size', '--store=pixels', '--batch_size=nan'),
  prepare('i/n', '--store=pixels', '--shard=1'),
  prepare('counted from 0', '--store=pixels', '--shard=4/4'),
  prepare('--shard', '--store=pixels', '--shard=0/2', '--distributed'),
  prepare('numbers', '--vae=x', '--vae_scale=a'),
  prepare('takes --output alone', '--verify'),
  prepare('store', '--verify', source=None),
  prepare('lies in --source', '--store=pixels', output='DATA/pictures/store'),
  prepare('is a file', '--store=pixels', output='DATA/plain.npz'),
  prepare('URL', '--store=pixels', output='gs://bucket/x'),
  prepare('did you mean', '--store=pixels', source='foldr:x'),
  prepare(ABSENT, '--store=pixels', source=ABSENT),
  prepare('text.npz', '--store=pixels', source='DATA/text.npz'),
  prepare(ABSENT, '--store=pixels', f'--classes={ABSENT}'),
  prepare('no pictures', '--store=pixels', source='DATA/empty'),
  convert('--input', given=None),
  convert('--output', output=None),
  convert('did you mean', '--famly=dit'),
  convert(ABSENT, given=ABSENT + '.pt'),
  convert('text.npz', given='DATA/text.npz'),
  convert('text.safetensors', given='DATA/text.safetensors'),
  convert('text.pt', given='DATA/text.pt'),
  convert('does not fit'),
  convert('dit', '--family=dut'),
  convert('--patch_size', '--patch_size=2'),
  convert('--patch_size', '--to=torch', '--patch_size=two'),
  convert('ROWS', '--grid=4y4'),
  convert('--to', '--to=onnx'),
  convert('exists', output='DATA/plain.npz'),
  convert('cannot hold our weights', output='out.pt'),
  convert('.zip', output='out.zip'),
  evaluate('--samples is needed', samples=None),
  evaluate('--reference is needed', reference=None),
  evaluate('did you mean', '--samplse=x'),
  evaluate('unexpected', 'x'),
  evaluate('exists', '--output=DATA/plain.npz'),
  evaluate(ABSENT, f'--inception={ABSENT}'),
  evaluate(ABSENT, '--inception=random:0', samples=f'{ABSENT}.npz'),
  evaluate(ABSENT, '--inception=random:0', reference=f'{ABSENT}.npz'),
  evaluate('text.npz', '--inception=random:0', samples='DATA/text.npz'),
  evaluate('did you mean', '--precision_recall=float61'),
  evaluate('batch_size', '--batch_size=0'),
  evaluate('kid_subsets', '--kid_subsets=-1'),
  evaluate('kid_subsets', '--kid_subsets=some'),
]


def of_configs():
  for name, (_, words) in CONFIGS.items():
    yield main(words, '--mode=plan', config=f'DATA/{name}.py')


MISTAKES = [*of_keys(), *of_combinations(), *of_configs(), *FLAGS]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """Pictures of two classes, an .npz of a vector and one of pictures, texts, faulty configs."""
  root, rng = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
  for name in ('ant/0', 'ant/1', 'bee/2', 'bee/3'):
    (root / 'pictures' / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(root / f'pictures/{name}.png')
  (root / 'empty').mkdir()
  np.savez(root / 'plain.npz', some=np.zeros(3))
  np.savez(root / 'samples.npz', arr_0=np.zeros((4, 8, 8, 3), np.uint8))
  for suffix in ('npz', 'pt', 'safetensors'):
    (root / f'text.{suffix}').write_text('not what the suffix says')
  for name, (text, _) in CONFIGS.items():
    (root / f'{name}.py').write_text(text)
  return root


@pytest.fixture(scope='module')
def server():
  started = command_server.Server()
  yield started
  started.close()


def held(folder):
  """Every file and folder below, with the bytes of files."""
  return {
    path: path.read_bytes() if path.is_file() else None
    for path in folder.rglob('*')
    if '__pycache__' not in path.parts
  }


def test_there_are_two_hundred_and_every_section_is_among_them():
  assert len(MISTAKES) >= 200 and len({str(mistake) for mistake in MISTAKES}) == len(MISTAKES)
  named = ' '.join(str(mistake) for mistake in MISTAKES)
  assert all(f'--config.{name}' in named for name in KEYS if wrong_value(KEYS[name]) is not None)


@pytest.mark.parametrize('mistake', MISTAKES, ids=str)
def test_a_mistake_ends_with_one_message_and_nothing_written(server, data, tmp_path, mistake):
  before = held(data)
  argv = [text.replace('DATA', str(data)) for text in mistake.argv]
  env = {'XDG_CACHE_HOME': str(tmp_path / 'cache'), **dict(mistake.env)}
  done = server.run(mistake.module, argv, tmp_path, JAX_COMPILATION_CACHE_DIR=None, **env)
  lines = [line for line in done['err'].splitlines() if not _LOG.match(line)]
  assert len(lines) == 1 and done['code'] == 2, done
  assert re.match(r'(error|prepare|convert): \S', lines[0]) and len(lines[0]) < _LONGEST
  assert mistake.words in lines[0]
  assert 'Traceback' not in done['err'] + done['out'] and done['out'] == ''
  assert held(data) == before and held(tmp_path) == {}
