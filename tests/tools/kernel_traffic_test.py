"""Kernels and bytes of compiled programs, against XLA's own account and a program by hand."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import pytest

ROWS, COLUMNS = 512, 256
UNIT = 4 * ROWS * COLUMNS
ACCELERATOR = """
HloModule by_hand

%slice_and_add (p0: f32[8,64], p1: s32[]) -> f32[64] {
  %p0 = f32[8,64]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = f32[1,64]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,64}
  %flat = f32[64]{0} bitcast(%one)
  ROOT %sum = f32[64]{0} add(%flat, %flat)
}

%store (p0: f32[8,64], p1: f32[64], p2: s32[]) -> f32[8,64] {
  %p0 = f32[8,64]{1,0} parameter(0)
  %p1 = f32[64]{0} parameter(1)
  %row = f32[1,64]{1,0} bitcast(%p1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %kept = f32[8,64]{1,0} dynamic-update-slice(%p0, %row, %p2, %zero)
}

%body (carry: (s32[], f32[8,64])) -> (s32[], f32[8,64]) {
  %carry = (s32[], f32[8,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %stack = f32[8,64]{1,0} get-tuple-element(%carry), index=1
  %row = f32[64]{0} fusion(%stack, %i), kind=kLoop, calls=%slice_and_add, metadata={op_name="jit(f)/add"}
  %next = f32[8,64]{1,0} fusion(%stack, %row, %i), kind=kLoop, calls=%store
  ROOT %out = (s32[], /*index=1*/f32[8,64]{1,0}) tuple(%i, %next)
}

%condition (carry: (s32[], f32[8,64])) -> pred[] {
  %carry = (s32[], f32[8,64]{1,0}) parameter(0)
  ROOT %more = pred[] constant(true)
}

ENTRY %main (x: f32[8,64], w: bf16[64,64]) -> f32[8,64] {
  %x = f32[8,64]{1,0} parameter(0)
  %w = bf16[64,64]{1,0} parameter(1)
  %start = s32[] constant(0)
  %product = (bf16[64,64]{1,0}, s8[1024]{0}) custom-call(%w, %w), custom_call_target="__cublas$lt$matmul"
  %attended = bf16[64,64]{1,0} custom-call(%w), custom_call_target="__cudnn$fmhaSoftmax"
  %gathering = (f32[8,64]{1,0}, f32[32,64]{1,0}) all-gather-start(%x), channel_id=1, dimensions={0}
  %waited = f32[32,64]{1,0} all-gather-done(%gathering)
  %moving = (f32[8,64]{1,0:S(5)}, f32[8,64]{1,0}, u32[]) copy-start(%x)
  %moved = f32[8,64]{1,0:S(5)} copy-done(%moving)
  %init = (s32[], f32[8,64]{1,0}) tuple(%start, %moved)
  %loop = (s32[], f32[8,64]{1,0}) while(%init), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"8"}}
  ROOT %out = f32[8,64]{1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


@pytest.fixture
def kernel_traffic(monkeypatch):
  monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[2] / 'benchmarks')
  return importlib.import_module('kernel_traffic')


def test_slices_stacks_loops_and_kinds_of_an_accelerators_program(kernel_traffic):
  kernels = kernel_traffic.kernels(ACCELERATOR)
  found = {k.name: (k.kind, k.read, k.written, k.times, k.source) for k in kernels}
  row, array, kernel = 4 * 64, 4 * 8 * 64, 2 * 64 * 64
  assert found == {
    'product': ('product', 2 * kernel, kernel + 1024, 1, ''),
    'attended': ('attention', kernel, kernel, 1, ''),
    'waited': ('collective', array, 4 * array, 1, ''),  # At its end, by what it took and gave.
    'moved': ('copy', array, array, 1, ''),
    'row': ('fusion', row + 4, row, 8, 'jit(f)/add'),  # One row, the number of which is read too.
    'next': ('fusion', row + 4, row, 8, ''),  # In its place.
  }


def test_bytes_are_those_of_xlas_account(kernel_traffic):
  """A program without a loop, of which XLA gives the right account too."""

  def function(x, y):
    u = x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=1, keepdims=True))
    return jnp.sum(jnp.abs(x), axis=0), u + y

  x = jax.ShapeDtypeStruct((ROWS, COLUMNS), jnp.float32)
  program = jax.jit(function).lower(x, x).compile()
  moved = sum(k.bytes * k.times for k in kernel_traffic.kernels(program.as_text()))
  assert moved == pytest.approx(program.cost_analysis()['bytes accessed'], rel=0.02)
  assert moved == pytest.approx(5 * UNIT, rel=0.02)  # Two sums of x; x and y in and u + y out.
