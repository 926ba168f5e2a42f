"""What a sampler's options come to before anything is traced: grids, stretches, costs, refusals."""

import numpy as np
import pytest

from diversedit_jax import sampling, types
from diversedit_jax.sampling import trajectory


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'kind': 'huen'}, "sampler.kind 'huen'; did you mean 'heun'"),
    ({'path': 'straight'}, "sampler.path 'straight'"),
    ({'diffusion': 't'}, "sampler.diffusion 't'"),
    ({'dtype': 'bfloat16'}, "sampler.dtype 'bfloat16'"),
    ({'steps': 1}, 'euler_maruyama with steps=1'),
    ({'last_step': 0.0}, 'sampler.last_step must be in'),
    ({'guidance_high': 2.0}, 'sampler.guidance_high must be in'),
    ({'start': 1.1}, 'sampler.start must be in'),
    ({'start': 0.8, 'last_step': 0.9}, 'start=0.8 must be after sampler.last_step=0.9'),
    ({'times': (1.0, 0.5, 0.0)}, 'the SDE has its own grid'),
    ({'kind': 'euler', 'steps': 2, 'times': (1.0, 1.0, 0.0)}, 'expected falling times'),
    ({'kind': 'euler', 'steps': 2, 'times': (0.0, 0.5, 1.0)}, 'expected falling times'),
    ({'kind': 'euler', 'steps': 2, 'times': (0.9, 0.5, 0.0)}, 'from start=1.0 to 0'),
    ({'kind': 'heun', 'steps': 2, 'times': (1.0, 0.5, 0.1)}, 'from start=1.0 to 0'),
    ({'kind': 'heun', 'steps': 3, 'times': (1.0, 0.5, 0.0)}, 'has 2 steps, but sampler.steps=3'),
    ({'kind': 'euler', 'steps': 1, 'times': (1.0, 0.0), 'shift': 2.0}, 'give one'),
    ({'kind': 'euler', 'steps': 1, 'times': (1.0, 0.0), 'end': 0.1}, 'give one'),
    ({'guidance_rule': 'steps'}, "did you mean 'step'"),
    ({'kind': 'average_velocity', 'guidance_scale': 1.5}, 'guided in training'),
    ({'kind': 'average_velocity', 'guidance_scale': 0.5}, 'guided in training'),
    ({'class_token_scale': -0.5}, 'class_token_scale must be at least 0'),
  ],
)
def test_refuses(options, message):
  with pytest.raises(types.UserError, match=message):
    sampling.SamplerConfig(**options)


@pytest.mark.parametrize(
  ('options', 'idle'),
  [
    ({}, []),
    ({'kind': 'heun', 'guidance_scale': 2.0, 'guidance_high': 0.7, 'guidance_channels': 3}, []),
    ({'diffusion': 'sigma', 'last_step': 0.02}, []),
    ({'kind': 'euler', 'diffusion': 'sigma', 'last_step': 0.02}, ['diffusion', 'last_step']),
    ({'end': 0.001}, ['end']),
    ({'guidance_low': 0.1, 'guidance_high': 0.7}, ['guidance_low', 'guidance_high']),
    ({'guidance_rule': 'evaluation'}, ['guidance_rule']),
    ({'guidance_channels': 3}, ['guidance_channels']),
    (
      {'guidance_channels': 3, 'guidance_high': 0.7, 'class_token_scale': 2.0},
      ['guidance_channels'],
    ),
    ({'guidance_scale': 0.0, 'guidance_high': 0.03}, ['guidance_scale']),
    ({'class_token_scale': 2.0, 'guidance_high': 0.03}, ['class_token_scale']),
    ({'kind': 'average_velocity', 'steps': 1, 'guidance_high': 0.7}, ['guidance_high']),
  ],
)
def test_options_without_effect_are_named(options, idle):
  found = sampling.SamplerConfig(**options).without_effect()
  assert [line.partition('=')[0].removeprefix('sampler.') for line in found] == idle


