"""The diversity loss: its definition, the O(L) form of it, and the term that trains with it."""

from diversedit_jax.methods.diverse.term import Diverse

__all__ = ['Diverse']
