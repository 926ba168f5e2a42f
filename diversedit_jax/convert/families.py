"""Names and layouts of other systems' models and ours, as data: one table of rules per family.

A rule pairs one of their names with one path of our tree. Placeholders run over numbered modules:

  {block}    blocks 0 .. L-1, stacked along a leading axis in our tree; in our path the placeholder
             becomes `layers`, or `first` and `second` in a model with long skips
  {decoder}  blocks of the decoder of a wide head, stacked; the placeholder becomes `layers`
  {skip}     the L/2 long skips, stacked; the placeholder becomes `fuse`
  {head}     heads by number, not stacked

Letters of the shapes:

  D  width            p  patch size           P{head}  hidden width of a projector
  C  channels         M  width of the MLP     Z{head}  width of its output
  R  label rows, K+1  E  width of one attention head
  Z  width of the class token                 k{head}  side of its convolution
  W, V, U  D, M and E of the decoder of a wide head
  I, J     tokens of time and label that stand before the others
"""

from diversedit_jax import trees, types
from diversedit_jax.convert import ddt, diffusers_dit, lightning
from diversedit_jax.convert.rules import (
  Family,
  Rule,
  linear,
  norm,
  projectors,
  rotary,
  rule,
  scale,
  skips,
)
from diversedit_jax.models import embed


def family(name: str) -> Family:
  """The family with a name.

  Raises:
    UserError: there is none; the message has the nearest known name.
  """
  if name not in FAMILIES:
    raise types.UserError(f'unknown family {name!r}{trees.did_you_mean(name, FAMILIES)}')
  return FAMILIES[name]


def anchors() -> tuple[str, ...]:
  """Names by which a model is known among other weights: its patches, in every system and ours."""
  ours = 'model/patch_embed/kernel'
  theirs = (rule.torch for each in FAMILIES.values() for rule in each.rules if rule.ours == ours)
  return tuple(dict.fromkeys((*theirs, diffusers_dit.ANCHOR, ours)))


_BLOCK, _OURS = 'blocks.{block}', 'model/blocks/{block}'
_FREQUENCIES = str(embed.TIME_FREQUENCIES)

_SKIPS = skips()

# All but patches, the first layer of the time embedding and the head, where families differ.
_TRUNK = (
  rule('x_embedder.proj.bias', 'model/patch_embed/bias', 'D'),
  *linear('t_embedder.mlp.2', 'model/time_embed/fc2', 'D', 'D'),
  rule('y_embedder.embedding_table.weight', 'model/label_embed/embedding', 'R', 'D'),
  *linear(f'{_BLOCK}.attn.qkv', f'{_OURS}/attn/qkv', 'D', '3*D', layout='qkv', bias='parted'),
  *linear(f'{_BLOCK}.attn.proj', f'{_OURS}/attn/proj', 'D', 'D'),
  *linear(f'{_BLOCK}.mlp.fc1', f'{_OURS}/mlp/fc1', 'D', 'M'),
  *linear(f'{_BLOCK}.mlp.fc2', f'{_OURS}/mlp/fc2', 'M', 'D'),
  *linear(f'{_BLOCK}.adaLN_modulation.1', f'{_OURS}/adaln', 'D', '6*D'),
  *_SKIPS,
  *linear('final_layer.adaLN_modulation.1', 'model/final/adaln', 'D', '2*D'),
  *norm(f'{_BLOCK}.attn.q_norm', f'{_OURS}/attn/q_norm', 'E', part='qk_norm'),
  *norm(f'{_BLOCK}.attn.k_norm', f'{_OURS}/attn/k_norm', 'E', part='qk_norm'),
)

_PATCHES = ('x_embedder.proj.weight', 'model/patch_embed/kernel')
_BODY = (rule(*_PATCHES, *'DCpp', layout='patches'), *_TRUNK)
_TIME = ('t_embedder.mlp.0', 'model/time_embed/fc1', _FREQUENCIES, 'D')
_HEAD = ('final_layer.linear', 'model/final/linear', 'D')
_SIT = (*_BODY, *linear(*_TIME), *linear(*_HEAD, 'p*p*C'))

