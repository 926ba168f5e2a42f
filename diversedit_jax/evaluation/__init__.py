"""Scores of samples; `evaluate_npz(samples, reference, inception)` scores a file of them."""

from diversedit_jax.evaluation.npz import evaluate_npz

__all__ = ['evaluate_npz']
