"""Impossible methods, and impossible values of their losses, are refused by name."""

from helpers import config_changes
import pytest

compiler_out_of_reach = config_changes.compiler_out_of_reach

# changes -> what the message must hold: the name, what was found, what was expected
REFUSED = [
  ({'method': 'divers'}, ['method', "'divers'", "did you mean 'diverse'"]),
  ({'method': 'flow+flow'}, ["method 'flow+flow'", 'names a part twice']),
  ({'method': 'flow+diverse+diverse'}, ["method 'flow+diverse+diverse'", 'names a part twice']),
  ({'method': ''}, ['method', "''", 'known: dispersive, diverse, flow']),
  ({'method': 'reg+meanflow'}, ['reg and meanflow each make the forward pass', 'name one']),
  ({'method': 'flow+meanflow'}, ['flow and meanflow each make the forward pass']),
  ({'method': 'reg+repa'}, ['reg does not go with repa', 'class token too']),
  ({'method': 'meanflow+sra'}, ['meanflow does not go with sra', 'two times']),
  (
    {'method': 'sra', 'train.ema_decay': 0.0},
    ['ema_decay=0', "'sra'", 'teacher would be the student'],
  ),
  ({'method': 'repa', 'repa.weight': 0.0}, ['repa.weight=0', 'leave repa out']),
  ({'method': 'repa', 'repa.pairs': 'pca@7'}, ['repa.pairs', 'block 7', '1 to 6']),
  ({'method': 'repa', 'repa.pairs': 'pca'}, ["'pca' needs a block for depth 6: pca@BLOCK"]),
  ({'method': 'repa', 'repa.pairs': 'pca@²'}, ["'pca@²'", 'ENCODER@BLOCK']),
  ({'method': 'repa', 'repa.pairs': 'pca@x'}, ["'pca@x'", "'dinov2-vit-b@8'"]),
  ({'method': 'repa', 'repa.pairs': 'pca@3,pca@3'}, ["'pca@3,pca@3'", 'twice']),
  ({'method': 'repa', 'repa.pairs': 'pac@3'}, ["no encoder 'pac'", "did you mean 'pca'"]),
  ({'method': 'repa', 'repa.pairs': 'dinov2-vit-b@3'}, ['dinov2-vit-b', '8']),
  ({'method': 'reg', 'repa.pairs': 'pca@3,pca@4'}, ['class token is of one encoder']),
  (
    {'method': 'repa', 'data.source': 'synthetic:8x8x4:10'},
    ["method='repa' shows pixels", 'synthetic/8x8x4', 'none beside its latents'],
  ),
  ({'repa.weight': -1.0}, ['repa.weight', 'at least 0', '-1.0']),
  ({'repa.hidden': 0}, ['repa.hidden', 'at least 1', 'got 0']),
  ({'repa.dtype': 'float16'}, ['repa.dtype', "'float16'", "did you mean 'bfloat16'"]),
  ({'method': 'dispersive', 'dispersive.preset': 'papre'}, ["'papre'", "did you mean 'paper'"]),
  (
    {'method': 'dispersive', 'dispersive.kind': 'hing'},
    ['dispersive.kind', "'hing'", "did you mean 'hinge'"],
  ),
  (
    {'method': 'dispersive', 'dispersive.temperature': 0.0},
    ['dispersive.temperature must be positive', '0.0'],
  ),
  ({'dispersive.weight': -1.0}, ['dispersive.weight must be positive', '-1.0']),
  ({'dispersive.preset': 'papre'}, ['dispersive.preset', "did you mean 'paper'"]),
  (
    {'dispersive.kind': 'hinge', 'dispersive.temperature': 0.5},
    ['dispersive.temperature=0.5', 'infonce_l2 and infonce_cosine', "'hinge'"],
  ),
  ({'dispersive.margin': 0.5}, ['dispersive.margin=0.5', 'kind hinge', "'infonce_l2'"]),
  ({'method': 'dispersive', 'dispersive.block': 7}, ['dispersive.block', 'block 7', '1 to 6']),
  ({'method': 'dispersive', 'dispersive.groups': 5}, ['groups=5', '64 examples']),
  ({'method': 'dispersive', 'dispersive.groups': 64}, ['groups=64', 'one example', 'constant']),
  (
    {'method': 'dispersive', 'train.accumulate': 8},
    ["preset='paper' has groups of 16", '8 examples', 'set dispersive.groups'],
  ),
  ({'method': 'sra', 'sra.student_block': 5}, ['student_block=5', 'teacher_block=4', 'ahead']),
  ({'method': 'sra', 'sra.teacher_block': 9}, ['sra.teacher_block', 'block 9', '1 to 6']),
  (
    {'method': 'sra', 'sra.teacher_block': None},
    ['student_block and teacher_block for depth 6'],
  ),
  ({'method': 'sra', 'sra.kind': 'l3'}, ['sra.kind', "'l3'", 'smooth_l1']),
  ({'method': 'sra', 'sra.axis': 'tokens'}, ["sra.axis='tokens'", "kind='cosine'"]),
  ({'method': 'sra', 'sra.t_max': 1.5}, ['sra.t_max', '[0, 1]', '1.5']),
  ({'sra.weight': 0.0}, ['sra.weight must be positive', '0.0']),
  ({'sra.kind': 'l1', 'sra.beta': 0.1}, ['sra.beta=0.1', "kind='smooth_l1'", "'l1'"]),
  ({'reg.class_weight': -1.0}, ['reg.class_weight', 'at least 0', '-1.0']),
  ({'method': 'meanflow', 'meanflow.kappa': 1.0}, ['meanflow.kappa=1.0', '[0, 1)']),
  ({'method': 'meanflow', 'meanflow.omega': 0.0}, ['meanflow.omega=0.0', 'positive']),
  ({'method': 'meanflow', 'meanflow.start': 0.9, 'meanflow.end': 0.1}, ['interval [0.9, 0.1]']),
  (
    {'method': 'meanflow', 'model.attention': 'cudnn'},
    ["attention='cudnn'", 'forward-mode derivative', 'model.attention=xla'],
  ),
  (
    {'method': 'meanflow', 'sampler.guidance_scale': 2.0},
    ['guidance_scale=2.0', 'omega=1.0, kappa=0.5', 'guided in training'],
  ),
  ({'method': 'meanflow', 'meanflow.variant': 'imporved'}, ["did you mean 'improved'"]),
  ({'method': 'meanflow', 'meanflow.masks': 'same'}, ["'same'", 'independent']),
  ({'method': 'meanflow', 'meanflow.equal_fraction': 1.5}, ['equal_fraction=1.5', '[0, 1]']),
  ({'method': 'meanflow', 'interpolant.path': 'cosine'}, ['path=linear', 'got cosine, velocity']),
  (
    {'method': 'meanflow', 'sampler.kind': 'average_velocity', 'sampler.guidance_scale': 2.0},
    ['guidance_scale=2.0', 'guided in training', 'guidance_scale=1'],
  ),
  ({'method': 'reg', 'interpolant.prediction': 'noise', 'sampler.start': 0.999}, ['method=reg']),
  (
    {'method': 'reg', 'sampler.guidance_scale': 1.0, 'sampler.class_token_scale': 2.0},
    ['class_token_scale=2.0', 'guidance_scale=1.0'],
  ),
  ({'diversity.layers': 'some'}, ["layers is 'some'", "'all', 'random', 'authors'", "'0,2'"]),
  ({'diversity.layers': '2'}, ['layers are (2,)', 'at least two']),
  ({'diversity.layers': '0,6'}, ['(0, 6)', 'from 0 to 5']),
  ({'diversity.num_layers': 3}, ['num_layers=3', "layers='random'"]),
  (
    {'diversity.layers': 'random', 'diversity.num_layers': 7},
    ['7 random layers', 'from 2 to depth=6'],
  ),
  ({'diversity.encoder_depth': 3}, ['encoder_depth=3', "layers='authors'"]),
  ({'diversity.dispersion_layers': 'none'}, ["dispersion_layers='none'", "'selected', 'all'"]),
  ({'diversity.mi': 'sign'}, ["mi is 'sign'", "'signed', 'absolute'"]),
  ({'diversity.dispersion': 'papr'}, ["dispersion is 'papr'", "'paper', 'code'"]),
  ({'diversity.usage': 'sign'}, ["usage is 'sign'", "'absolute', 'signed'"]),
  ({'diversity.weights': (0.5, 0.5)}, ['weights are (0.5, 0.5)', 'three']),
  ({'diversity.groups': 3}, ['diversity.groups=3', '64 examples']),
  ({'diversity.groups': 4, 'train.accumulate': 32}, ['groups=4', '2 examples of a microbatch']),
  ({'diversity.lo': 0.5}, ['lo=0.5, hi=0.5', '0 <= lo < hi']),
]


@pytest.mark.parametrize(('changes', 'fragments'), REFUSED, ids=lambda x: str(x)[:60])
def test_impossible_value_is_refused(changes, fragments):
  config_changes.assert_refused(changes, fragments)
