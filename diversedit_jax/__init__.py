"""DiverseDiT and the diffusion-transformer methods it is compared with, in JAX and Flax NNX."""

__version__ = '0.3.0'
