"""Names and layouts of PyTorch models beside ours, as data: one table of rules per family.

A rule pairs one PyTorch name with one path of our tree. Placeholders run over numbered modules:

  {block}  blocks 0 .. L-1, stacked along a leading axis of ours; the place in the path becomes
           `layers`, or `first` and `second` in a model with long skips
  {skip}   the L/2 long skips, stacked; the place becomes `fuse`
  {head}   heads by number, not stacked

Letters of the shapes:

  D  width            p  patch size           P{head}  hidden width of a projector
  C  channels         M  width of the MLP     Z{head}  width of its output
  R  label rows, K+1  E  width of one attention head
"""

import dataclasses

from diversedit_jax import trees, types
from diversedit_jax.models import embed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
  """One PyTorch tensor (or one per block, skip or head) and the leaf of ours that holds it.

  torch, ours: names with the same placeholder, if any.
  shape: PyTorch's shape; an entry is a product of letters and numbers, as '3*D'.
  layout: a name of `layouts.LAYOUTS`.
  part: a part of the model which is there for all blocks or for none.
  """

  torch: str
  ours: str
  shape: tuple[str, ...]
  layout: str = 'same'
  part: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """All tensors of a kind of model.

  position_table: name of the fixed sine-cosine table [1, T, D]; ours is computed, not stored.
  zero_rows: rows of zeros at its head, for tokens without a place.
  continued: (old, new) names of module lists, the old one counting on from the end of the new one.
  """

  rules: tuple[Rule, ...]
  position_table: str = 'pos_embed'
  zero_rows: int = 0
  continued: tuple[tuple[str, str], ...] = ()


def family(name: str) -> Family:
  """The family of a name.

  Raises:
    UserError: there is none, with the nearest known name.
  """
  if name not in FAMILIES:
    raise types.UserError(f'unknown family {name!r}{trees.did_you_mean(name, FAMILIES)}')
  return FAMILIES[name]


def _linear(torch: str, ours: str, fan_in: str, fan_out: str) -> tuple[Rule, ...]:
  return (
    Rule(torch=f'{torch}.weight', ours=f'{ours}/kernel', shape=(fan_out, fan_in), layout='linear'),
    Rule(torch=f'{torch}.bias', ours=f'{ours}/bias', shape=(fan_out,)),
  )


def _norm(torch: str, ours: str, width: str, *, part: str = '') -> tuple[Rule, ...]:
  return (
    Rule(torch=f'{torch}.weight', ours=f'{ours}/scale', shape=(width,), part=part),
    Rule(torch=f'{torch}.bias', ours=f'{ours}/bias', shape=(width,), part=part),
  )


_BLOCK, _OURS = 'blocks.{block}', 'model/blocks/{block}'

_SIT = (
  Rule(
    torch='x_embedder.proj.weight',
    ours='model/patch_embed/kernel',
    shape=('D', 'C', 'p', 'p'),
    layout='patches',
  ),
  Rule(torch='x_embedder.proj.bias', ours='model/patch_embed/bias', shape=('D',)),
  *_linear('t_embedder.mlp.0', 'model/time_embed/fc1', str(embed.TIME_FREQUENCIES), 'D'),
  *_linear('t_embedder.mlp.2', 'model/time_embed/fc2', 'D', 'D'),
  Rule(
    torch='y_embedder.embedding_table.weight',
    ours='model/label_embed/embedding',
    shape=('R', 'D'),
  ),
  *_linear(f'{_BLOCK}.attn.qkv', f'{_OURS}/attn/qkv', 'D', '3*D'),
  *_norm(f'{_BLOCK}.attn.q_norm', f'{_OURS}/attn/q_norm', 'E', part='qk_norm'),
  *_norm(f'{_BLOCK}.attn.k_norm', f'{_OURS}/attn/k_norm', 'E', part='qk_norm'),
  *_linear(f'{_BLOCK}.attn.proj', f'{_OURS}/attn/proj', 'D', 'D'),
  *_linear(f'{_BLOCK}.mlp.fc1', f'{_OURS}/mlp/fc1', 'D', 'M'),
  *_linear(f'{_BLOCK}.mlp.fc2', f'{_OURS}/mlp/fc2', 'M', 'D'),
  *_linear(f'{_BLOCK}.adaLN_modulation.1', f'{_OURS}/adaln', 'D', '6*D'),
  *_norm('skip_norms.{skip}', 'model/blocks/{skip}/norm', '2*D'),
  *_linear('skip_linears.{skip}.linear', 'model/blocks/{skip}/linear', '2*D', 'D'),
  *_linear('final_layer.adaLN_modulation.1', 'model/final/adaln', 'D', '2*D'),
  *_linear('final_layer.linear', 'model/final/linear', 'D', 'p*p*C'),
)

_PROJECTORS = (
  *_linear('projectors.{head}.0', 'heads/repa/{head}/fc1', 'D', 'P{head}'),
  *_linear('projectors.{head}.2', 'heads/repa/{head}/fc2', 'P{head}', 'P{head}'),
  *_linear('projectors.{head}.4', 'heads/repa/{head}/fc3', 'P{head}', 'Z{head}'),
)

FAMILIES = {
  # SiT as REPA writes it (arXiv 2410.06940) and DiverseDiT extends it (2603.04239); REPA's first
  # checkpoints call the blocks behind the aligned one `decoder_blocks`.
  'sit': Family(rules=_SIT + _PROJECTORS, continued=(('decoder_blocks', 'blocks'),)),
}
