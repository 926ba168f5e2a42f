"""DiT by diffusers' names, both ways: equal to the same network by DiT's own names."""

import json

from helpers import family_weights, torch_zip
import numpy as np
import pytest

from diversedit_jax import trees, types
from diversedit_jax.convert import cli, detection, diffusers_dit, mapping
from diversedit_jax.weights import array_files

_HEADS = 4
# The layers of a `DiTTransformer2DModel` of diffusers 0.42.1, with those of DiT that they hold.
_OF_BLOCK = {
  'norm1.emb.timestep_embedder.linear_1': 't_embedder.mlp.0',
  'norm1.emb.timestep_embedder.linear_2': 't_embedder.mlp.2',
  'norm1.emb.class_embedder.embedding_table': 'y_embedder.embedding_table',
  'norm1.linear': 'blocks.{}.adaLN_modulation.1',
  'attn1.to_q': 'blocks.{}.attn.qkv',
  'attn1.to_k': 'blocks.{}.attn.qkv',
  'attn1.to_v': 'blocks.{}.attn.qkv',
  'attn1.to_out.0': 'blocks.{}.attn.proj',
  'ff.net.0.proj': 'blocks.{}.mlp.fc1',
  'ff.net.2': 'blocks.{}.mlp.fc2',
}
_OTHERS = {
  'pos_embed.proj': 'x_embedder.proj',
  'proj_out_1': 'final_layer.adaLN_modulation.1',
  'proj_out_2': 'final_layer.linear',
}
_SETTINGS = {
  '_class_name': 'DiTTransformer2DModel',
  'num_attention_heads': _HEADS,
  'attention_head_dim': 16,
  'in_channels': 4,
  'out_channels': 8,
  'num_layers': 3,
  'num_embeds_ada_norm': 10,
  'patch_size': 2,
  'sample_size': 8,
  'activation_fn': 'gelu-approximate',
  'norm_type': 'ada_norm_zero',
}


@pytest.fixture
def dit(golden):
  return family_weights.of('dit', golden)


@pytest.fixture
def theirs(dit):
  """The same network by diffusers' names."""
  found = {}

  def put(name, its, rows=slice(None)):
    for leaf in ('weight', 'bias'):
      if f'{its}.{leaf}' in dit:
        found[f'{name}.{leaf}'] = dit[f'{its}.{leaf}'][rows]

  width = dit['x_embedder.proj.bias'].size
  for name, its in _OTHERS.items():
    put(name, its)
  for block in range(3):
    for layer, its in _OF_BLOCK.items():
      third = 'qkv'.find(layer[-1]) if '.to_' in layer and layer[-1] in 'qkv' else None
      rows = slice(None) if third is None else slice(third * width, (third + 1) * width)
      put(f'transformer_blocks.{block}.{layer}', its.format(block), rows)
  return found


def same(found, expected):
  assert set(found) == set(expected)
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_names_go_both_ways(dit, theirs):
  same(diffusers_dit.from_dit(dit), theirs)
  same(diffusers_dit.to_dit(theirs), {n: x for n, x in dit.items() if n != 'pos_embed'})
  assert detection.detect(theirs) == 'dit'
  expected = trees.named_leaves(mapping.to_ours(dit, 'dit'))
  same(trees.named_leaves(mapping.to_ours(theirs, 'dit')), expected)
  assert mapping.infer_config(theirs, 'dit')['depth'] == 3
  with pytest.raises(types.UserError, match="does not fit family 'sit'.*names of DiT; convert it"):
    mapping.to_ours(theirs, 'sit')


def test_what_dit_cannot_hold_is_refused(theirs):
  name = 'transformer_blocks.2.norm1.emb.timestep_embedder.linear_1.bias'
  with pytest.raises(types.UserError, match=f'{name} differs between the blocks'):
    mapping.to_ours(theirs | {name: theirs[name] + 1}, 'dit')
  without = dict(theirs)
  del without['transformer_blocks.1.attn1.to_k.bias']
  message = r"by DiT's own names, .* missing: blocks\.1\.attn\.qkv\.bias; not expected"
  with pytest.raises(types.UserError, match=message):
    mapping.to_ours(without, 'dit')


def test_a_folder_goes_in_and_out(tmp_path, dit, theirs, capsys):
  """A pipeline's folder with a `.bin` is read; safetensors with its settings are written."""
  run = lambda **flags: cli.main([f'--{name}={value}' for name, value in flags.items()])
  folder, ours, out = tmp_path / 'pipeline' / 'transformer', tmp_path / 'a.npz', tmp_path / 'out'
  folder.mkdir(parents=True)
  torch_zip.write(folder / 'diffusion_pytorch_model.bin', torch_zip.tensors(theirs))
  (folder / 'config.json').write_text(json.dumps(_SETTINGS))
  assert run(input=tmp_path / 'pipeline', output=ours) == 0
  lines = capsys.readouterr().out.splitlines()
  assert 'family      dit' in lines and f'heads       {_HEADS}' in lines
  expected = trees.named_leaves(mapping.to_ours(dit, 'dit'))
  same(array_files.load(ours), expected)

  write = {'input': ours, 'output': out, 'to': 'diffusers', 'grid': 4}
  for flags, message in {
    (): 'do not tell the attention heads of width 64, which config.json needs: give --heads',
    (('heads', 5),): 'a divisor; given 5',
    (('heads', -4),): '--heads=-4 must be positive',
    (('heads', 4), ('grid', '4x2')): 'square pictures only; given --grid=4x2',
    (('family', 'sit'),): '--to=diffusers writes DiT, not --family=sit',
    (('num_classes', 10),): '--num_classes is for --to=ours',
  }.items():
    assert run(**write | dict(flags)) == 2
    assert message in capsys.readouterr().err and not out.exists()
  assert run(**write, heads=_HEADS) == 0
  same(array_files.load(out), theirs)
  written = json.loads((out / 'config.json').read_text())
  assert written | _SETTINGS == written
  assert run(**write, heads=_HEADS) == 2
  assert 'out exists and is not overwritten' in capsys.readouterr().err

  (folder / 'config.json').write_text(json.dumps(_SETTINGS | {'activation_fn': 'geglu'}))
  assert run(input=folder, output=tmp_path / 'b.npz') == 2
  assert "says activation_fn='geglu'; DiT's network has" in capsys.readouterr().err
