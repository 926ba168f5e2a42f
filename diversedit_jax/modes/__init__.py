"""What `--mode` does: one module each, whose `run` takes a checked experiment and a directory."""

from diversedit_jax.modes import analyze, audit, evaluate, plan, replay, sample, stats, sweep, train

__all__ = ['analyze', 'audit', 'evaluate', 'plan', 'replay', 'sample', 'stats', 'sweep', 'train']
