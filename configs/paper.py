"""Every trained row of the DiverseDiT paper's tables (arXiv 2603.04239).

  python -m diversedit_jax.main --config=configs/paper.py --mode=list
  python -m diversedit_jax.main --workdir=DIR \
    --config=configs/paper.py:table1/SiT-B+DiverseDiT,data=store:DIR

Hardware, time and memory: as in the header of the size's own file, b256.py to xl512.py.
The numbers are the paper's, FID-50K and so on; none has been measured with this code yet. Steps are
the papers' round ones, 5,000 to an epoch (5,004 batches of 256 exactly): 80 epochs are 400K.
Unlike the other files, the rows have the paper's own diversity loss: 10 random blocks at each step,
where the project's default is all of them; only tableA7/SiT-L-24-layers has all.
Rows whose models are trained alike need one run: `--mode=list` names the first of them, and all
others are evaluated with its workdir, because the keys of `sampler` may change.
Without a row: Table A1, which is the recipe, and rows that the paper quotes from others.
Meta-arguments after the row: data, steps. All else is a key, as `--config.seed=1`.
The tables themselves are in configs/tables/.
"""

from configs.tables import body, supplement
from configs.tables.book import Book

ROWS = (*body.ROWS, *supplement.ROWS)
_BOOK = Book(rows=ROWS, file='configs/paper.py')

get_config, find = _BOOK.config, _BOOK.find
trained_as, listing = _BOOK.trained_as, _BOOK.listing
