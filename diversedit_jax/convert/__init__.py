"""Reads and writes files of weights, and converts other systems' models to ours and back."""

from diversedit_jax.convert.detection import detect
from diversedit_jax.convert.mapping import infer_config, to_ours, to_torch
from diversedit_jax.weights.array_files import load, save, unflatten

__all__ = ['detect', 'infer_config', 'load', 'save', 'to_ours', 'to_torch', 'unflatten']
