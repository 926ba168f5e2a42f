"""Self-Flow: the reference's training step, groups of exact sizes, what it is equal to."""

import dataclasses
import json
import types as types_of_python

from flax import nnx
from helpers import tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import convert, types
from diversedit_jax.methods import base, selfflow, sra
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.models import block, config, cost, embed, groups, taps

KEY = jax.random.key(0)
TOLERANCE = {'rtol': 0, 'atol': 2e-5}
# Options of the cases of the reference that we offer.
CASES = {
  'self_flow': {},
  'dts_as': {'teacher_time': 'cleaner', 'separate_attention': True},
}


# The reference.


class Undropped(selfflow.SelfFlow):
  """Shows the teacher labels that are not dropped, as the released code does."""

  def at(self, noisy, t_N):
    return dataclasses.replace(super().at(noisy, t_N), y=noisy.batch['labels'])


@dataclasses.dataclass
class Reference:
  """A case: its arrays, our flow, batch, networks by their parameters, and the spec of all."""

  arrays: dict
  flow: selfflow.SelfFlow
  noisy: base.NoisyBatch
  graphdef: nnx.GraphDef
  student: dict
  teacher: dict

  def network(self, params):
    return nnx.merge(self.graphdef, params)

  def objective(self):
    return objective_lib.Objective(flow=self.flow, terms=self.flow.terms(None))

  def loss(self, params):
    teacher = self.network(self.teacher)
    return self.objective().loss(
      self.network(params), self.noisy, key=KEY, step=jnp.int32(0), teacher=teacher
    )


@pytest.fixture(scope='module', params=CASES)
def reference(request, golden):
  g = golden('self_flow')
  spec, case = json.loads(str(g['config']))['sra'], request.param
  architecture = config.Architecture(
    input_size=(spec['input_size'],) * 2,
    depth=spec['depth'],
    width=spec['D'],
    heads=spec['heads'],
    mlp_ratio=spec['mlp_ratio'],
    patch_size=2,
    channels=spec['channels'],
    num_classes=spec['num_classes'],
  )
  blocks = {
    name: spec[name.replace('block', 'depth')] for name in ('student_block', 'teacher_block')
  }
  flow = tiny.self_flow(
    architecture,
    Undropped,
    axis='tokens',
    alignment_weight=spec['align_weight'],
    t_max=0.2 if case == 'dts_as' else None,
    **blocks,
    **CASES[case],
  )
  of = lambda name: jnp.asarray(g[f'{case}/{name}'])
  noisy = tiny.noisy_of(
    jnp.asarray(tiny.nhwc(g['images'])),
    jnp.asarray(tiny.nhwc(g[f'{case}/noises'])),
    of('labels_teacher').astype(jnp.int32),
    None,
    {'order': jnp.argsort(of('group_ids'), axis=1, stable=True)},
    {'sra': of('teacher_u').T} if case == 'dts_as' else {'sra': ()},
  )
  noisy = flow.at(noisy, of('group_times').T)
  noisy = dataclasses.replace(noisy, y=of('labels_student').astype(jnp.int32))
  dropped = (g[f'{case}/labels_student'] != g[f'{case}/labels_teacher']).any()
  assert dropped == (case == 'self_flow')
  state = lambda prefix: {k.removeprefix(prefix): v for k, v in g.items() if k.startswith(prefix)}
  graphdef, _ = tiny.parameters(architecture, flow.terms(None))
  student = convert.to_ours(state('params/'), 'sra')
  teacher = convert.to_ours(state('teacher_params/'), 'sra')
  return Reference(
    {k.removeprefix(f'{case}/'): v for k, v in g.items() if k.startswith(f'{case}/')},
    flow,
    noisy,
    graphdef,
    student,
    {**student, **teacher},
  )


