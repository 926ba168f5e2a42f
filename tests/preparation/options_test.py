"""What may be asked for: values and combinations, refused by the name of the flag."""

import pathlib

from helpers import small
import pytest

from diversedit_jax import types
from diversedit_jax.frozen import vae
from diversedit_jax.preparation import flags, options

BASE = ['--source=PICTURES', '--output=OUT']


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'vae': None}, '--store=latents needs --vae=FILE'),
    ({'store': 'pixels', 'vae': None, 'twins': True}, '--twins does not go with --store=pixels: m'),
    ({'store': 'pixels', 'vae': None, 'dtype': 'float16'}, '--dtype does not go with --store=pix'),
    ({'store': 'latent'}, "unknown --store 'latent'; did you mean 'latents'"),
    ({'orientation': 'up'}, "unknown --orientation 'up'"),
    ({'batch_size': 0}, '--batch_size=0, expected a whole number of at least 1'),
    ({'worker': 2, 'workers': 2}, '--shard=2/2: workers are counted from 0, expected 0/2 to 1/2'),
    (
      {'output': pathlib.Path('gs://bucket/store')},
      'is a URL, .* then `gcloud storage cp -r FOLDER gs://bucket/store` copies it',
    ),
    ({'output': 's3://bucket/store'}, '`aws s3 cp --recursive FOLDER s3://bucket/store`'),
  ],
)
def test_what_does_not_go_together_is_refused_by_name(changes, words):
  with pytest.raises(types.UserError, match=words):
    small.asked(**{'output': pathlib.Path('out')} | changes)


def test_pictures_must_fit_the_autoencoder():
  options.check_size(small.asked('out', size=36), small.CONFIG)
  with pytest.raises(types.UserError, match='--size=38 is not divisible by 4, .* use 36 or 40'):
    options.check_size(small.asked('out', size=38), small.CONFIG)
  with pytest.raises(types.UserError, match='use 8$'):
    options.check_size(small.asked('out', size=5), vae.VAEConfig())


@pytest.mark.parametrize(
  'examples, fewest, expected',
  [(1, 1, 256), (1_281_167, 5005, 16384), (10**7, 39063, 65536), (10**9, 3_906_250, 2**22)],
)
def test_there_are_about_64_shards_within_bounds(examples, fewest, expected):
  assert options._records_per_shard(examples, fewest) == expected


def test_a_store_of_more_files_than_a_process_may_open_is_refused():
  names = [f'ant/{i:04d}.jpg' for i in range(1024)]
  collection = small.Memory(dict.fromkeys(names, b'x'))
  plan = lambda **more: options.make_plan(
    small.asked('out', store='pixels', vae=None, **more), collection, None
  )
  assert plan(records_per_shard=2).shards == 512
  with pytest.raises(types.UserError, match='=1 makes 1024 shards of 1 files each.* use 2 or'):
    plan(records_per_shard=1)
  assert plan(records_per_shard=None).records_per_shard == 256


def test_flags_become_options():
  given = flags.parse([*BASE, '--vae=V', '--shard=1/4', '--vae_scale=1,2', '--twins', '--size=64'])
  asked = options.Options(**given)
  assert (asked.worker, asked.workers, asked.vae_scale) == (1, 4, (1.0, 2.0))
  assert asked.twins and asked.size == 64 and asked.dtype is None


@pytest.mark.parametrize(
  'argv, words',
  [
    (['--output=OUT'], 'give --source to make a store'),
    ([*BASE, '--verify'], '--verify takes --output alone, not --source'),
    ([*BASE, '--distributed', '--shard=0/2'], 'give one of them'),
  ],
)
def test_flags_that_exclude_each_other_are_refused(argv, words):
  with pytest.raises(types.UserError, match=words):
    flags.parse(argv)


@pytest.mark.parametrize('flag', ['--shard=1', '--vae_scale=x', '--siz=64'])
def test_flags_that_cannot_be_read_are_refused(flag):
  with pytest.raises(types.UserError, match=flag.split('=')[0]):
    flags.parse([*BASE, flag])


def test_the_help_teaches_the_three_uses(capsys):
  with pytest.raises(SystemExit, match='0'):
    flags.parse(['--help'])
  text = capsys.readouterr().out
  for words in ('ILSVRC2012_img_train.tar', 'CIFAR-10', 'Own pictures', 'default: 256', '--verify'):
    assert words in text
  assert '{size}' not in text and 'None' not in text