# All but the first layer of the time embedding and the head.
_LIGHTNING_BODY = (
  rule(*_PATCHES, *'DCpp', layout='patches'),
  rule('x_embedder.proj.bias', 'model/patch_embed/bias', 'D'),
  *linear('t_embedder.mlp.2', 'model/time_embed/fc2', 'D', 'D'),
  rule('y_embedder.embedding_table.weight', 'model/label_embed/embedding', 'R', 'D'),
  *lightning.block(_BLOCK, _OURS, width='D', hidden='M', head='E'),
  *lightning.adaln(_BLOCK, _OURS, width='D', vectors='A'),
  *_SKIPS,
  *linear('final_layer.adaLN_modulation.1', 'model/final/adaln', 'D', '2*D'),
  scale('final_layer.norm_final', 'model/final/norm', 'D', 'rms'),
)
_LIGHTNING = (
  *_LIGHTNING_BODY,
  *linear(*_TIME, layout='reversed_clock'),
  *linear(*_HEAD, 'p*p*C', layout='negated', bias='negated_vector'),
)

# A block that predicts too, of SiT and LightningDiT with internal guidance (2512.24176).
_BASE = linear('final_layer_xr.adaLN_modulation.1', 'model/base/adaln', 'D', '2*D', part='base')
_BASE_HEAD = ('final_layer_xr.linear', 'model/base/linear', 'D', 'p*p*C')
_SIT_BASE = (*_BASE, *linear(*_BASE_HEAD, part='base'))
_LIGHTNING_BASE = (
  *_BASE,
  *linear(*_BASE_HEAD, layout='negated', bias='negated_vector', part='base'),
  scale('final_layer_xr.norm_final', 'model/base/norm', 'D', 'base_rms'),
)

_PROJECTORS = projectors()

_CONVOLUTIONS = (
  rule(
    'projectors.{head}.projection_layer.weight',
    'heads/repa/{head}/conv/kernel',
    *('Z{head}', 'D', 'k{head}', 'k{head}'),
    layout='patches',
    part='conv',
  ),
  rule(
    'projectors.{head}.projection_layer.bias', 'heads/repa/{head}/conv/bias', 'Z{head}', part='conv'
  ),
)

_CLASS_TOKEN = (
  *linear('cls_projectors2', 'model/class_token_embed/proj', 'Z', 'D'),
  *norm('wg_norm', 'model/class_token_embed/norm', 'D'),
  *linear('final_layer.linear_cls', 'model/final/class_linear', 'D', 'Z'),
)


def _sra_head(torch: str) -> tuple[Rule, ...]:
  return (
    *linear(f'{torch}.linear1', 'heads/sra/fc1', 'D', '2*D', part='sra_head'),
    *linear(f'{torch}.linear2', 'heads/sra/fc2', '2*D', 'D', part='sra_head'),
  )


def _flax(
  theirs: str, ours: str, fan_in: str, fan_out: str, layout: str = 'same'
) -> tuple[Rule, ...]:
  """MeanFlow's linear layer, a Flax one inside a module of PyTorch's name."""
  theirs = f'net/{theirs}/_flax_linear'
  kernel = rule(f'{theirs}/kernel', f'{ours}/kernel', fan_in, fan_out, layout=layout)
  return kernel, rule(f'{theirs}/bias', f'{ours}/bias', fan_out, layout=layout)


_FLAX_BLOCK = 'blocks/layers_{block}'

_MEANFLOW = (
  rule('net/x_embedder/proj/kernel', 'model/patch_embed/kernel', *'ppCD', layout='flax_patches'),
  rule('net/x_embedder/proj/bias', 'model/patch_embed/bias', 'D'),
  *_flax('t_embedder/mlp/layers_0', 'model/time_embed/fc1', _FREQUENCIES, 'D'),
  *_flax('t_embedder/mlp/layers_2', 'model/time_embed/fc2', 'D', 'D'),
  *_flax('h_embedder/mlp/layers_0', 'model/interval_embed/fc1', _FREQUENCIES, 'D'),
  *_flax('h_embedder/mlp/layers_2', 'model/interval_embed/fc2', 'D', 'D'),
  rule(
    'net/y_embedder/embedding_table/_flax_embedding/embedding',
    'model/label_embed/embedding',
    'R',
    'D',
  ),
  *_flax(f'{_FLAX_BLOCK}/attn/qkv', f'{_OURS}/attn/qkv', 'D', '3*D', layout='parted'),
  *_flax(f'{_FLAX_BLOCK}/attn/proj', f'{_OURS}/attn/proj', 'D', 'D'),
  *_flax(f'{_FLAX_BLOCK}/mlp/fc1', f'{_OURS}/mlp/fc1', 'D', 'M'),
  *_flax(f'{_FLAX_BLOCK}/mlp/fc2', f'{_OURS}/mlp/fc2', 'M', 'D'),
  *_flax(f'{_FLAX_BLOCK}/adaLN_modulation/layers_1', f'{_OURS}/adaln', 'D', '6*D'),
  *_flax('final_layer/adaLN_modulation/layers_1', 'model/final/adaln', 'D', '2*D'),
  *_flax('final_layer/linear', 'model/final/linear', 'D', 'p*p*C'),
)

