"""Parts of the analysis; see `analysis.registry`."""
