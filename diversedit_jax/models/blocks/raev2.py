"""RAEv2's block (arXiv 2605.18324), which reads time and label in tokens and is not modulated."""

from diversedit_jax.models.blocks import ddt

PARTS = ddt.PARTS | {'conditioning': 'tokens', 'position_table': False}
