"""RAE's block (arXiv 2510.11690): LightningDiT's, with times seen through Gaussian features."""

from diversedit_jax.models.blocks import lightning

PARTS = lightning.PARTS | {'time_features': 'gaussian'}
