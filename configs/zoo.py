"""Methods that DiverseDiT is compared with today, as published, and a grid that nobody has.

  python -m diversedit_jax.main --config=configs/zoo.py --mode=list
  python -m diversedit_jax.main --config=configs/zoo.py:grid/diverse+layersync,data=store:DIR \
    --workdir=DIR

Hardware, time and memory: as in the header of the size's own file, b256.py and xl256.py.
The numbers are published ones, FID-50K, of the paper that the note names; none has been measured
with this code yet. The recipe is SiT's, as in all these papers: 256 px, batch 256, AdamW at 1e-4;
that of the rows of `lightning` and `rae` is in lightning_xl256.py, rae_xl256.py and ddt_xl256.py.
The rows of `grid` have no numbers yet: DiverseDiT (10 random blocks, as its paper), its long skips
alone, LayerSync, iREPA and Self-Flow, alone and with DiverseDiT, for 80 epochs of SiT-B/2.
Meta-arguments after the row: data, steps. All else is a key, as `--config.seed=1`.
"""

from configs import ddt_xl256, lightning_xl256, rae_xl256
from configs.tables.book import Book
from configs.tables.row import Row, numbers

_RARE = 'Table 2 of RARE, which trained all of these again on one protocol'
_RARE_OPTIONS = 'options not stated there: the published defaults'
_INTERVAL = {'sampler.guidance_high': 0.72}
_B4 = {'repa.pairs': 'dinov2-vit-b@4'}
_IREPA = {'repa.preset': 'irepa'}
_PLAIN = {'optimizer.clip_norm': 0.0}  # SiT's own trainer.
_LAYERSYNC = 'LayerSync, 2510.12581, quoted at second hand'
_PAIR = 'pair of this size not published: 8:16 in proportion'
_RAE = 'RAE, 2510.11690'
_RAE_QUOTED = f'{_RAE}, quoted at second hand'
_SELFFLOW = 'Self-Flow, 2603.06507, quoted at second hand'


def _rare(name, method, fid, guided, options=None, note=''):
  """The two rows of one column of RARE's table: without guidance and at 1.65 in [0, 0.72]."""
  note, options = '; '.join(filter(None, (_RARE, note))), options or {}
  row = lambda end, paper, **more: Row(
    f'rare/{name}{end}', method, 'B/2', paper=numbers(paper), note=note, **more
  )
  return (
    row('', fid, options=options),
    row('-guided', guided, guidance=1.65, options=options | _INTERVAL),
  )


def _grid(name, method, **more):
  return Row(f'grid/{name}', method, 'B/2', paper={}, **more)


