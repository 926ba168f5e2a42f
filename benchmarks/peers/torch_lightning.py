"""LightningDiT in plain PyTorch, written from the papers, for comparison; see `torch_sit`.

RMSNorm, SwiGLU, rotary positions in two dimensions and, as an option, normalised queries and keys
(arXiv 2501.01423) in SiT's place. Names in the state dict are those that `diversedit_jax.convert`
reads as 'lightning'. Time runs from 0 (noise) to 1 (data).
"""

import torch
from torch import nn
import torch.nn.functional as F
import torch_sit


def rms_norm(width):
  """RMSNorm with a weight."""
  return nn.RMSNorm(width, eps=1e-6)


class Rotary(nn.Module):
  """Turns each pair of features by the token's row, in the second half of a head by its column.

  [N, H, T, d] -> the same, as a product of complex numbers: half the time on a CPU of the sum that
  is commonly written.
  """

  def __init__(self, grid, width):
    super().__init__()
    frequencies = 10_000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    places = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing='ij')
    angles = torch.cat([place.reshape(-1, 1) * frequencies for place in places], dim=1)
    whole = angles.repeat_interleave(2, dim=1)
    self.register_buffer('freqs_cos', whole.cos().float())
    self.register_buffer('freqs_sin', whole.sin().float())
    turns = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
    self.register_buffer('turns', turns, persistent=False)

  def forward(self, x):
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * self.turns).flatten(-2).to(x.dtype)


class Attention(torch_sit.Attention):
  """Self-attention of which queries and keys turn, after they are normalised if asked for."""

  def __init__(self, width, heads, *, qk_norm):
    super().__init__(width, heads)
    make = rms_norm if qk_norm else nn.Identity
    self.q_norm, self.k_norm = (make(width // heads) for _ in range(2))

  def forward(self, x, rotary):
    n, t, d = x.shape
    q, k, v = self.qkv(x).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
    q, k = rotary(self.q_norm(q)), rotary(self.k_norm(k))
    return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))


class SwiGlu(nn.Module):
  """D -> two halves, SiLU of the first times the second -> D; two thirds of 4D wide."""

  def __init__(self, width):
    super().__init__()
    hidden = int(2 / 3 * 4 * width)
    self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

  def forward(self, x):
    gate, value = self.w12(x).chunk(2, dim=-1)
    return self.w3(F.silu(gate) * value)


class Block(nn.Module):
  """adaLN-Zero around these parts."""

  def __init__(self, width, heads, *, qk_norm):
    super().__init__()
    self.norm1, self.norm2 = rms_norm(width), rms_norm(width)
    self.attn, self.mlp = Attention(width, heads, qk_norm=qk_norm), SwiGlu(width)
    self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

  def forward(self, x, c, rotary):
    shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=-1)
    h = torch_sit.modulate(self.norm1(x), shift1, scale1)
    x = x + gate1 * self.attn(h, rotary)
    return x + gate2 * self.mlp(torch_sit.modulate(self.norm2(x), shift2, scale2))


class LightningDiT(torch_sit.SiT):
  """(x, t, y) -> (velocity, outputs of all blocks), as `torch_sit.SiT`."""

  def __init__(self, size: str, side: int, *, skips: bool, keep: bool, qk_norm: bool):
    super().__init__(size, side, skips=skips, keep=keep)
    depth, width, heads = torch_sit.SIZES[size.partition('/')[0]]
    self.blocks = nn.ModuleList(Block(width, heads, qk_norm=qk_norm) for _ in range(depth))
    self.feat_rope = Rotary(self.grid, width // heads)
    self.final_layer.norm_final = rms_norm(width)

  def run_block(self, block, x, c):
    return block(x, c, self.feat_rope)
