"""Weights in and out: files that others wrote, and other systems' models beside ours."""

from diversedit_jax.convert.detection import detect
from diversedit_jax.convert.mapping import infer_config, to_ours, to_torch
from diversedit_jax.weights.array_files import load, save, unflatten

__all__ = ['detect', 'infer_config', 'load', 'save', 'to_ours', 'to_torch', 'unflatten']
