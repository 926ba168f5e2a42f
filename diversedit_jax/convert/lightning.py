"""LightningDiT's block (arXiv 2501.01423) by its names; RAE's networks are made of it too."""

from diversedit_jax.convert.rules import Rule, linear, rule, scale


def block(theirs: str, ours: str, *, width: str, hidden: str, head: str) -> tuple[Rule, ...]:
  """All of a block but its modulation.

  theirs, ours: names of the block, with its placeholder. width, hidden, head: letters of the widths
  of tokens, of the MLP's hidden layer, and of an attention head.
  """
  return (
    *linear(
      f'{theirs}.attn.qkv', f'{ours}/attn/qkv', width, f'3*{width}', layout='qkv', bias='parted'
    ),
    *linear(f'{theirs}.attn.proj', f'{ours}/attn/proj', width, width),
    *linear(f'{theirs}.mlp.fc1', f'{ours}/mlp/fc1', width, hidden, part='gelu'),
    *linear(f'{theirs}.mlp.fc2', f'{ours}/mlp/fc2', hidden, width, part='gelu'),
    *linear(
      *(f'{theirs}.mlp.w12', f'{ours}/mlp/fc12', width, f'2*{hidden}'),
      layout='halves',
      bias='halves_bias',
      part='swiglu',
    ),
    *linear(f'{theirs}.mlp.w3', f'{ours}/mlp/fc3', hidden, width, part='swiglu'),
    *(scale(f'{theirs}.norm{i}', f'{ours}/norm{i}', width, 'rms') for i in (1, 2)),
    *(scale(f'{theirs}.attn.{n}_norm', f'{ours}/attn/{n}_norm', head, 'qk_norm') for n in 'qk'),
    *(
      rule(f'{theirs}.attn.{n}_norm.bias', f'{ours}/attn/{n}_norm/bias', head, part='qk_bias')
      for n in 'qk'
    ),
  )


def adaln(theirs: str, ours: str, *, width: str, vectors: str) -> tuple[Rule, ...]:
  """A block's modulation. width, vectors: letters of what goes in and comes out."""
  return linear(f'{theirs}.adaLN_modulation.1', f'{ours}/adaln', width, vectors)
