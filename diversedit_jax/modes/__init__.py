"""What `--mode` does, one function each, given a checked experiment and a directory."""

from diversedit_jax.modes.audit import audit
from diversedit_jax.modes.results import analyze, evaluate, plan, sample
from diversedit_jax.modes.train import train

__all__ = ['analyze', 'audit', 'evaluate', 'plan', 'sample', 'train']
