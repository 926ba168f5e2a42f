"""Makes a store of pictures or latents: `python -m diversedit_jax.prepare --help`."""

from collections.abc import Sequence
import sys

from absl import flags as absl_flags
from absl import logging
import jax

from diversedit_jax import cli, cluster
from diversedit_jax.data.store import verify
from diversedit_jax.preparation import flags, options, work


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command. Returns the exit status: 0, 1 for a faulty store, else as `cli.status`."""
  # Absl logs as usual only after its own flags have been parsed.
  absl_flags.FLAGS.mark_as_parsed()
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  return cli.status(lambda: _run(argv), 'prepare')


def _run(argv):
  given = flags.parse(argv)
  if given.pop('verify', False):
    report = verify.verify(given['output'])
    print(report.text())
    return 1 if report.faults else 0
  if given.pop('distributed', False):
    given |= _place()
  try:
    print(work.run(options.Options(**given)).text())
  except KeyboardInterrupt as error:
    raise KeyboardInterrupt('run the same command to go on') from error
  return 0


def _place() -> dict[str, int]:
  """Number of this worker and of all workers, from jax.distributed, which is then left.

  So no worker waits for another, or ends with it.
  """
  cluster.join()
  place = {'worker': jax.process_index(), 'workers': jax.process_count()}
  jax.distributed.shutdown()
  return place


if __name__ == '__main__':
  cli.keep_programs()
  sys.exit(main())
