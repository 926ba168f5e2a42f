"""Names and layouts of other systems' models and ours, as data: one table of rules per family.

A rule pairs one of their names with one path of our tree. Placeholders run over numbered modules:

  {block}  blocks 0 .. L-1, stacked along a leading axis in our tree; in our path the placeholder
           becomes `layers`, or `first` and `second` in a model with long skips
  {skip}   the L/2 long skips, stacked; the placeholder becomes `fuse`
  {head}   heads by number, not stacked

Letters of the shapes:

  D  width            p  patch size           P{head}  hidden width of a projector
  C  channels         M  width of the MLP     Z{head}  width of its output
  R  label rows, K+1  E  width of one attention head
  Z  width of the class token                 k{head}  side of its convolution
"""

from collections.abc import Mapping
import dataclasses

from diversedit_jax import trees, types
from diversedit_jax.convert import diffusers_dit
from diversedit_jax.models import embed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
  """One of their tensors (or one per block, skip or head) and the leaf of our tree that holds it.

  torch: the name in the other system, which is PyTorch except for MeanFlow.
  ours: our path, with the same placeholder, if any.
  shape: their shape; an entry is a product of letters and numbers, as '3*D'.
  layout: a name of `layouts.LAYOUTS`.
  part: the optional part of the model that it belongs to, present in all blocks or in none.
  """

  torch: str
  ours: str
  shape: tuple[str, ...]
  layout: str = 'same'
  part: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """All tensors of a kind of model.

  position_table: name of the fixed sine-cosine table [1, T, D], which we compute and do not store;
    None if they do not store it either.
  zero_rows: number of zero rows at the top of that table, for tokens without a place.
  rotary: name of the module with the tables of rotary positions, which we compute too; '' for none.
  continued: pairs (old, new) of module lists; `old` counts on from the end of `new`.
  mark: part of our tree that only this family has, by which `detect` knows it; '' for none.
  sizes: values of letters that the shapes do not tell.
  config: config keys that such weights need beyond what their shapes tell.
  notice: licence notice for users of such weights.
  """

  rules: tuple[Rule, ...]
  position_table: str | None = 'pos_embed'
  zero_rows: int = 0
  rotary: str = ''
  continued: tuple[tuple[str, str], ...] = ()
  mark: str = ''
  sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
  config: tuple[str, ...] = ()
  notice: str = ''

  @property
  def learns_sigma(self) -> bool:
    """Whether the head has twice the channels."""
    (head,) = (rule for rule in self.rules if rule.ours == 'model/final/linear/bias')
    return '2' in head.shape[0].split('*')

  @property
  def tables(self) -> tuple[str, ...]:
    """Names of the fixed tables that they store, and that we compute."""
    rotary = [f'{self.rotary}.freqs_{of}' for of in ('cos', 'sin')] if self.rotary else []
    return tuple(filter(None, (self.position_table, *rotary)))


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


def _rule(torch: str, ours: str, *shape: str, layout: str = 'same', part: str = '') -> Rule:
  return Rule(torch=torch, ours=ours, shape=shape, layout=layout, part=part)


def _linear(
  torch: str,
  ours: str,
  fan_in: str,
  fan_out: str,
  *,
  layout: str = 'linear',
  bias: str = 'same',
  part: str = '',
) -> tuple[Rule, ...]:
  """PyTorch's linear layer; `layout` and `bias` are the layouts of its two tensors."""
  kernel = _rule(f'{torch}.weight', f'{ours}/kernel', fan_out, fan_in, layout=layout, part=part)
  return kernel, _rule(f'{torch}.bias', f'{ours}/bias', fan_out, layout=bias, part=part)


def _norm(torch: str, ours: str, width: str, *, part: str = '') -> tuple[Rule, ...]:
  scale = _rule(f'{torch}.weight', f'{ours}/scale', width, part=part)
  return scale, _rule(f'{torch}.bias', f'{ours}/bias', width, part=part)


_BLOCK, _OURS = 'blocks.{block}', 'model/blocks/{block}'
_FREQUENCIES = str(embed.TIME_FREQUENCIES)