FAMILIES = {
  # SiT as in REPA (arXiv 2410.06940), with DiverseDiT's additions (2603.04239); REPA's first
  # checkpoints call the blocks behind the aligned one `decoder_blocks`. iREPA (2512.10794) has
  # convolutions for projectors.
  'sit': Family(
    rules=_SIT + _SIT_BASE + _PROJECTORS + _CONVOLUTIONS, continued=(('decoder_blocks', 'blocks'),)
  ),
  # REG (2507.01467): a class token before the patches, whose row of the table is zero.
  'reg': Family(
    rules=_SIT + _PROJECTORS + _CLASS_TOKEN,
    zero_rows=1,
    marks=('cls_projectors2.', 'model/class_token_embed/'),
  ),
  # SRA (2505.02831): a head that only the trained network has, not its moving average.
  'sra': Family(rules=_SIT + _sra_head('ap_head'), marks=('ap_head.', 'heads/sra/')),
  # MeanFlow (2505.13447), a Flax program: t_embedder takes t, h_embedder takes t - r.
  'meanflow': Family(
    rules=_MEANFLOW, position_table=None, marks=('net/h_embedder/', 'model/interval_embed/')
  ),
  # SiT's own program (2401.08740): data at t = 1, and a head with 2C channels, of which C are used.
  'sit_original': Family(
    rules=(
      *_BODY,
      *linear(*_TIME, layout='reversed_clock'),
      *linear(*_HEAD, 'p*p*2*C', layout='negated_head', bias='negated_bias'),
    ),
  ),
  # Self-Flow's published networks (2603.06507): the clock and head of SiT's own program, patches as
  # a matrix, whose side is 2.
  'selfflow': Family(
    rules=(
      rule(*_PATCHES, 'D', 'C*p*p', layout='flat_patches'),
      *_TRUNK,
      *linear(*_TIME, layout='reversed_clock'),
      *linear(*_HEAD, 'p*p*2*C', layout='negated_head', bias='negated_bias'),
      *_sra_head('projector'),
    ),
    marks=('projector.', 'heads/sra/'),
    sizes={'p': 2},
  ),
  # RAEv2 (2605.18324) and RAE (2510.11690): wide heads, in our clock. RAEv2's names are RAE's too.
  'raev2': Family(
    rules=ddt.RAEV2,
    position_table=None,
    rotary=rotary('enc_rope', 'D', ('I', 'J')) + rotary('dec_rope', 'W'),
    marks=('ctx_embedder.', 'model/label_tokens'),
  ),
  'ddt': Family(
    rules=ddt.RAE,
    rotary=rotary('enc_feat_rope', 'D') + rotary('dec_feat_rope', 'W'),
    marks=('s_embedder.', 'model/decoder/'),
  ),
  # RAE's DiT without a wide head: LightningDiT's in our clock, with Gaussian features of time.
  'rae': Family(
    rules=_LIGHTNING_BODY + ddt.GAUSSIAN + linear(*_HEAD, 'p*p*C') + _PROJECTORS,
    rotary=rotary('feat_rope', 'D'),
    marks=('t_embedder.W', 'model/time_embed/frequencies'),
  ),
  # LightningDiT (2501.01423): data at t = 1; rotary positions, RMSNorm or LN, SwiGLU or GELU.
  'lightning': Family(
    rules=_LIGHTNING + _LIGHTNING_BASE + _PROJECTORS,
    rotary=rotary('feat_rope', 'D'),
    marks=('final_layer.norm_final.', 'model/final/norm/'),
  ),
  # DiT (2212.09748): the noise and the range of its variance, at steps 0 .. 999.
  'dit': Family(
    rules=(*_BODY, *linear(*_TIME), *linear(*_HEAD, 'p*p*2*C')),
    config=('model.time_input=ddpm', 'interpolant.path=vp', 'interpolant.prediction=noise'),
    notice="DiT's published weights are CC BY-NC 4.0: for non-commercial use only",
  ),
}