ROWS = (
  *_rare('SiT-B', 'flow', 35.15, 14.33),
  *_rare('REPA-B', 'repa', 22.39, 6.69, _B4, "block 4 assumed, REPA's own"),
  *_rare('iREPA-B', 'repa', 20.40, 5.48, _IREPA),
  *_rare('HASTE-B', 'repa+haste', 18.99, 5.00),
  *_rare('SRA-B', 'sra', 28.84, 10.47, note=_RARE_OPTIONS),
  # 80 epochs without guidance, and 800 of XL.
  Row('layersync/SiT-B', 'flow', 'B/2', options=_PLAIN, paper=numbers(36.19), note=_LAYERSYNC),
  Row(
    'layersync/SiT-B+LayerSync',
    'layersync',
    'B/2',
    options=_PLAIN,
    paper=numbers(30.00),
    note=f'{_LAYERSYNC}; {_PAIR}',
  ),
  Row('layersync/SiT-L', 'flow', 'L/2', options=_PLAIN, paper=numbers(21.41), note=_LAYERSYNC),
  Row(
    'layersync/SiT-L+LayerSync',
    'layersync',
    'L/2',
    options=_PLAIN,
    paper=numbers(14.83),
    note=_LAYERSYNC,
  ),
  Row('layersync/SiT-XL', 'flow', 'XL/2', options=_PLAIN, paper=numbers(17.97), note=_LAYERSYNC),
  Row(
    'layersync/SiT-XL+LayerSync',
    'layersync',
    'XL/2',
    options=_PLAIN,
    paper=numbers(11.24),
    note=_LAYERSYNC,
  ),
  Row(
    'layersync/SiT-XL-800',
    'flow',
    'XL/2',
    steps=4_000_000,
    options=_PLAIN,
    paper=numbers(8.99),
    note=_LAYERSYNC,
  ),
  Row(
    'layersync/SiT-XL-800+LayerSync',
    'layersync',
    'XL/2',
    steps=4_000_000,
    options=_PLAIN,
    paper=numbers(6.87),
    note=_LAYERSYNC,
  ),
  Row('selfflow/REPA-XL', 'repa', 'XL/2', steps=4_000_000, paper=numbers(5.89), note=_SELFFLOW),
  Row(
    'selfflow/Self-Flow-XL',
    'selfflow',
    'XL/2',
    steps=4_000_000,
    options={'selfflow.alignment_weight': 0.8},
    paper=numbers(5.70),
    note=f'{_SELFFLOW}, as the weight of 0.8',
  ),
  Row(
    'internal/SiT-XL-800-guided',
    'internal',
    'XL/2',
    steps=4_000_000,
    guidance=1.35,
    options={'sampler.guidance_high': 0.7, 'internal.scale': 1.4},
    paper=numbers(1.46, IS=265.7),
    note='Internal Guidance, 2512.24176, README of its code; scales and interval of its gen.sh',
  ),
  Row(
    'lightning/XL-800',
    'direction',
    'XL/1',
    steps=1_000_000,
    options=lightning_xl256.RECIPE,
    data=lightning_xl256.DATA,
    paper=numbers(2.17),
    note='LightningDiT on VA-VAE, 2501.01423, quoted at second hand',
  ),
  Row(
    'rae/DiT-XL-80',
    'flow',
    'XL/1',
    steps=80 * rae_xl256.EPOCH,
    options=rae_xl256.RECIPE,
    data=rae_xl256.DATA,
    paper=numbers(4.28, 6.40, 222.1, 0.871, 0.478),
    note=f'{_RAE}, its author in issue 64 of its repository',
  ),
  Row(
    'rae/DiT-XL-DINOv2-S-800',
    'flow',
    'XL/1',
    steps=800 * rae_xl256.EPOCH,
    options=rae_xl256.RECIPE | {'rae.encoder': 'dinov2reg-vit-s'},
    data='synthetic:16x16x384+256x256x3:1000',
    paper=numbers(1.87, IS=209.7, Prec=0.80, Rec=0.63),
    note=f'{_RAE_QUOTED}; registers of DINOv2-S assumed',
  ),
  Row(
    'rae/DiTDH-XL-80',
    'flow',
    'XL/1',
    steps=80 * rae_xl256.EPOCH,
    options=ddt_xl256.RECIPE,
    data=rae_xl256.DATA,
    paper=numbers(2.16),
    note=_RAE_QUOTED,
  ),
  Row(
    'rae/DiTDH-XL-800',
    'flow',
    'XL/1',
    steps=800 * rae_xl256.EPOCH,
    options=ddt_xl256.RECIPE,
    data=rae_xl256.DATA,
    paper=numbers(1.51, IS=242.9, Prec=0.79, Rec=0.63),
    note=_RAE_QUOTED,
  ),
  _grid('flow', 'flow'),
  _grid('diverse', 'flow+diverse'),
  _grid('skips', 'flow', skips=True),
  _grid('layersync', 'layersync'),
  _grid('diverse+layersync', 'diverse+layersync'),
  _grid('irepa', 'repa', options=_IREPA),
  _grid('irepa+diverse', 'repa+diverse', options=_IREPA),
  _grid('selfflow', 'selfflow'),
  _grid('selfflow+diverse', 'selfflow+diverse'),
)
_BOOK = Book(rows=ROWS, file='configs/zoo.py')

get_config, find = _BOOK.config, _BOOK.find
trained_as, listing = _BOOK.trained_as, _BOOK.listing
