"""Internal guidance: RAEv2's loss, what it reaches, what samplers and cards see.

RAEv2's network, led so, is in models/ddt_golden_test.
"""

import types as python_types

from flax import nnx
from helpers import config_changes, jaxprs, tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import trees, types
from diversedit_jax.methods import contrastive, internal
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.models import config, groups
from diversedit_jax.sampling import trajectory


def objective_of(flow=None, **fields):
  term = internal.Internal(**({'block': 1} | fields))
  return objective_lib.Objective(flow=flow or tiny.interpolant(), terms=(term,))


def network_of(dtype=np.float32, **fields):
  """A network without zeros whose first block predicts, too."""
  graphdef, params = tiny.parameters(tiny.architecture(**({'base': 1} | fields)), dtype=dtype)
  return nnx.merge(graphdef, params)


class Said:
  """A model that says the same always, and remembers nothing."""

  def __init__(self, pred, base, **architecture):
    self.output = types.Output(pred, {'internal': None}, base=base)
    self.architecture = python_types.SimpleNamespace(depth=2, **architecture)

  def __call__(self, x_NHWC, t_N, y_N, **inputs):
    return self.output


# Against RAEv2.


@pytest.mark.parametrize('dtype', [np.float64, np.float32])
def test_the_base_is_scored_as_raev2_scores_a_prediction(golden, dtype):
  """RAEv2 puts both outputs through one function, of which these are the values."""
  g, exact = golden('x_prediction'), dtype == np.float64
  with jax.enable_x64(exact):
    array = lambda name: jnp.asarray(tiny.nhwc(g[f'raev2/{name}']), dtype)
    objective = objective_of(tiny.interpolant(prediction='data', clamp=0.05), weight=1.0)
    t_N = jnp.asarray(g['raev2/t'], dtype)
    noisy = tiny.noisy_of(array('x'), array('noise'), jnp.zeros(len(t_N), jnp.int32), t_N)
    noisy = objective.flow.at(noisy, t_N)

    def values(pred):
      network = tiny.Network(Said(array('x'), pred))
      parts, metrics = objective.parts(network, noisy, key=jax.random.key(0), step=jnp.int32(0))
      return parts['internal'], (parts, metrics)

    gradient, (parts, metrics) = jax.grad(values, has_aux=True)(array('output'))
    expected = g['raev2/x/loss_f64' if exact else 'raev2/x/loss']
    np.testing.assert_allclose(parts['internal'], expected, rtol=1e-10 if exact else 1e-5)
    assert parts['flow'] == 0 and metrics['internal/loss'] == parts['internal']
    tolerance = 1e-10 if exact else 2e-5
    stored = tiny.nhwc(g['raev2/x/grad_output_f64'])
    np.testing.assert_allclose(gradient, stored, rtol=tolerance, atol=tolerance)


# The loss.

FLOWS = {
  'velocity': tiny.interpolant(),
  'noise, weighted': tiny.interpolant(prediction='noise', weighting='velocity'),
  'score': tiny.interpolant(prediction='score'),
  'data': tiny.interpolant(prediction='data'),
  'self-flow': tiny.self_flow(alignment_weight=0.0),
  'reg': tiny.reg_flow(),
}


@pytest.mark.parametrize('name', FLOWS)
def test_a_base_that_says_what_the_model_says_has_the_flows_own_loss(name):
  """The base's loss is the flow's own, REG's for its image alone."""
  flow = FLOWS[name]
  objective = objective_of(flow, weight=0.25)
  noisy = flow.draw(tiny.batch(), jax.random.key(1))
  pred = jnp.asarray(np.random.default_rng(0).standard_normal(noisy.x_t.shape), jnp.float32)
  model = Said(pred, pred)
  if name == 'reg':
    model.output = model.output._replace(class_token=noisy.extras['class_target'])
  parts, _ = objective.parts(tiny.Network(model), noisy, key=jax.random.key(0), step=jnp.int32(0))
  np.testing.assert_allclose(parts['internal'], 0.25 * parts[flow.name], rtol=1e-6)


def test_its_gradient_ends_at_the_block_and_the_flows_passes_the_base_by():
  objective, network = objective_of(), network_of(depth=4, base=3)
  graphdef, params = nnx.split(network)
  noisy = objective.draw(tiny.batch(), jax.random.key(2))

  def of(name):
    def value(params):
      network = nnx.merge(graphdef, params)
      return objective.parts(network, noisy, key=jax.random.key(0), step=jnp.int32(0))[0][name]

    gradients = jax.jit(jax.grad(value))(params)
    return trees.named_leaves(nnx.to_pure_dict(gradients))

  for name, gradient in of('internal').items():
    size = np.abs(np.asarray(gradient)).reshape(len(gradient), -1).max(1)
    if name.startswith('model/blocks/'):
      assert size[3] == 0 and size[:3].min() > 0, name
    else:
      assert (size.max() > 0) != name.startswith('model/final/'), name
  for name, gradient in of('flow').items():
    assert np.any(gradient) != name.startswith('model/base/'), name


