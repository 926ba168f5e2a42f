"""The training objective and what it asks of the model, from the method's name and its sections."""

from collections.abc import Callable
import dataclasses
from typing import Any

import ml_collections

from diversedit_jax import interpolants, trees, types
from diversedit_jax.data import sources
from diversedit_jax.experiment import network, sections
from diversedit_jax.frozen import encoders
from diversedit_jax.losses import alignment, diversity_config
from diversedit_jax.losses import dispersive as dispersive_lib
from diversedit_jax.methods import (
  base,
  dispersive,
  diverse,
  flow,
  meanflow,
  reg,
  repa,
  rules,
  sra,
)
from diversedit_jax.models import attention
from diversedit_jax.models import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
  """What the parts of a method are made from.

  config: the whole. names: its parts. source: training data. model: so far, shaped for the data.
  path: interpolant. batch_size: of a step. examples: of a microbatch.
  """

  config: ml_collections.ConfigDict
  names: tuple[str, ...]
  source: sources.Source
  model: config_lib.Architecture
  execution: config_lib.Execution
  path: interpolants.Path
  batch_size: int
  examples: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepaOptions:
  """pairs: see `repa.parse_pairs`. weight, hidden: see `repa.Repa`.

  weights: folder of the encoders' weights. dtype: of the encoders' matrix products.
  """

  pairs: str
  weight: float
  hidden: int
  weights: str
  dtype: str

  def __post_init__(self):
    sections.at_least('repa', 'weight', self.weight, 0)  # 0: REG without its alignment.
    sections.at_least('repa', 'hidden', self.hidden, 1)
    trees.check_known('repa.dtype', self.dtype, config_lib.DTYPES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DispersiveOptions:
  """preset: of `dispersive.PRESETS`, for what is None; see `dispersive.Dispersive`."""

  preset: str
  kind: str
  block: int | None
  temperature: float | None
  margin: float | None
  weight: float | None
  groups: int | None

  def __post_init__(self):
    trees.check_known('dispersive.preset', self.preset, dispersive.PRESETS)
    trees.check_known('dispersive.kind', self.kind, dispersive_lib.KINDS)
    for name, kinds in (
      ('temperature', ('infonce_l2', 'infonce_cosine')),
      ('margin', ('hinge',)),
    ):
      value = getattr(self, name)
      if value is not None and self.kind not in kinds:
        raise types.UserError(
          f'dispersive.{name}={value} is for kind {" and ".join(kinds)}, got {self.kind!r}'
        )
    for name in ('temperature', 'margin', 'weight'):
      _positive('dispersive', name, getattr(self, name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SraOptions:
  """See `sra.Sra`; blocks that are None follow the depth."""

  student_block: int | None
  teacher_block: int | None
  kind: str
  axis: str
  beta: float | None
  t_max: float
  weight: float
  decay_after: float
  decay_epochs: float

  def __post_init__(self):
    trees.check_known('sra.kind', self.kind, alignment.KINDS)
    trees.check_known('sra.axis', self.axis, alignment.AXES)
    if self.axis != 'features' and self.kind != 'cosine':
      raise types.UserError(f"sra.axis={self.axis!r} is for kind='cosine', got {self.kind!r}")
    if self.beta is not None and self.kind != 'smooth_l1':
      raise types.UserError(f"sra.beta={self.beta} is for kind='smooth_l1', got {self.kind!r}")
    for name in ('beta', 'weight'):
      _positive('sra', name, getattr(self, name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegOptions:
  """See `reg.Reg`."""

  class_weight: float

  def __post_init__(self):
    sections.at_least('reg', 'class_weight', self.class_weight, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanFlowOptions:
  """See `meanflow.MeanFlow`; an equal_fraction of None follows the variant."""

  variant: str
  equal_fraction: float | None
  omega: float
  kappa: float
  start: float
  end: float
  power: float
  constant: float
  masks: str

  def __post_init__(self):
    trees.check_known('meanflow.variant', self.variant, meanflow.VARIANTS)
    trees.check_known('meanflow.masks', self.masks, meanflow.MASKS)


def make_objective(
  inputs: Inputs,
) -> tuple[base.Objective, config_lib.Architecture, config_lib.Execution]:
  """The objective that the method's name lists, and the model as that objective needs it.

  Raises:
    UserError: for parts that do not go together, options that the model or the batch does not
      allow, an unknown encoder, or data without the pixels that it looks at.
  """
  # Names and choices of every section are checked, also where its method is not used.
  options = {name: sections.splat(cls, inputs.config[name], name) for name, cls in OPTIONS.items()}
  names, model, execution = inputs.names, inputs.model, inputs.execution
  opened, pairs = {}, ()
  if rules.needs(names, 'teacher') and not inputs.config.train.ema_decay:
    raise types.UserError(
      f'method {inputs.config.method!r} with train.ema_decay=0: the teacher would be the student'
    )
  if rules.needs(names, 'encoder'):
    opened, pairs = _open_encoders(inputs, options['repa'])
  if rules.needs(names, 'token'):
    model = dataclasses.replace(
      model, class_token=opened[pairs[0].encoder].shapes().summary.shape[-1]
    )
  if rules.needs(names, 'interval'):
    # The fused kernels have no forward-mode derivative; naming one is refused by the flow.
    chosen = 'xla' if execution.attention == 'auto' else execution.attention
    model = dataclasses.replace(model, interval=True)
    execution = dataclasses.replace(execution, attention=chosen)
  inputs = dataclasses.replace(inputs, model=model)
  objective = base.Objective(
    flow=_make_flow(inputs, options, pairs),
    terms=tuple(
      term for name in names if name in TERMS for term in TERMS[name](inputs, options, pairs)
    ),
    encoders=tuple(opened.values()),
    scaling=inputs.source.scaling,
  )
  objective.flow.check_model(model, execution)
  for term in objective.terms:
    term.check(model, inputs.examples)
  # Probe now, so that a kernel that cannot run is known before the model is traced.
  attention.implementation(model, execution)
  return objective, model, execution


def _make_flow(inputs, options, pairs) -> base.Flow:
  config, path, model = inputs.config, inputs.path, inputs.model
  common = {
    'time_law': network.make_time_law(config.interpolant, path),
    'label_dropout': config.train.label_dropout,
    'null_label': model.null_label,
  }
  if 'meanflow' in inputs.names:
    found = path.name, config.interpolant.prediction, config.interpolant.weighting
    if found != ('linear', 'velocity', 'none'):
      raise types.UserError(
        'method=meanflow is defined for interpolant.path=linear, prediction=velocity, '
        f'weighting=none; got {", ".join(found)}'
      )
    fields = dataclasses.asdict(options['meanflow'])
    if fields['equal_fraction'] is None:
      fields['equal_fraction'] = 0.75 if fields['variant'] == 'original' else 0.5
    return meanflow.MeanFlow(**common, **fields)
  common |= {
    'path': path,
    'prediction': config.interpolant.prediction,
    'weighting': config.interpolant.weighting,
  }
  if 'reg' in inputs.names:
    return reg.Reg(**common, encoder=pairs[0].encoder, **dataclasses.asdict(options['reg']))
  return flow.StochasticInterpolant(**common)


def _positive(section, field, value):
  """A weight of 0 would pay for a term without effect."""
  if value is not None and not value > 0:
    raise types.UserError(f'{section}.{field} must be positive, got {value}')


def _open_encoders(inputs, options) -> tuple[dict[str, encoders.Encoder], tuple[repa.Pair, ...]]:
  """Encoders by name, and the pairs of encoder and block with the widths of the encoders."""
  source, with_token = inputs.source, 'reg' in inputs.names
  blocks = repa.REG_BLOCKS if with_token else repa.BLOCKS
  parsed = repa.parse_pairs(options.pairs, inputs.model.depth, blocks)
  if with_token and len(parsed) > 1:
    raise types.UserError(
      f'repa.pairs={options.pairs!r} with method=reg, whose class token is of one encoder: name one'
    )
  if source.pixel_shape is None:
    raise types.UserError(
      f'method={inputs.config.method!r} shows pixels to an encoder, and {source.name} has none '
      'beside its latents'
    )
  request = encoders.Request(
    source=source,
    grid=inputs.model.grid,
    image_shape=source.pixel_shape,
    weights=options.weights,
    dtype=options.dtype,
    key='repa.weights',
  )
  opened = {
    name: encoders.open_encoder(name, request) for name in dict.fromkeys(n for n, _ in parsed)
  }
  for name, encoder in opened.items():
    if with_token and encoder.shapes().summary is None:
      raise types.UserError(
        f'method={inputs.config.method!r} denoises the class token of its encoder, and {name!r} '
        'has none; name another in repa.pairs, or take method=repa'
      )
  pairs = tuple(
    repa.Pair(encoder=name, block=block, width=opened[name].shapes().tokens.shape[-1])
    for name, block in parsed
  )
  return opened, pairs


def _repa(inputs, options, pairs) -> list[base.Term]:
  fields = options['repa']
  with_token = 'reg' in inputs.names
  if not fields.weight:
    if not with_token:
      raise types.UserError('repa.weight=0 aligns nothing; leave repa out of the method')
    return []  # REG without its alignment is an ablation of the paper.
  return [
    repa.Repa(pairs=pairs, weight=fields.weight, hidden=fields.hidden, class_token=with_token)
  ]


def _dispersive(inputs, options, pairs) -> list[base.Term]:
  del pairs
  fields = dataclasses.asdict(options['dispersive'])
  name = fields.pop('preset')
  preset = dispersive.PRESETS[name]
  size = preset.group_size
  if fields['groups'] is None and inputs.examples % size:
    raise types.UserError(
      f'dispersive.preset={name!r} has groups of {size}, which do not divide the '
      f'{inputs.examples} examples of a microbatch; set dispersive.groups'
    )
  published = {
    'block': preset.block(inputs.model.depth),
    'groups': inputs.examples // size,
    'temperature': preset.temperature,
    'weight': preset.weight,
    'margin': 1.0,
  }
  fields = {k: published[k] if v is None else v for k, v in fields.items()}
  return [dispersive.Dispersive(**fields)]


def _sra(inputs, options, pairs) -> list[base.Term]:
  del pairs
  fields, depth = dataclasses.asdict(options['sra']), inputs.model.depth
  blocks = 'student_block', 'teacher_block'
  if any(fields[b] is None for b in blocks) and depth not in sra.BLOCKS:
    raise types.UserError(f'sra needs student_block and teacher_block for depth {depth}')
  for place, block in enumerate(blocks):
    if fields[block] is None:
      fields[block] = sra.BLOCKS[depth][place]
  if fields['beta'] is None:
    fields['beta'] = alignment.BETA
  steps = max(1, len(inputs.source) // inputs.batch_size)
  return [sra.Sra(**fields, steps_per_epoch=steps)]


def _diverse(inputs, options, pairs) -> list[base.Term]:
  del inputs, pairs
  return [diverse.Diverse(config=options['diversity'])]


OPTIONS: dict[str, type] = {
  'diversity': diversity_config.DiversityConfig,
  'repa': RepaOptions,
  'dispersive': DispersiveOptions,
  'sra': SraOptions,
  'reg': RegOptions,
  'meanflow': MeanFlowOptions,
}
"""What each section of a method becomes."""

_Make = Callable[[Inputs, dict[str, Any], tuple[repa.Pair, ...]], list[base.Term]]
TERMS: dict[str, _Make] = {
  'reg': _repa,
  'repa': _repa,
  'dispersive': _dispersive,
  'sra': _sra,
  'diverse': _diverse,
}
"""What makes the terms of each part of a method; (inputs, options by section, pairs) -> terms."""
