"""Weights in and out: files that others wrote, and PyTorch models beside ours."""

from diversedit_jax.convert.mapping import infer_config, to_ours, to_torch
from diversedit_jax.weights.array_files import load, save, unflatten

__all__ = ['infer_config', 'load', 'save', 'to_ours', 'to_torch', 'unflatten']
