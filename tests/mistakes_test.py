"""Wrong command lines and configs, made from the declarations and a small grammar.

Each ends with one message on stderr and exit code 2, and writes nothing. They are real processes
(see `helpers.command_server`).
"""

import dataclasses
import re
import shlex
import zlib

from helpers import command_server
import numpy as np
from PIL import Image
import pytest

from diversedit_jax.experiment import declarations

KEYS = declarations.keys()
_LOG = re.compile(r'[IW]\d{4} |\w+\.py:\d+: \w*Warning')
_VARIABLE = re.compile('[A-Z_]+=')
_LONGEST = 900  # Characters of a message.
ABSENT = '/nowhere/at all'


@dataclasses.dataclass(frozen=True)
class Mistake:
  """A command line, and words of its message. DATA is the folder of the fixture `data`."""

  program: str
  argv: tuple[str, ...]
  words: str
  env: tuple[tuple[str, str], ...] = ()

  def __str__(self):
    return ' '.join([self.program, *self.argv, *(name for name, _ in self.env)])


def main(words, *argv, config='digits'):
  return Mistake('main', (f'--config={config}', *argv, '--mode=plan'), words)


def listed(program, table, *more):
  """Mistakes from lines of words, '|', variables and arguments; ABSENT is a file that is not."""
  for line in table.strip().splitlines():
    words, _, given = (part.strip() for part in line.partition('|'))
    tokens = [token.replace('ABSENT', ABSENT) for token in shlex.split(given)]
    argv = tuple(token for token in tokens if not _VARIABLE.match(token))
    env = tuple(tuple(token.split('=')) for token in tokens if _VARIABLE.match(token))
    yield Mistake(program, (*argv, *more), words.replace('ABSENT', ABSENT), env)


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
      yield main(name, f'--config.{name}={text}')
  sections = {name.rpartition('.')[0] for name in KEYS} - {''}
  for section in sorted(sections):
    first = next(name for name in KEYS if name.startswith(f'{section}.'))
    yield main('did you mean', f'--config.{first}z=1')


# Written down: what excludes each other, files, flags, configs, surroundings.

TOGETHER = """
guidance_scale | --config=digits:method=meanflow --config.sampler.guidance_scale=2.0
average velocities | --config=digits:method=flow --config.sampler.kind=average_velocity
class_token_scale | --config=digits:method=flow --config.sampler.class_token_scale=2
meanflow | --config=digits:method=flow+meanflow
reg | --config=digits:method=reg+meanflow
diverse | --config=digits:method=diverse+diverse
repa | --config=digits:method=flow+repaa
block | --config=digits:method=sra --config.sra.teacher_block=99
block | --config=digits:method=dispersive --config.dispersive.block=99
diversity.layers | --config=digits:method=diverse --config.diversity.layers=0,3
diversity.layers | --config=digits:method=diverse --config.diversity.layers=first
no encoder 'dino' | --config=digits:method=repa --config.repa.pairs=dino@3
repa.pairs | --config=digits:method=repa --config.repa.pairs=pca@99
heads | --config=digits:skips=False --config.model.width=97
depth | --config=digits:skips --config.model.depth=5
patch_size | --config=digits --config.model.patch_size=3
model.size | --config=digits --config.model.size=S/2
accumulate | --config=digits --config.train.accumulate=3
batch_size | --config=digits --config.train.batch_size=5000
warmup | --config=digits --config.optimizer.warmup_steps=5000
workers | --config=digits --config.data.workers=2
guidance | --config=digits --config.sampler.guidance_low=0.8 --config.sampler.guidance_high=0.2
train.label_dropout | --config=digits --config.train.label_dropout=1
optimizer.freeze | --config=digits --config.optimizer.freeze=nothing_like_it
sample.labels | --config=digits --config.sample.labels=11
sample.labels | --config=digits --config.sample.labels=balancd
eval.name | --config=digits --config.eval.name=../x
eval.encoder_weights | --config=digits --config.eval.encoder=dinov2-vit-b
plan.compile_for | --config=digits --config.plan.compile_for=h2000:8
FIRST:LAST | --config=digits --config.log.profile=7
FIRST:LAST | --config=digits --config.log.profile=9:7
data.space | --config=digits --config.data.space=latents
crop | --config=digits --config.data.crop=center
data source | --config=digits --config.data.source=folders:x
data.size | --config=digits --config.data.source=folder:DATA/pictures
ABSENT | --config=digits --config.data.source=folder:ABSENT --config.data.size=8
ABSENT | --config=digits --config.data.source=zip:ABSENT --config.data.size=8
ABSENT | --config=digits --config.data.source=csv:ABSENT --config.data.size=8
ABSENT | --config=digits --config.data.source=store:ABSENT
ABSENT | --config=digits --config.data.source=arrays:ABSENT
plain.npz | --config=digits --config.data.source=arrays:DATA/plain.npz
text.npz | --config=digits --config.data.source=arrays:DATA/text.npz
text.npz | --config=digits --config.data.source=tar:DATA/text.npz --config.data.size=8
text.npz | --config=digits --config.data.source=zip:DATA/text.npz --config.data.size=8
tfds | --config=digits --config.data.source=tfds:no_such_set --config.data.size=8
synthetic | --config=digits --config.data.source=synthetic:8x8
ABSENT | --config=digits --config.data.source=folder:DATA/pictures --config.data.size=8 \
  --config.data.classes=ABSENT
num_classes | --config=digits --config.data.source=folder:DATA/pictures --config.data.size=8 \
  --config.data.num_classes=3
"""