def test_student_matches_the_reference(reference):
  g, flow, noisy = reference.arrays, reference.flow, reference.noisy
  network = reference.network(reference.student)
  tap = flow.alignment.tap(KEY, 4)
  output = jax.jit(lambda n, noisy: flow.run(n, noisy, tap))(network, noisy)
  np.testing.assert_allclose(embed.patchify(noisy.target, 2), g['target_tokens'], atol=1e-6)
  np.testing.assert_allclose(embed.patchify(output.pred, 2), g['pred_tokens'], **TOLERANCE)
  head = network.heads['sra'](output.features[0])
  np.testing.assert_allclose(head, g['student_features'], **TOLERANCE)
  loss_N = flow.loss(output.pred, noisy.target, noisy.t)
  np.testing.assert_allclose(loss_N, g['denoising_loss'], rtol=1e-5)


def test_teacher_matches_the_reference(reference):
  """Its times, what it is shown, and its features."""
  g, flow, noisy = reference.arrays, reference.flow, reference.noisy
  context = types_of_python.SimpleNamespace(noisy=noisy, drawn=noisy.drawn['sra'])
  seen = flow.at(noisy, flow.alignment.teacher_time(context))
  images = np.moveaxis(g['teacher_input'], -3, -1)
  if images.ndim == 5:  # The whole image at the time of each group.
    ids = np.repeat(g['group_ids'][..., None], 16, axis=2)
    ids = np.asarray(embed.unpatchify(jnp.asarray(ids), 2, 8, 8))
    images = np.where(ids == 0, images[0], images[1])
    times = np.take_along_axis(np.asarray(seen.extras['times']), g['group_ids'], axis=1)
  else:
    times = np.broadcast_to(seen.t[:, None], (4, 16))
  np.testing.assert_allclose(times, g['teacher_time'], atol=1e-6)
  np.testing.assert_allclose(seen.x_t, images, atol=1e-6)
  block = flow.alignment.teacher_block
  network = reference.network(reference.teacher)
  run = jax.jit(lambda n, seen: flow.run(n, seen, taps.chosen([block - 1]), blocks=block))
  np.testing.assert_allclose(run(network, seen).features[0], g['teacher_features'], **TOLERANCE)


def test_total_and_gradients_match_the_reference(reference):
  g = reference.arrays
  step = jax.jit(jax.value_and_grad(reference.loss, has_aux=True))
  (loss, metrics), grads = step(reference.student)
  np.testing.assert_allclose(metrics['sra/loss'], g['align'], rtol=0, atol=1e-5)
  np.testing.assert_allclose(loss, g['total'], rtol=1e-5)
  found = convert.to_torch(grads, 'sra', grid=(4, 4))
  wanted = {k.removeprefix('grad_total/'): v for k, v in g.items() if k.startswith('grad_total/')}
  assert len(wanted) == 55
  for name, gradient in wanted.items():
    largest = np.abs(gradient).max()
    np.testing.assert_allclose(found[name], gradient, rtol=0, atol=2e-5 * largest, err_msg=name)


def test_the_papers_cosine_is_over_features(reference):
  g = reference.arrays
  student, teacher = (jnp.asarray(g[f'{who}_features']) for who in ('student', 'teacher'))
  for axis, name in (('features', 'align_feature_cosine_f64'), ('tokens', 'align')):
    found = jnp.mean(sra.distance(student, teacher, kind='cosine', axis=axis))
    np.testing.assert_allclose(found, g[name], atol=1e-6)
  assert abs(g['align_feature_cosine_f64'] - g['align']) > 1e-3
  assert tiny.self_flow().alignment.axis == 'features'