def _body(adaln: str, *mlp: Rule) -> tuple[Rule, ...]:
  """All but patches, the first layer of the time embedding and the head, where families differ."""
  return (
    _rule('x_embedder.proj.bias', 'model/patch_embed/bias', 'D'),
    *_linear('t_embedder.mlp.2', 'model/time_embed/fc2', 'D', 'D'),
    _rule('y_embedder.embedding_table.weight', 'model/label_embed/embedding', 'R', 'D'),
    *_linear(f'{_BLOCK}.attn.qkv', f'{_OURS}/attn/qkv', 'D', '3*D', layout='qkv', bias='parted'),
    *_linear(f'{_BLOCK}.attn.proj', f'{_OURS}/attn/proj', 'D', 'D'),
    *mlp,
    *_linear(f'{_BLOCK}.adaLN_modulation.1', f'{_OURS}/adaln', 'D', adaln),
    *_norm('skip_norms.{skip}', 'model/blocks/{skip}/norm', '2*D'),
    *_linear('skip_linears.{skip}.linear', 'model/blocks/{skip}/linear', '2*D', 'D'),
    *_linear('final_layer.adaLN_modulation.1', 'model/final/adaln', 'D', '2*D'),
  )


def _gelu(part: str = '') -> tuple[Rule, ...]:
  return (
    *_linear(f'{_BLOCK}.mlp.fc1', f'{_OURS}/mlp/fc1', 'D', 'M', part=part),
    *_linear(f'{_BLOCK}.mlp.fc2', f'{_OURS}/mlp/fc2', 'M', 'D', part=part),
  )


def _scale(torch: str, ours: str, width: str, part: str) -> Rule:
  """The weight of an RMSNorm, or of a LayerNorm whose bias is a part of its own."""
  return _rule(f'{torch}.weight', f'{ours}/scale', width, part=part)


_TRUNK = _body(
  '6*D',
  *_gelu(),
  *_norm(f'{_BLOCK}.attn.q_norm', f'{_OURS}/attn/q_norm', 'E', part='qk_norm'),
  *_norm(f'{_BLOCK}.attn.k_norm', f'{_OURS}/attn/k_norm', 'E', part='qk_norm'),
)

_PATCHES = ('x_embedder.proj.weight', 'model/patch_embed/kernel')
_BODY = (_rule(*_PATCHES, *'DCpp', layout='patches'), *_TRUNK)
_TIME = ('t_embedder.mlp.0', 'model/time_embed/fc1', _FREQUENCIES, 'D')
_HEAD = ('final_layer.linear', 'model/final/linear', 'D')
_SIT = (*_BODY, *_linear(*_TIME), *_linear(*_HEAD, 'p*p*C'))

_LIGHTNING = (
  _rule(*_PATCHES, *'DCpp', layout='patches'),
  *_body(
    'A',
    *_gelu('gelu'),
    *_linear(
      *(f'{_BLOCK}.mlp.w12', f'{_OURS}/mlp/fc12', 'D', '2*M'),
      layout='halves',
      bias='halves_bias',
      part='swiglu',
    ),
    *_linear(f'{_BLOCK}.mlp.w3', f'{_OURS}/mlp/fc3', 'M', 'D', part='swiglu'),
    *(_scale(f'{_BLOCK}.norm{i}', f'{_OURS}/norm{i}', 'D', 'rms') for i in (1, 2)),
    *(_scale(f'{_BLOCK}.attn.{n}_norm', f'{_OURS}/attn/{n}_norm', 'E', 'qk_norm') for n in 'qk'),
    *(
      _rule(f'{_BLOCK}.attn.{n}_norm.bias', f'{_OURS}/attn/{n}_norm/bias', 'E', part='qk_bias')
      for n in 'qk'
    ),
  ),
  _scale('final_layer.norm_final', 'model/final/norm', 'D', 'rms'),
  *_linear(*_TIME, layout='reversed_clock'),
  *_linear(*_HEAD, 'p*p*C', layout='negated', bias='negated_vector'),
)

_PROJECTORS = (
  *_linear('projectors.{head}.0', 'heads/repa/{head}/fc1', 'D', 'P{head}', part='mlp'),
  *_linear('projectors.{head}.2', 'heads/repa/{head}/fc2', 'P{head}', 'P{head}', part='mlp'),
  *_linear('projectors.{head}.4', 'heads/repa/{head}/fc3', 'P{head}', 'Z{head}', part='mlp'),
)

_CONVOLUTIONS = (
  _rule(
    'projectors.{head}.projection_layer.weight',
    'heads/repa/{head}/conv/kernel',
    *('Z{head}', 'D', 'k{head}', 'k{head}'),
    layout='patches',
    part='conv',
  ),
  _rule(
    'projectors.{head}.projection_layer.bias', 'heads/repa/{head}/conv/bias', 'Z{head}', part='conv'
  ),
)