_CHANGING = """
from configs import common
def get_config():
  c = common.base(); {}
  return c
"""
CONFIGS = {
  'syntax': ('def get_config(:', 'line 1'),
  'fault': ('def get_config():\n  return {}["forgotten"]\n', 'line 2'),
  'import': ('import no_such_module\n', 'line 1'),
  'forgets': ('from configs import commn\n', 'commn'),
  'empty': ('', 'get_config'),
  'argument': ('def get_config(size):\n  return {}\n', 'size'),
  'number': ('def get_config():\n  return 3\n', 'get_config'),
  'key': (_CHANGING.format('c.train.stepz = 1'), 'stepz'),
  'type': (_CHANGING.format('c.train.steps = "a"'), 'line 4'),
  'bytes': ('x = "\0"', 'null bytes'),
}

MAIN = """
no config |
no config | --config.seed=1 --mode=keys
twice | --config=digits --config=digits
did you mean | --config=configs/digts.py
ABSENT | --config=ABSENT.py
names no file | --config=
is a folder | --config=DATA
did you mean 'method' | --config=digits:metod=flow --mode=plan
did you mean 'skips' | --config=digits:skip --mode=plan
steps | --config=digits:steps=many --mode=plan
nearest | --config=paper:table1/SiT-B+DiverseDit2 --mode=plan
many experiments | --config=paper --mode=plan
nothing to list | --config=digits --mode=list
did you mean 'plan' | --config=digits --mode=pln
did you mean '--workdir' | --config=digits --wrkdir=x
unexpected arguments | --config=digits mode=plan
no workdir | --config=digits --mode=train
is a file | --config=digits --workdir=DATA/plain.npz
cannot be written | --config=digits --workdir=DATA/plain.npz/run
URL | --config=digits --workdir=https://host/run
--checkpoint is not for | --config=digits --checkpoint=x --mode=plan
--continue_with is not for | --config=digits --continue_with=seed --mode=plan
holds no run | --config=digits --workdir=run --mode=eval
looks at a run or at weights | --mode=inspect
holds no run | --mode=report --workdir=run
no workdir | --mode=report
--output=DIR | --mode=report one two
ABSENT | --mode=inspect --checkpoint=ABSENT
text.pt | --mode=inspect --checkpoint=DATA/text.pt
give one | --config=digits --mode=eval --workdir=a --output=b --checkpoint=DATA/plain.npz
square pictures | --config=digits --workdir=run --config.eval.every=9 --config.eval.reference=x
--output | --config=digits --mode=export --workdir=run
hf:// | --config=digits --mode=sample --workdir=run --checkpoint=hf://one
ABSENT | --config=digits --workdir=run --mode=sample --checkpoint=ABSENT
ABSENT | --config=digits --mode=sample --workdir=run --config.data.source=synthetic:8x8x4:10 \
  --config.vae.weights=ABSENT
optimizer | --config=digits --mode=keys optimiser
no value | --config=digits --mode=plan --config.seed
--noconfig | --config=digits --mode=plan --noconfig.seed
is a section | --config=digits --mode=plan --config.model=1
without keys below | --config=digits --mode=plan --config.seed.x=1
absent.flags | --config=digits --mode=plan --flagfile=absent.flags
lies in a bucket | --config=gs://bucket/x.py --workdir=run
is a URL | --config=s3:/bucket/x.py --workdir=run
store:gs://bucket/x | --config=digits --config.data.source=gs://bucket/x --workdir=run
home folder | --config=digits --workdir=~nobody_of_this_name/run
JAX_PLATFORMS | JAX_PLATFORMS=cudaa --config=digits --workdir=run
JAX_COORDINATOR_ADDRESS | --config=digits --distributed --workdir=run
JAX_NUM_PROCESSES | JAX_NUM_PROCESSES=two --config=digits --distributed --workdir=run
expected less | JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=2 --config=digits --distributed --workdir=run
not HOST:PORT | JAX_COORDINATOR_ADDRESS=here --config=digits --distributed --workdir=run
"""

