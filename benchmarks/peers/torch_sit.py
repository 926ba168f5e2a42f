"""SiT in plain PyTorch, written from the papers, for comparison; `torch_train` trains it.

Names in the state dict are REPA's (arXiv 2410.06940), which `diversedit_jax.convert` reads;
`check.py` shows that both compute the same. Time runs from 0 (data) to 1 (noise); inputs are
[N, C, H, W].
"""

import itertools
import math

import torch
from torch import nn
import torch.nn.functional as F

SIZES = {'S': (12, 384, 6), 'B': (12, 768, 12), 'L': (24, 1024, 16), 'XL': (28, 1152, 16)}
CHANNELS, CLASSES, FREQUENCIES = 4, 1000, 256


def modulate(x, shift, scale):
  """x * (1 + scale) + shift, [N, T, D] by [N, 1, D] or [N, T, D]."""
  return x * (1 + scale) + shift


class PatchEmbed(nn.Module):
  """[N, C, H, W] -> [N, T, D], tokens in row-major order."""

  def __init__(self, width, patch):
    super().__init__()
    self.proj = nn.Conv2d(CHANNELS, width, patch, patch)

  def forward(self, x):
    return self.proj(x).flatten(2).transpose(1, 2)


class TimeEmbed(nn.Module):
  """Sinusoids, cosines first, and an MLP."""

  def __init__(self, width):
    super().__init__()
    self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
    half = FREQUENCIES // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32) / half)
    self.register_buffer('frequencies', frequencies, persistent=False)

  def forward(self, t):
    angles = t[:, None] * self.frequencies
    return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class LabelEmbed(nn.Module):
  """A row for each class, and one for none."""

  def __init__(self, width):
    super().__init__()
    self.embedding_table = nn.Embedding(CLASSES + 1, width)

  def forward(self, y):
    return self.embedding_table(y)


class Attention(nn.Module):
  """Self-attention with a fused qkv projection, [q | k | v]."""

  def __init__(self, width, heads):
    super().__init__()
    self.heads = heads
    self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

  def forward(self, x):
    n, t, d = x.shape
    q, k, v = self.qkv(x).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
    return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))


class Mlp(nn.Module):
  """D -> 4D -> D with the tanh-approximated GELU."""

  def __init__(self, width):
    super().__init__()
    self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

  def forward(self, x):
    return self.fc2(F.gelu(self.fc1(x), approximate='tanh'))


class Block(nn.Module):
  """adaLN-Zero (DiT, arXiv 2212.09748)."""

  def __init__(self, width, heads):
    super().__init__()
    self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
    self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
    self.attn, self.mlp = Attention(width, heads), Mlp(width)
    self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

  def forward(self, x, c):
    shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=-1)
    x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1))
    return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class Final(nn.Module):
  """adaLN with its own shift and scale, then the head."""

  def __init__(self, width, patch):
    super().__init__()
    self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
    self.linear = nn.Linear(width, patch * patch * CHANNELS)
    self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

  def forward(self, x, c):
    shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
    return self.linear(modulate(self.norm_final(x), shift, scale))


class SkipLinear(nn.Module):
  """2D -> D; a module of its own, because the authors' weights are named so."""

  def __init__(self, width):
    super().__init__()
    self.linear = nn.Linear(2 * width, width)

  def forward(self, x):
    return self.linear(x)


class SiT(nn.Module):
  """(x, t, y) -> (velocity, outputs of all blocks); long skips are fused after the later block.

  keep: return the outputs, which a compiled network must then hold; else there are none.
  """

  def __init__(self, size: str, side: int, *, skips: bool, keep: bool):
    super().__init__()
    name, _, patch = size.partition('/')
    depth, width, heads = SIZES[name]
    self.patch, self.grid, self.depth = int(patch), side // int(patch), depth
    self.x_embedder, self.t_embedder = PatchEmbed(width, self.patch), TimeEmbed(width)
    self.y_embedder = LabelEmbed(width)
    positions = position_table(self.grid, width)[None]
    self.pos_embed = nn.Parameter(positions, requires_grad=False)
    self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
    self.skips, self.keep = skips, keep
    if skips:
      half = range(depth // 2)
      self.skip_norms = nn.ModuleList(nn.LayerNorm(2 * width, eps=1e-6) for _ in half)
      self.skip_linears = nn.ModuleList(SkipLinear(width) for _ in half)
    self.final_layer = Final(width, self.patch)

  def forward(self, x, t, y):
    c = (self.t_embedder(t) + self.y_embedder(y))[:, None]
    x, features = self.run_blocks(self.x_embedder(x) + self.pos_embed, c)
    return self.unpatchify(self.final_layer(x, c)), features

  def run_blocks(self, x, c):
    """The output of the last of `depth` blocks, and those of all."""
    features, waiting = [], []
    for i, block in enumerate(itertools.islice(self.blocks, self.depth)):
      x = self.run_block(block, x, c)
      if self.skips and i < self.depth // 2:
        waiting.append(x)
      elif self.skips:
        k = i - self.depth // 2
        x = self.skip_linears[k](self.skip_norms[k](torch.cat([x, waiting.pop()], dim=-1)))
      if self.keep:
        features.append(x)
    return x, features

  def run_block(self, block, x, c):
    """One block."""
    return block(x, c)

  def unpatchify(self, x):
    """[N, T, p*p*C] -> [N, C, H, W]; channels are fastest within a patch."""
    n, g, p = x.shape[0], self.grid, self.patch
    return x.view(n, g, g, p, p, CHANNELS).permute(0, 5, 1, 3, 2, 4).reshape(n, -1, g * p, g * p)


def position_table(grid: int, width: int) -> torch.Tensor:
  """[T, D]: sines and cosines of the column, then of the row."""
  k = torch.arange(width // 4, dtype=torch.float64)
  frequencies = 10_000 ** (-k / (width // 4))
  row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing='ij')
  angles = [place.reshape(-1, 1) * frequencies for place in (column, row)]
  return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1).float()


def randomise(model: nn.Module, seed: int) -> None:
  """Small random values in every trained parameter, those included that start at zero."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.requires_grad:
        fan_in = parameter[0].numel() if parameter.ndim > 1 else parameter.numel()
        values = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(0.5 * fan_in**-0.5 * values)
