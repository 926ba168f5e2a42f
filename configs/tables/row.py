"""What a row of a table says, and what several tables share."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

METRICS = ('FID', 'sFID', 'IS', 'Prec', 'Rec')
SIT, REPA, MEANFLOW = 'flow', 'repa', 'meanflow'
SIT_OURS, REPA_OURS, MEANFLOW_OURS = 'flow+diverse', 'repa+diverse', 'meanflow+diverse'
ORTH = {'diversity.weights': (0.33, 0.0, 0.0)}
MI = {'diversity.weights': (0.0, 0.33, 0.0)}
DISPERSION = {'diversity.weights': (0.0, 0.0, 0.33)}
OFF = 'never positive by (14), so the adaptive weight keeps it off'
SCALE = 1.35
# The supplement has REPA's interval for all guidance and no numbers; REPA's command has these.
INTERVAL = {'sampler.guidance_high': 0.7}
ASSUMED = "interval assumed to be [0, 0.7], as in REPA's command"


@dataclasses.dataclass(frozen=True)
class Row:
  """One experiment.

  name: TABLE/ROW. method, size, resolution, steps, guidance: see `imagenet.get`.
  skips: None is what the method implies. layers: how many random blocks a diversity loss compares;
    0 is all, the project's default. options: further keys of the config.
  data: of dry runs; '' is `imagenet.dry_run_data`, latents of the SD-VAE.
  paper: what the paper measured. note: what is not a number, is assumed, or is odd in the paper.
  """

  name: str
  method: str
  size: str
  _: dataclasses.KW_ONLY
  resolution: int = 256
  steps: int = 400_000
  guidance: float = 1.0
  skips: bool | None = None
  layers: int = 10
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  data: str = ''
  paper: Mapping[str, float]
  note: str = ''


def numbers(*values: float, **named: float) -> dict[str, float]:
  """Values in the order of METRICS, as many as there are, and others by name."""
  return dict(zip(METRICS, values, strict=False)) | named


def guided(
  table: str,
  rows: Sequence[Row],
  paper: Mapping[str, Sequence[float]],
  notes: Mapping[str, str] | None = None,
) -> tuple[Row, ...]:
  """Rows of another table under the same names, sampled with guidance: the same trained models.

  paper: FID, sFID, IS, precision and recall by name. notes: what else is said of one of them.
  """
  models, notes = {row.name.partition('/')[2]: row for row in rows}, notes or {}
  return tuple(
    dataclasses.replace(
      models[name],
      name=f'{table}/{name}',
      guidance=SCALE,
      options={**models[name].options, **INTERVAL},
      paper=numbers(*values),
      note='; '.join(filter(None, (ASSUMED, models[name].note, notes.get(name)))),
    )
    for name, values in paper.items()
  )
