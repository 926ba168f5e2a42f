"""Studies: several configs, each with the same seeds, told in one table and one figure."""
