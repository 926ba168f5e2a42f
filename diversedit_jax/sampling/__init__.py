"""Samplers: noise in, data out, the whole trajectory in one program."""

from diversedit_jax.sampling.trajectory import SamplerConfig, evaluations, sample

__all__ = ['SamplerConfig', 'evaluations', 'sample']
