"""The tables of the DiverseDiT paper (arXiv 2603.04239) as rows that can be trained."""
