"""What `--mode` does, one function each, given a checked experiment and a directory."""

from diversedit_jax.modes.audit import audit
from diversedit_jax.modes.evaluation import evaluate, stats
from diversedit_jax.modes.guidance import sweep
from diversedit_jax.modes.results import analyze, plan, sample
from diversedit_jax.modes.train import train

__all__ = ['analyze', 'audit', 'evaluate', 'plan', 'sample', 'stats', 'sweep', 'train']