def test_separated_attention_matches_the_reference(golden):
  """Values and gradients, and those of attention with a mask; groups of three sizes."""
  g = golden('self_flow')
  of = lambda name: np.asarray(g[f'separation/{name}'], np.float64)
  with jax.enable_x64(True):
    architecture = config.Architecture(
      input_size=(6, 6), depth=1, width=12, heads=3, patch_size=2, channels=1
    )
    execution = config.Execution(attention='xla')
    make = lambda: block.Attention(architecture, execution, rngs=nnx.Rngs(0))
    attend = nnx.merge(
      nnx.split(nnx.eval_shape(make))[0],
      {
        'qkv': {
          'kernel': of('params/qkv.weight').T.reshape(12, 3, 12),
          'bias': of('params/qkv.bias').reshape(3, 12),
        },
        'proj': {'kernel': of('params/proj.weight').T, 'bias': of('params/proj.bias')},
      },
    )
    for n, ids in enumerate(g['separation/group_ids']):
      sizes = tuple(np.bincount(ids).tolist())
      order = jnp.argsort(jnp.asarray(ids)[None], axis=1, stable=True)

      def out(x, separate, sizes=sizes, order=order):
        tokens = groups.grouped(order, sizes, separate=separate)
        return tokens.restored(attend(tokens.sorted(x), tokens.attend))

      @jax.jit
      def squares(x, out=out):
        separated = out(x, True)
        return jnp.sum(jnp.square(separated)), (separated, out(x, False))

      x = jnp.asarray(of('x')[n : n + 1])
      grad, (separated, full) = jax.grad(squares, has_aux=True)(x)
      for found, name in (
        (full, 'out_full_f64'),
        (separated, 'out_f64'),
        (grad, 'grad_x_of_sum_of_squares_f64'),
      ):
        np.testing.assert_allclose(found[0], g[f'separation/{name}'][n], atol=1e-10)


# Groups.


def test_sizes_of_groups_are_those_of_the_reference(golden):
  for case in json.loads(str(golden('self_flow')['config']))['sra']['counts']:
    ratio = case['ratio']
    if isinstance(ratio, list) or 0 < ratio < 1:
      shares = ratio if isinstance(ratio, list) else (ratio, 1 - ratio)
      assert groups.sizes(shares, case['tokens']) == tuple(case['counts']), case


def test_the_draw_is_two_times_and_groups_of_exact_sizes():
  architecture = tiny.architecture(input_size=(8, 8), patch_size=2)  # 16 tokens.
  flow, n = tiny.self_flow(architecture, share=0.3), 2000
  batch = tiny.batch(n, shape=(8, 8, 1))
  noisy, plain = flow.draw(batch, KEY), tiny.interpolant(label_dropout=0.1).draw(batch, KEY)
  for name in ('t', 'y', 'noise', 'target'):
    np.testing.assert_array_equal(getattr(noisy, name), getattr(plain, name))
  assert flow.sizes == (5, 11)
  order, times = np.asarray(noisy.extras['order']), np.asarray(noisy.extras['times'])
  np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(16), (n, 1)))
  # Each token is equally often in group 0, to five standard deviations.
  share = np.bincount(order[:, :5].ravel(), minlength=16) / n
  assert np.abs(share - 5 / 16).max() < 5 * np.sqrt(5 / 16 * 11 / 16 / n)
  np.testing.assert_array_equal(times[:, 1], noisy.t)
  assert np.abs(times.mean(axis=0) - 0.5).max() < 5 / np.sqrt(12 * n)
  assert abs(np.corrcoef(times.T)[0, 1]) < 5 / np.sqrt(n)
  # (1), on the pixels of each token.
  tokens = lambda x: np.asarray(embed.patchify(x, 2))
  group = np.ones((n, 16), int)
  np.put_along_axis(group, order[:, :5], 0, axis=1)
  tau = np.take_along_axis(times, group, axis=1)[..., None]
  wanted = (1 - tau) * tokens(noisy.clean) + tau * tokens(noisy.noise)
  np.testing.assert_allclose(tokens(noisy.x_t), wanted, atol=1e-6)


EXECUTIONS = {
  'plain': ({}, {}),
  'skips': ({'skip': config.Skip(enabled=True)}, {'remat': 'full', 'unroll': 2}),
}


