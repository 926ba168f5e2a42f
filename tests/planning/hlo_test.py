"""The text of programs: parts of instructions, sizes of shapes, how often computations run."""

import jax
import jax.numpy as jnp
import pytest

from diversedit_jax.planning import hlo

TEXT = """HloModule by_hand

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%wrapped (p: f32[4]) -> f32[] {
  ROOT %reduced = f32[] reduce(%p, %zero), dimensions={0}, to_apply=%add
}, execution_thread="parallel"

%inner (carry: s32[]) -> s32[] {
  ROOT %called = s32[] call(%carry), to_apply=%twice
}

%twice (p: s32[]) -> s32[] {
  ROOT %fused = s32[] fusion(%p), kind=kLoop, calls=%wrapped
}

%condition (carry: s32[]) -> pred[] {
  %bound = BOUND
  ROOT %less = pred[] compare(%carry, %bound), direction=LT
}

%left (p: s32[]) -> s32[] {
  ROOT %loop = s32[] while(%p), condition=%condition, body=%inner
}

ENTRY %main (p: s32[]) -> s32[] {
  %known = s32[] while(%p), condition=%condition, body=%inner, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %choice = (s32[]{:T(128)}, /*index=1*/f32[8,4]{1,0:T(8,128)S(1)}) conditional(%known, %p), branch_computations={%left, %inner}
}
"""  # noqa: E501


@pytest.mark.parametrize(
  ('bound', 'turns'),
  [
    ('s32[]{:T(128)} constant(7)', 7),
    ('s32[] constant(-7)', 1),
    ('s32[] parameter(0)', 1),
    ('s32[] constant(7)\n  %other = s32[] constant(8)', 1),
  ],
)
def test_computations_run_as_often_as_what_calls_them(bound, turns):
  program = hlo.parse(TEXT.replace('BOUND', bound))
  inner = 5 + turns + 1  # The noted loop, the one in a branch, and the other branch.
  launched = {'inner': inner, 'twice': inner, 'left': 1, 'main': 1}
  assert program.entry == 'main' and program.runs() == launched
  assert program.runs(inside=True) == launched | {'add': inner, 'wrapped': inner}


def test_parts_of_an_instruction():
  *_, choice = hlo.parse(TEXT.replace('BOUND', 's32[] constant(7)')).computations['main']
  assert (choice.name, choice.opcode, choice.root) == ('choice', 'conditional', True)
  assert choice.operands == ('known', 'p')
  assert choice.called('branch_computations') == ['left', 'inner'] and not choice.called('body')
  assert list(hlo.arrays(choice.shape)) == [('s32', 4), ('f32', 128)]


def test_sizes_are_those_of_jax():
  """Whatever JAX writes for a parameter of each dtype."""
  narrow = 'bool int8 uint16 int16 uint32 bfloat16 float16 float32 complex64'
  for dtype in [*narrow.split(), 'float8_e4m3fn', 'float8_e5m2']:
    shape = jax.ShapeDtypeStruct((3, 5), jnp.dtype(dtype))
    program = hlo.parse(jax.jit(lambda x: x[0]).lower(shape).compile().as_text())
    (parameter,) = (i for i in program.computations[program.entry] if i.opcode == 'parameter')
    assert hlo.size(parameter.shape) == 15 * shape.dtype.itemsize, dtype


def test_sizes_of_wide_dtypes_and_of_what_is_no_array():
  assert hlo.size('(u64[2], s64[3]{0}, f64[], c128[2,2])') == 16 + 24 + 8 + 64
  assert list(hlo.arrays('(f32[2]{0}, token[], f32[0])')) == [('f32', 8), ('f32', 0)]


def test_another_text_has_no_program():
  for text in ('', 'HloModule empty', 'module @jit_f {}'):
    program = hlo.parse(text)
    assert not program.entry and not program.runs()
