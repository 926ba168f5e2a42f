"""How often a training step runs the network: once, whatever is combined, and the teacher once."""

from helpers import tiny
import jax
import jax.numpy as jnp
import optax
import pytest

from diversedit_jax.methods import dispersive, diverse, meanflow, reg
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.models import sit
from diversedit_jax.training import state, step

N = 4
DIVERSE, DISPERSIVE = diverse.Diverse(), dispersive.Dispersive(block=1, groups=1, weight=0.5)
REPA, TOKEN, SRA, REG = tiny.REPA, tiny.TOKEN, tiny.SRA, tiny.reg_flow()
SELF_FLOW = tiny.self_flow()


def mean_flow(**fields):
  return meanflow.MeanFlow(null_label=tiny.CLASSES, **fields)


PLAIN = dict(omega=1.0, kappa=0.0)
# Method: flow, terms, and the examples of every forward pass of a step.
METHODS = {
  'flow': (tiny.interpolant(), (), [N]),
  'diverse': (tiny.interpolant(), (DIVERSE,), [N]),
  'sra': (tiny.interpolant(), (SRA,), [N, N]),
  'repa+dispersive+sra+diverse': (tiny.interpolant(), (REPA, DISPERSIVE, SRA, DIVERSE), [N, N]),
  'repa+dispersive+diverse': (tiny.interpolant(), (REPA, DISPERSIVE, DIVERSE), [N]),
  'reg': (REG, (TOKEN,), [N]),
  'reg+dispersive+sra+diverse': (REG, (TOKEN, DISPERSIVE, SRA, DIVERSE), [N, N]),
  'selfflow': (SELF_FLOW, (SELF_FLOW.alignment,), [N, N]),
  'selfflow+repa+diverse': (SELF_FLOW, (SELF_FLOW.alignment, REPA, DIVERSE), [N, N]),
  # The derivative along time is of the one pass.
  'meanflow+repa+dispersive+diverse': (mean_flow(**PLAIN), (REPA, DISPERSIVE, DIVERSE), [N]),
  # With and without the class, for the guided velocity.
  'guided': (mean_flow(), (REPA, DISPERSIVE, DIVERSE), [2 * N, N]),
  'improved': (mean_flow(variant='improved', **PLAIN), (), [N, N]),
  'improved, guided': (mean_flow(variant='improved'), (), [2 * N, N]),
}


@pytest.fixture
def passes(monkeypatch):
  """Number of examples of every forward pass, while something is traced."""
  counted, original = [], sit.SiT.__call__

  def call(self, x_NHWC, *args, **kwargs):
    counted.append(len(x_NHWC))
    return original(self, x_NHWC, *args, **kwargs)

  monkeypatch.setattr(sit.SiT, '__call__', call)
  return counted


def trace(flow, terms, accumulate=1):
  """Traces a training step, optimizer and all."""
  architecture = tiny.architecture(
    interval=isinstance(flow, meanflow.MeanFlow),
    class_token=tiny.WIDTHS['enc'] if isinstance(flow, reg.Reg) else 0,
  )
  graphdef, params = tiny.parameters(architecture, terms)
  tx = optax.sgd(0.1)
  made = step.make_step(
    objective_lib.Objective(flow=flow, terms=terms),
    graphdef,
    tx,
    key=jax.random.key(0),
    ema_decay=0.9,
    learning_rate=lambda _: 0.1,
    accumulate=accumulate,
  )
  before = state.TrainState(step=jnp.int32(0), params=params, ema=params, opt_state=tx.init(params))
  return jax.eval_shape(made, before, tiny.batch(N), {})[1]


@pytest.mark.parametrize('method', METHODS)
def test_a_step_runs_the_network_once_and_the_teacher_once(method, passes):
  flow, terms, wanted = METHODS[method]
  metrics = trace(flow, terms)
  assert passes == wanted
  assert {f'{term.name}/loss' for term in terms} <= metrics.keys()


def test_microbatches_are_one_loop(passes):
  flow, terms, _ = METHODS['repa+dispersive+sra+diverse']
  trace(flow, terms, accumulate=2)
  assert passes == [N // 2, N // 2]  # Student and teacher, on a microbatch.
