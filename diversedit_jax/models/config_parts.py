"""Parts of `config.Architecture` that have sections of their own."""

import dataclasses

from diversedit_jax import options

SKIP_PLACEMENTS = ('after', 'before')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skip(options.Section, section='model.skip', decides_network=True):
  """Long residual connections."""

  enabled: bool = options.option(
    False, doc='Joins block l to block L+1-l by a long residual connection (DiverseDiT, Eq. 8).'
  )
  placement: str = options.option(
    'after',
    choices=SKIP_PLACEMENTS,
    doc='Where they are fused: after the later block (released code, published numbers) or before '
    "it (the paper's text).",
  )
  residual: bool = options.option(
    False,
    doc='Adds what is fused to x, from zero on, instead of replacing x by it: then a model with '
    'skips can start as a trained one without (init_from). Not published.',
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head(options.Section, section='model.head', decides_network=True):
  """A wide, shallow decoder between the blocks and the final layer (DDT, arXiv 2504.05741)."""

  depth: int = options.option(
    0,
    at_least=0,
    doc="Blocks of a decoder that reads the noisy input again, modulated by the blocks' outputs "
    '(DDT, 2504.05741; RAE, 2510.11690); 0: the final layer alone.',
  )
  width: int = options.option(0, at_least=0, doc='Features of a token there; 0 takes model.width.')
  heads: int = options.option(0, at_least=0, doc='Attention heads there; 0 takes model.heads.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context(options.Section, section='model.context', decides_network=True):
  """Tokens that tell the blocks of time and label, for `model.conditioning=tokens`."""

  time: int = options.option(4, at_least=1, doc='Tokens of the time (RAEv2: 4).')
  label: int = options.option(8, at_least=1, doc='Tokens of the label (RAEv2: 8).')