@pytest.mark.parametrize(
  'fields',
  [{}, {'learn_sigma': True}, {'head': config.Head(depth=1, width=24), 'class_token': 3}],
)
def test_flops_are_those_of_the_second_final_layer(fields):
  architecture = tiny.architecture(base=1, channels=3, **fields)
  model = nnx.merge(*tiny.parameters(architecture)).model
  tokens = jnp.zeros((1, architecture.tokens, architecture.width))  # Without REG's class token.
  given = python_types.SimpleNamespace(tokens=groups.WHOLE)
  counted = jaxprs.flops(
    jaxprs.products(lambda f, c: model.predict_base(f, c, given), tokens, tokens[:, 0])
  )
  term = internal.Internal(block=1)
  assert term.flops(architecture, 8) == 3 * counted


# Sampling.


def sampled(objective, network, **sampler):
  keys_N, labels_N = jax.random.split(jax.random.key(3), 3), jnp.arange(3)
  given = trajectory.SamplerConfig(**({'kind': 'euler', 'steps': 4} | sampler))
  return objective.sample(network, keys_N, labels_N, given)


def test_without_guidance_samples_are_those_of_the_network_itself():
  network = network_of()
  objective = objective_of()
  assert objective.terms[0].for_sampling(network) is network
  np.testing.assert_array_equal(
    sampled(objective, network), sampled(objective.flow_only(), network)
  )
  assert objective.sampling_facts() == {}


def test_each_prediction_is_led_by_its_own_base_and_then_by_the_null_labels():
  """RAEv2's order, in the interval of each."""
  network = network_of()
  objective = objective_of(scale=1.7, low=0.3, high=0.8)

  class ByHand:
    architecture = network.model.architecture

    def __call__(self, x, t_N, y_N, **inputs):
      output = network.model(x, t_N, y_N, **inputs)
      led = output.base + 1.7 * (output.pred - output.base)
      inside = ((t_N >= 0.3) & (t_N <= 0.8))[:, None, None, None]
      return types.Output(jnp.where(inside, led, output.pred))

  by_hand = python_types.SimpleNamespace(model=ByHand(), heads={})
  sampler = {'guidance_scale': 1.5, 'guidance_high': 0.6}
  found = sampled(objective, network, **sampler)
  np.testing.assert_allclose(
    found, sampled(objective.flow_only(), by_hand, **sampler), rtol=1e-5, atol=1e-5
  )
  assert np.abs(found - sampled(objective.flow_only(), network, **sampler)).max() > 1e-2
  assert objective.sampling_facts() == {
    'internal': {'block': 1, 'scale': 1.7, 'interval': (0.3, 0.8)}
  }


@pytest.mark.parametrize('prediction', ['noise', 'score', 'data'])
def test_leading_a_prediction_leads_its_velocity(prediction):
  flow, network = tiny.interpolant(prediction=prediction), network_of()
  x = jnp.asarray(tiny.batch()['images'])
  t_N, y_N = jnp.array([0.2, 0.4, 0.6, 0.9]), jnp.arange(4)
  full, base = (
    objective_of(flow, scale=scale).velocity(network)(x, t_N, y_N) for scale in (1.0, 0.0)
  )
  led = objective_of(flow, scale=2.5).velocity(network)(x, t_N, y_N)
  np.testing.assert_allclose(led, base + 2.5 * (full - base), rtol=1e-4, atol=1e-4)


def test_a_prediction_is_corrected_before_it_is_led():
  """The base's was never contrasted, so it needs no correction."""
  network, guide = network_of(), internal.Internal(block=1, scale=1.7)
  correction = contrastive.Contrastive(correct=True, weight=0.2)
  x, t_N, y_N = jnp.asarray(tiny.batch()['images']), jnp.full(4, 0.5), jnp.arange(4)
  mean = np.random.default_rng(0).standard_normal(x.shape[1:]).astype(np.float32)
  object.__setattr__(correction, 'mean', mean)
  output = network.model(x, t_N, y_N)
  velocity = 0.8 * output.pred - 0.2 * mean[None]
  expected = output.base + 1.7 * (velocity - output.base)
  for terms in ((correction, guide), (guide, correction)):
    objective = objective_lib.Objective(flow=tiny.interpolant(), terms=terms)
    np.testing.assert_allclose(
      objective.velocity(network)(x, t_N, y_N), expected, rtol=1e-5, atol=1e-5
    )


# The whole.


def build(**changes):
  return experiment_lib.build(config_changes.changed({'method': 'internal'} | changes))


def test_blocks_by_depth_are_the_published_share():
  for depth, block, head in ((12, 3, 0), (24, 7, 0), (28, 8, 0), (2, 1, 0), (1, 1, 2)):
    changes = {'model.depth': depth, 'model.skip.enabled': False, 'model.head.depth': head}
    experiment = build(**changes)
    (term,) = experiment.objective.terms
    assert experiment.architecture.base == term.block == block


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'internal.block': 99}, 'internal.block: block 99 is not one of 1 to'),
    ({'internal.block': 6}, 'internal.block=6 is the last block.*earlier block, or a wide head'),
    (
      {'model.depth': 1, 'model.skip.enabled': False},
      'internal.block=1 is the last block.*a deeper model, or a wide head',
    ),
    ({'internal.low': 0.8, 'internal.high': 0.2}, 'internal.low=0.8 must not be above'),
    ({'method': 'meanflow+internal'}, 'not go with meanflow: an average velocity'),
  ],
)
def test_refuses_what_has_no_meaning(changes, message):
  with pytest.raises(types.UserError, match=message):
    build(**changes)