@pytest.mark.parametrize('how', EXECUTIONS)
def test_groups_are_a_conditioning_of_every_token(how):
  """Predictions, features of all kinds in the order of the grid and gradients, in float64.

  The other side has no groups: each token has a row of its own, in its own place.
  """
  fields, execution = EXECUTIONS[how]
  with jax.enable_x64(True):
    architecture = tiny.architecture(**fields)
    flow = tiny.self_flow(architecture)
    graphdef, params = tiny.parameters(architecture, dtype=np.float64)
    grouped = config.Execution(attention='xla', **execution)
    x, y = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4, 1))), jnp.arange(3)
    t_NG = jnp.asarray([[0.1, 0.9], [0.5, 0.2], [0.7, 0.7]])
    order = jnp.asarray([[2, 0, 1, 3], [3, 2, 1, 0], [0, 1, 2, 3]])

    def run(params, times, tokens, execution):
      model = nnx.merge(graphdef, params).model
      model.execution = model.blocks.execution = execution
      tap = taps.joined({'outputs': taps.every(), 'attention': taps.attention([1, 0])})
      out = model(x, times, y, tokens=tokens, tap=tap)
      return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(out)), out

    def both(times, tokens, execution):
      loss = lambda params: run(params, times, tokens, execution)
      return jax.jit(jax.grad(loss, has_aux=True))(params)

    sides = groups.grouped(order, flow.sizes)
    each = groups.grouped(jnp.tile(jnp.arange(4), (3, 1)), (1,) * 4)
    t_NT = sides.restored(sides.spread(t_NG.reshape(-1, 1)))[..., 0]
    np.testing.assert_array_equal(t_NT[1], [0.2, 0.2, 0.2, 0.5])
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10),
      both(t_NG, sides, grouped),
      both(t_NT, each, tiny.EXECUTION),
    )


def test_within_groups_a_token_does_not_see_the_others():
  architecture = tiny.architecture(input_size=(8, 8), depth=3)
  flow = tiny.self_flow(architecture, separate_attention=True, share=0.25)
  graphdef, params = tiny.parameters(architecture)
  network = nnx.merge(graphdef, params)
  noisy = flow.draw(tiny.batch(2, shape=(8, 8, 1)), KEY)

  @jax.jit
  def total(x_t):
    pred = flow.run(network, dataclasses.replace(noisy, x_t=x_t), taps.nothing()).pred
    first = jnp.zeros((2, 16)).at[jnp.arange(2)[:, None], noisy.extras['order'][:, :4]].set(1)
    return jnp.sum(embed.patchify(pred, 2) * first[..., None])

  seen = np.abs(embed.patchify(jax.grad(total)(noisy.x_t), 2)).max(axis=2) > 0
  for row, order in zip(seen, noisy.extras['order'], strict=True):
    assert set(np.flatnonzero(row)) == set(np.asarray(order[:4]))


# The flow.


def test_equal_times_are_the_plain_flow():
  with jax.enable_x64(True):
    architecture = tiny.architecture()
    flow, plain = tiny.self_flow(architecture), tiny.interpolant()
    graphdef, params = tiny.parameters(architecture, dtype=np.float64)
    network = nnx.merge(graphdef, params)
    noisy = flow.draw(tiny.batch(dtype=np.float64), KEY)
    same = flow.at(noisy, jnp.stack([noisy.t] * 2, axis=1))
    one = flow.at(noisy, noisy.t)
    np.testing.assert_array_equal(same.x_t, one.x_t)
    run = jax.jit(lambda flow, noisy: flow.forward(network, noisy, taps.every()), static_argnums=0)
    output, loss_N, _ = run(flow, same)
    wanted, of_flow_N, _ = run(plain, plain.at(noisy, noisy.t))
    np.testing.assert_allclose(loss_N, of_flow_N, rtol=1e-12)
    np.testing.assert_allclose(output.features, wanted.features, rtol=0, atol=1e-12)
    # At one time it is the plain flow to the bit: for analysis, and for the teacher.
    output, loss_N, _ = run(flow, one)
    np.testing.assert_array_equal(loss_N, of_flow_N)
    np.testing.assert_array_equal(output.features, wanted.features)
    # And back.
    back = flow.at(one, noisy.extras['times'])
    jax.tree.map(np.testing.assert_array_equal, back, noisy)


