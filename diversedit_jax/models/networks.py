"""The network of an architecture."""

from flax import nnx

from diversedit_jax.models import config, ddt, sit


def make(
  architecture: config.Architecture,
  execution: config.Execution = config.PLAIN,
  *,
  rngs: nnx.Rngs,
) -> sit.SiT:
  """SiT, or what gives the same to the same inputs with another head."""
  if not architecture.head.depth:
    return sit.SiT(architecture, execution, rngs=rngs)
  cls = ddt.InContext if architecture.conditioning == 'tokens' else ddt.DDT
  return cls(architecture, execution, rngs=rngs)
