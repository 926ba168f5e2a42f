"""Collectives in the text of a program: loops, fusions and asynchronous pairs."""

from diversedit_jax.planning import collectives

TEXT = """HloModule jit_step, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%cond (arg: (s32[], f32[8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(12)
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

%fused (p: bf16[2,4]) -> bf16[8,4] {
  %all-gather.1 = bf16[8,4]{1,0:T(8,128)S(1)} all-gather(%p), channel_id=7, dimensions={0}
}

%fused_on (p: bf16[2,4]) -> bf16[8,4] {
  %all-gather.2 = bf16[8,4]{1,0:T(8,128)S(1)} all-gather(%p), channel_id=7, dimensions={0}
}

%body (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %all-reduce.1 = (f32[3]{0}, bf16[5]{0}) all-reduce(%x, %y), channel_id=1, to_apply=%add
  %started = (bf16[2,4], bf16[8,4]) fusion(%w), kind=kCustom, calls=%fused
  %ended = bf16[8,4] fusion(%w), kind=kCustom, calls=%fused_on
}

%noted (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %permuted = f32[4]{0} collective-permute(%x), channel_id=2
}

%unused (p: f32[8]) -> f32[8] {
  ROOT %all-reduce.9 = f32[8]{0} all-reduce(%p), channel_id=9, to_apply=%add
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %loop = (s32[], f32[8]) while(%init), condition=%cond, body=%body
  %turned = (s32[], f32[8]) while(%init), condition=%absent, body=%noted, backend_config={"known_trip_count":{"n":"5"}}
  %all-gather-start = (f32[2]{0}, f32[16]{0}) all-gather-start(%p), channel_id=3, dimensions={0}
  %all-gather-done = f32[16]{0} all-gather-done(%all-gather-start)
  %used = f32[8] fusion(%all-gather-done), kind=kLoop, calls=%add
}
"""  # noqa: E501


def test_loops_fusions_and_asynchronous_pairs():
  assert collectives.collectives(TEXT) == {
    'all-reduce': {
      'count': 12,
      'bytes': 12 * (3 * 4 + 5 * 2),
      'bytes by dtype': {'f32': 144, 'bf16': 120},
    },
    'all-gather': {  # One channel in two fusions twelve times, and the pair once.
      'count': 13,
      'bytes': 12 * 64 + 64,
      'bytes by dtype': {'bf16': 768, 'f32': 64},
    },
    'collective-permute': {'count': 5, 'bytes': 80, 'bytes by dtype': {'f32': 80}},
  }