PREPARE = """
--source | --output=store
--output | --source=DATA/pictures
did you mean | --source=DATA/pictures --output=store --siz=8 --store=pixels
did you mean | --source=DATA/pictures --output=store --store=pixel
did you mean | --source=DATA/pictures --output=store --store=pixels --crop=centre
orientation | --source=DATA/pictures --output=store --store=pixels --orientation=up
needs --vae | --source=DATA/pictures --output=store
ABSENT | --source=DATA/pictures --output=store --vae=ABSENT
does not go with | --source=DATA/pictures --output=store --store=pixels --twins
does not go with | --source=DATA/pictures --output=store --store=pixels --dtype=float16
--size | --source=DATA/pictures --output=store --store=pixels --size=0
--size | --source=DATA/pictures --output=store --store=pixels --size=big
--threads | --source=DATA/pictures --output=store --store=pixels --threads=-1
--batch_size | --source=DATA/pictures --output=store --store=pixels --batch_size=nan
i/n | --source=DATA/pictures --output=store --store=pixels --shard=1
counted from 0 | --source=DATA/pictures --output=store --store=pixels --shard=4/4
--shard | --source=DATA/pictures --output=store --store=pixels --shard=0/2 --distributed
numbers | --source=DATA/pictures --output=store --vae=x --vae_scale=a
takes --output alone | --source=DATA/pictures --output=store --verify
store | --output=store --verify
lies in --source | --source=DATA/pictures --output=DATA/pictures/store --store=pixels
is a file | --source=DATA/pictures --output=DATA/plain.npz --store=pixels
URL | --source=DATA/pictures --output=gs://bucket/x --store=pixels
is a URL | --source=DATA/pictures --output=gs:/bucket/x --store=pixels
did you mean | --source=foldr:x --output=store --store=pixels
ABSENT | --source=ABSENT --output=store --store=pixels
text.npz | --source=DATA/text.npz --output=store --store=pixels
ABSENT | --source=DATA/pictures --output=store --store=pixels --classes=ABSENT
no pictures | --source=DATA/empty --output=store --store=pixels
"""

CONVERT = """
--input | --output=out.npz
--output | --input=DATA/plain.npz
did you mean | --input=DATA/plain.npz --output=out.npz --famly=dit
ABSENT | --input=ABSENT.pt --output=out.npz
text.npz | --input=DATA/text.npz --output=out.npz
text.safetensors | --input=DATA/text.safetensors --output=out.npz
text.pt | --input=DATA/text.pt --output=out.npz
does not fit | --input=DATA/plain.npz --output=out.npz
dit | --input=DATA/plain.npz --output=out.npz --family=dut
--patch_size | --input=DATA/plain.npz --output=out.npz --patch_size=2
--patch_size | --input=DATA/plain.npz --output=out.npz --to=torch --patch_size=two
ROWS | --input=DATA/plain.npz --output=out.npz --grid=4y4
--to | --input=DATA/plain.npz --output=out.npz --to=onnx
exists | --input=DATA/plain.npz --output=DATA/plain.npz
cannot hold our weights | --input=DATA/plain.npz --output=out.pt
lies in a bucket | --input=DATA/plain.npz --output=gs://bucket/out.npz
.zip | --input=DATA/plain.npz --output=out.zip
"""

EVALUATE_NPZ = """
--samples is needed | --reference=DATA/samples.npz
--reference is needed | --samples=DATA/samples.npz
did you mean | --samples=DATA/samples.npz --reference=DATA/samples.npz --samplse=x
unexpected | --samples=DATA/samples.npz --reference=DATA/samples.npz x
exists | --samples=DATA/samples.npz --reference=DATA/samples.npz --output=DATA/plain.npz
ABSENT | --samples=DATA/samples.npz --reference=DATA/samples.npz --inception=ABSENT
ABSENT | --samples=ABSENT.npz --reference=DATA/samples.npz --inception=random:0
ABSENT | --samples=DATA/samples.npz --reference=ABSENT.npz --inception=random:0
text.npz | --samples=DATA/text.npz --reference=DATA/samples.npz --inception=random:0
did you mean | --samples=DATA/samples.npz --reference=DATA/samples.npz --precision_recall=float61
batch_size | --samples=DATA/samples.npz --reference=DATA/samples.npz --batch_size=0
kid_subsets | --samples=DATA/samples.npz --reference=DATA/samples.npz --kid_subsets=-1
kid_subsets | --samples=DATA/samples.npz --reference=DATA/samples.npz --kid_subsets=some
"""


def of_configs():
  for name, (_, words) in CONFIGS.items():
    yield main(words, config=f'DATA/{name}.py')


MISTAKES = [
  *of_keys(),
  *listed('main', TOGETHER, '--mode=plan'),
  *of_configs(),
  *listed('main', MAIN),
  *listed('prepare', PREPARE),
  *listed('convert', CONVERT),
  *listed('evaluate_npz', EVALUATE_NPZ),
]


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
  done = server.run(
    f'diversedit_jax.{mistake.program}', argv, tmp_path, JAX_COMPILATION_CACHE_DIR=None, **env
  )
  lines = [line for line in done['err'].splitlines() if not _LOG.match(line)]
  assert len(lines) == 1 and done['code'] == 2, done
  assert re.match(r'(error|prepare|convert): \S', lines[0]) and len(lines[0]) < _LONGEST
  assert mistake.words in lines[0]
  assert 'Traceback' not in done['err'] + done['out'] and done['out'] == ''
  # An empty folder for programs, which is made so that nobody else can put any there.
  programs = tmp_path / 'cache' / 'diversedit_jax' / 'xla'
  kept = {path: None for path in (programs, *programs.parents[:2]) if path.exists()}
  assert held(data) == before and held(tmp_path) == kept