def test_the_teacher_is_cleaner_and_sees_the_students_labels():
  """(3), both ways; one pass each, of the same data and noise."""
  architecture = tiny.architecture()
  batch = tiny.batch(64)
  for option in selfflow.TEACHER_TIMES:
    flow = tiny.self_flow(architecture, teacher_time=option)
    objective = objective_lib.Objective(flow=flow, terms=flow.terms(None))
    noisy = objective.draw(batch, KEY)
    assert (noisy.y != batch['labels']).any()
    student, teacher = (
      tiny.Model(noisy.noise, [jnp.full((64, 4, 8), 1.0 + i) for i in range(2)]) for _ in range(2)
    )
    heads = {'sra': lambda f: f}
    objective.loss(
      tiny.Network(student, heads),
      noisy,
      key=KEY,
      step=jnp.int32(0),
      teacher=tiny.Network(teacher),
    )
    (call,), (seen,) = student.calls, teacher.calls
    np.testing.assert_array_equal(call.t, noisy.extras['times'])
    np.testing.assert_array_equal(seen.y, noisy.y)
    times = np.asarray(call.t)
    if option == 'minimum':
      np.testing.assert_array_equal(seen.t, times.min(axis=1))
      assert not hasattr(seen, 'tokens')
    else:
      cleaner = np.clip(times - 0.2 * np.asarray(noisy.drawn['sra']), 0, 1)
      np.testing.assert_allclose(seen.t, cleaner, atol=1e-7)
      np.testing.assert_array_equal(seen.tokens.order_NT, noisy.extras['order'])


@pytest.mark.parametrize(
  ('depth', 'blocks'), [(2, (1, 1)), (6, (1, 4)), (12, (3, 8)), (24, (7, 17)), (28, (8, 20))]
)
def test_blocks_by_depth(depth, blocks):
  found = tiny.self_flow(tiny.architecture(depth=depth)).alignment
  assert (found.student_block, found.teacher_block) == blocks
  assert (found.kind, found.weight, found.decay_epochs) == ('cosine', 0.5, 0)


def test_without_weight_there_is_no_term():
  assert tiny.self_flow(alignment_weight=0.0).terms(None) == ()


@pytest.mark.parametrize(('shift', 'vectors'), [(True, 6), (False, 4)])
def test_cost_is_a_second_conditioning_less_attention_within_groups(shift, vectors):
  """Two blocks of width 16 on 16 tokens, of which 4 and 12 attend to 160 pairs, not 256."""
  architecture = tiny.architecture(input_size=(8, 8), shift=shift)
  second, saved = 2 * 2 * vectors * 16**2, 2 * 4 * 16 * (256 - 160)
  forward = cost.forward_flops(architecture)
  for separate, wanted in ((False, second), (True, second - saved)):
    flow = tiny.self_flow(architecture, separate_attention=separate)
    np.testing.assert_allclose(flow.extra_passes(), 3 * wanted / forward)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(t_max=0.1), "selfflow.t_max=0.1 is for teacher_time='cleaner', got 'minimum'"),
    (dict(axis='tokens', kind='l2'), "selfflow.axis='tokens' is for kind='cosine', got 'l2'"),
    (dict(share=0.05), 'selfflow.share=0.05 of 4 tokens leaves a group without any'),
  ],
)
def test_what_has_no_meaning_is_refused(fields, message):
  with pytest.raises(types.UserError, match=message):
    tiny.self_flow(**fields)


def test_a_context_that_tells_one_time_is_refused():
  head = config.Head(depth=1)
  with pytest.raises(types.UserError, match='set model.conditioning=adaln'):
    tiny.self_flow(tiny.architecture(conditioning='tokens', head=head))


def test_blocks_that_the_model_lacks_are_refused_by_their_keys():
  found = tiny.self_flow(student_block=3).alignment
  with pytest.raises(types.UserError, match='selfflow.student_block: block 3 is not one of 1 to 2'):
    found.check(tiny.architecture(), 4)
