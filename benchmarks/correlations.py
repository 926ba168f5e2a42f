"""How what the blocks do goes with the scores, over all runs of some studies.

  python benchmarks/correlations.py docs/studies/*.json

Prints Spearman's rank correlation of each series' last value with each score, as a table.
"""

import argparse
import json
import pathlib

from diversedit_jax.analysis import studies


def main() -> None:
  """Reads the results and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('results', nargs='+', type=pathlib.Path, help='files that --mode=study wrote')
  files = parser.parse_args().results
  print('| last value of | score | rank correlation | p | runs |\n| --- | --- | --- | --- | --- |')
  for row in studies.correlations([json.loads(file.read_text()) for file in files]):
    print('| {series} | {score} | {rho:+.2f} | {p:.2g} | {n} |'.format(**row))


if __name__ == '__main__':
  main()