def test_time_grids_match_reference(golden):
  arrays = golden('samplers')
  for kind, name in (('euler', 'ode'), ('heun', 'ode'), ('euler_maruyama', 'sde')):
    grid = trajectory.time_grid(sampling.SamplerConfig(kind=kind, steps=20))
    np.testing.assert_allclose(grid, arrays[f'{name}_time_grid'], rtol=0, atol=2e-16)


def test_grids_begin_at_the_start_and_end_at_0():
  grid = lambda **options: trajectory.time_grid(sampling.SamplerConfig(**options))
  np.testing.assert_allclose(
    grid(kind='heun', steps=4, start=0.8), [0.8, 0.6, 0.4, 0.2, 0], atol=1e-16
  )
  np.testing.assert_allclose(grid(steps=3, start=0.84), [0.84, 0.44, 0.04, 0], atol=1e-16)
  # Shifted by 3, halves become three quarters; ends stay where they are.
  np.testing.assert_allclose(grid(kind='euler', steps=2, shift=3.0), [1, 0.75, 0], atol=1e-16)
  found = grid(steps=4, start=0.999, shift=3.0)
  assert found[0] == 0.999 and found[-2] == 0.04 and found[-1] == 0
  odds = found[:-1] / (1 - found[:-1]) / 3  # The equal steps, before the shift.
  np.testing.assert_allclose(np.diff(odds / (1 + odds), 2), 0, atol=1e-14)
  found = grid(kind='heun', steps=2, shift=3.0, end=0.25)  # Half way is 0.625, before the shift.
  np.testing.assert_allclose(found, [1, 5 / 6, 0.5], rtol=1e-15)
  own = (0.9, 0.85, 0.1, 0.0)
  np.testing.assert_array_equal(grid(kind='euler', steps=3, times=own, start=0.9), own)


def test_stretches_cover_the_trajectory_and_are_maximal():
  config = sampling.SamplerConfig(
    kind='heun', steps=20, guidance_scale=2.0, guidance_low=0.25, guidance_high=0.7
  )
  found = trajectory.stretches(config)
  assert [(s.method, len(s.velocities[0]) > 1) for s in found] == [
    ('heun', False),
    ('heun', True),
    ('heun', False),
    ('euler', False),
  ]
  np.testing.assert_array_equal(np.concatenate([s.index for s in found]), np.arange(20))
  # One program each for the unguided and the guided steps of the SDE, the last included.
  sde = sampling.SamplerConfig(guidance_scale=2.0, guidance_high=0.7)
  both = [(('class',),), (('class', 'null'),)]
  assert [s.velocities for s in trajectory.stretches(sde)] == both


@pytest.mark.parametrize(
  ('options', 'per_sample', 'calls'),
  [
    ({}, 250, 250),
    ({'guidance_scale': 1.35}, 500, 250),
    # REPA's setting: 172 of 250 steps start at or below t = 0.7.
    ({'guidance_scale': 1.8, 'guidance_high': 0.7}, 422, 250),
    ({'kind': 'euler', 'steps': 50}, 50, 50),
    ({'kind': 'heun', 'steps': 50}, 99, 99),
    ({'kind': 'heun', 'steps': 1}, 1, 1),
    ({'kind': 'heun', 'steps': 4, 'guidance_scale': 2.0, 'guidance_low': 0.3}, 3 * 4 + 1, 7),
    ({'kind': 'euler', 'steps': 4, 'guidance_scale': 1.0}, 4, 4),
    ({'kind': 'euler', 'steps': 4, 'guidance_scale': 0.5}, 8, 4),
    ({'kind': 'euler', 'steps': 4, 'guidance_scale': 2, 'guidance_high': 0.0}, 4, 4),
    # Heun's two looks at 0.5 are guided, at whichever end of a step: 4 + 3 evaluations.
    (
      {
        'kind': 'heun',
        'steps': 4,
        'guidance_scale': 2.0,
        'guidance_low': 0.25,
        'guidance_high': 0.75,
        'guidance_rule': 'evaluation',
      },
      7 + 2,
      7,
    ),
  ],
)
def test_evaluation_counts(options, per_sample, calls):
  found = sampling.evaluations(sampling.SamplerConfig(**options))
  assert found == (per_sample, calls)
