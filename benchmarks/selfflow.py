"""What two noise levels in one image cost: whole training steps in turns, without the alignment.

  python benchmarks/selfflow.py
  python benchmarks/selfflow.py --size=B/2 --batch=64 --dtype=bfloat16      on one GPU

1. flow: one time for each example. 2. two: conditionings for two times, spread over sorted tokens,
as training does it. 3. within: the same, with attention within groups. 4. each: adaLN on every
token, as the released code does it; the same numbers as two.

FLOPs are the compiler's, of a step of four blocks without a loop, whose body XLA counts once.
"""

import dataclasses
import types

import common
import jax
import jax.numpy as jnp
import steps
import timing

from diversedit_jax.interpolants import section
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.methods import selfflow
from diversedit_jax.models import groups


@dataclasses.dataclass(frozen=True)
class EachToken(groups.Grouped):
  """Groups whose conditioning is computed anew for every token."""

  def rows(self, t_NG, y_N):
    t_NT1 = super().spread(t_NG.reshape(-1, 1))
    return t_NT1.reshape(-1), jnp.repeat(y_N, t_NT1.shape[1])

  def spread(self, v_MD):
    return v_MD.reshape(*self.order_NT.shape, -1)


jax.tree_util.register_dataclass(
  EachToken, data_fields=['order_NT', 'place_NT'], meta_fields=['sizes', 'separate']
)


class OnEachToken(selfflow.SelfFlow):
  """Self-Flow that conditions as the released code does."""

  def run(self, network, noisy, tap, blocks=None):
    tokens, times = EachToken(**vars(self._groups(noisy))), noisy.extras['times']
    return network.model(noisy.x_t, times, noisy.y, tokens=tokens, tap=tap, blocks=blocks)


def flows(architecture):
  """Each flow by its name."""
  setup = types.SimpleNamespace(
    architecture=architecture, interpolant=section.Interpolant(), label_dropout=0.1
  )
  made = lambda cls, **fields: cls(alignment_weight=0.0, **fields).prepare(setup)
  return {
    'flow': steps.interpolant(),
    'two': made(selfflow.SelfFlow),
    'within': made(selfflow.SelfFlow, separate_attention=True),
    'each': made(OnEachToken),
  }


def main() -> None:
  """Compiles all four, and lets them take turns."""
  parser = common.parser(__doc__.splitlines()[0], 'selfflow')
  parser.add_argument('--size', default='S/2')
  parser.add_argument('--batch', type=int, default=2)
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--slices', type=int, default=2)
  args = parser.parse_args()
  case = steps.Case(size=args.size, variant='plain', batch=args.batch, dtype=args.dtype)
  architecture, states, made, flops = case.architecture(), {}, {}, {}
  four = dataclasses.replace(case, unroll=steps.UNROLL['unrolled'])
  for name, flow in flows(architecture).items():
    objective = objective_lib.Objective(flow=flow)
    made[name] = steps.Step(architecture, case.execution(), objective, args.batch, states=states)
    unrolled = steps.Step(
      four.architecture(depth=4), four.execution(), objective, args.batch, allocate=False
    )
    flops[name] = unrolled.program.cost_analysis()['flops']
  turns = timing.alternate(
    {name: timing.clocked(step.run) for name, step in made.items()},
    args.rounds,
    slices=args.slices,
  )
  losses = {name: step.check() for name, step in made.items()}
  common.write(
    args.json,
    {
      'arguments': common.arguments(args),
      'flops_of_four_blocks_over_flow': {k: v / flops['flow'] for k, v in flops.items()},
      'seconds': {name: timing.summary(each) for name, each in turns.items()},
      'over_flow': {name: timing.ratio(turns[name], turns['flow']) for name in made},
      'two_over_each': timing.ratio(turns['two'], turns['each']),
      'losses': losses,
    },
  )


if __name__ == '__main__':
  main()
