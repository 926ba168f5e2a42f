"""Frozen networks whose features representation alignment aims at; see `base`."""