_CLASS_TOKEN = (
  *_linear('cls_projectors2', 'model/class_token_embed/proj', 'Z', 'D'),
  *_norm('wg_norm', 'model/class_token_embed/norm', 'D'),
  *_linear('final_layer.linear_cls', 'model/final/class_linear', 'D', 'Z'),
)


def _sra_head(torch: str) -> tuple[Rule, ...]:
  return (
    *_linear(f'{torch}.linear1', 'heads/sra/fc1', 'D', '2*D', part='sra_head'),
    *_linear(f'{torch}.linear2', 'heads/sra/fc2', '2*D', 'D', part='sra_head'),
  )


def _flax(
  theirs: str, ours: str, fan_in: str, fan_out: str, layout: str = 'same'
) -> tuple[Rule, ...]:
  """MeanFlow's linear layer, a Flax one inside a module of PyTorch's name."""
  theirs = f'net/{theirs}/_flax_linear'
  kernel = _rule(f'{theirs}/kernel', f'{ours}/kernel', fan_in, fan_out, layout=layout)
  return kernel, _rule(f'{theirs}/bias', f'{ours}/bias', fan_out, layout=layout)


_FLAX_BLOCK = 'blocks/layers_{block}'

_MEANFLOW = (
  _rule('net/x_embedder/proj/kernel', 'model/patch_embed/kernel', *'ppCD', layout='flax_patches'),
  _rule('net/x_embedder/proj/bias', 'model/patch_embed/bias', 'D'),
  *_flax('t_embedder/mlp/layers_0', 'model/time_embed/fc1', _FREQUENCIES, 'D'),
  *_flax('t_embedder/mlp/layers_2', 'model/time_embed/fc2', 'D', 'D'),
  *_flax('h_embedder/mlp/layers_0', 'model/interval_embed/fc1', _FREQUENCIES, 'D'),
  *_flax('h_embedder/mlp/layers_2', 'model/interval_embed/fc2', 'D', 'D'),
  _rule(
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
    rules=_SIT + _PROJECTORS + _CONVOLUTIONS, continued=(('decoder_blocks', 'blocks'),)
  ),
  # REG (2507.01467): a class token before the patches, whose row of the table is zero.
  'reg': Family(
    rules=_SIT + _PROJECTORS + _CLASS_TOKEN, zero_rows=1, mark='model/class_token_embed'
  ),
  # SRA (2505.02831): a head that only the trained network has, not its moving average.
  'sra': Family(rules=_SIT + _sra_head('ap_head'), mark='heads/sra'),
  # MeanFlow (2505.13447), a Flax program: t_embedder takes t, h_embedder takes t - r.
  'meanflow': Family(rules=_MEANFLOW, position_table=None, mark='model/interval_embed'),
  # SiT's own program (2401.08740): data at t = 1, and a head with 2C channels, of which C are used.
  'sit_original': Family(
    rules=(
      *_BODY,
      *_linear(*_TIME, layout='reversed_clock'),
      *_linear(*_HEAD, 'p*p*2*C', layout='negated_head', bias='negated_bias'),
    ),
  ),
  # Self-Flow's published networks (2603.06507): the clock and head of SiT's own program, patches as
  # a matrix, whose side is 2.
  'selfflow': Family(
    rules=(
      _rule(*_PATCHES, 'D', 'C*p*p', layout='flat_patches'),
      *_TRUNK,
      *_linear(*_TIME, layout='reversed_clock'),
      *_linear(*_HEAD, 'p*p*2*C', layout='negated_head', bias='negated_bias'),
      *_sra_head('projector'),
    ),
    mark='heads/sra',
    sizes={'p': 2},
  ),
  # LightningDiT (2501.01423): data at t = 1; rotary positions, RMSNorm or LN, SwiGLU or GELU.
  'lightning': Family(
    rules=_LIGHTNING + _PROJECTORS,
    rotary='feat_rope',
    mark='model/final/norm',
  ),
  # DiT (2212.09748): the noise and the range of its variance, at steps 0 .. 999.
  'dit': Family(
    rules=(*_BODY, *_linear(*_TIME), *_linear(*_HEAD, 'p*p*2*C')),
    config=('model.time_input=ddpm', 'interpolant.path=vp', 'interpolant.prediction=noise'),
    notice="DiT's published weights are CC BY-NC 4.0: for non-commercial use only",
  ),
}
