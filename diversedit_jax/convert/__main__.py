"""`python -m diversedit_jax.convert`: see `cli`."""

import sys

from diversedit_jax.convert import cli

if __name__ == '__main__':
  sys.exit(cli.main())
