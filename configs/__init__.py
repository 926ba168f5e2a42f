"""Experiments, one file each; see `common` for what they share."""
