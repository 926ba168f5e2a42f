"""RAE's network with a wide head (DDT) in plain PyTorch, for comparison; see `torch_sit`.

Written from the papers (arXiv 2504.05741, 2510.11690): LightningDiT's blocks as the encoder, whose
outputs modulate, token by token, the blocks of a wider decoder that reads the noisy input again.
Names in the state dict are those that `diversedit_jax.convert` reads as 'ddt'. Time runs from 0
(data) to 1 (noise).
"""

import itertools
import math

import torch
from torch import nn
import torch.nn.functional as F
import torch_lightning
import torch_sit


class GaussianTimeEmbed(nn.Module):
  """Sines, then cosines, of fixed Gaussian frequencies, and an MLP."""

  def __init__(self, width):
    super().__init__()
    frequencies = torch.randn(torch_sit.FREQUENCIES, generator=torch.Generator().manual_seed(0))
    self.register_buffer('W', frequencies)
    features = 2 * torch_sit.FREQUENCIES
    self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

  def forward(self, t):
    angles = 2 * math.pi * t[:, None] * self.W
    return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=-1))


class DDT(torch_lightning.LightningDiT):
  """(x, t, y) -> (velocity, outputs of the encoder's blocks), as `torch_sit.SiT`.

  head: depth, width and attention heads of the decoder, of another width than the encoder.
  """

  def __init__(
    self, size: str, side: int, *, skips: bool, keep: bool, qk_norm: bool, head: tuple[int, ...]
  ):
    super().__init__(size, side, skips=skips, keep=keep, qk_norm=qk_norm)
    _, narrow, narrow_heads = torch_sit.SIZES[size.partition('/')[0]]
    depth, width, heads = head
    self.s_embedder, self.x_embedder = self.x_embedder, torch_sit.PatchEmbed(width, self.patch)
    self.t_embedder = GaussianTimeEmbed(narrow)
    self.s_projector = nn.Linear(narrow, width)
    self.blocks.extend(torch_lightning.Block(width, heads, qk_norm=qk_norm) for _ in range(depth))
    self.enc_feat_rope = self.feat_rope
    self.dec_feat_rope = torch_lightning.Rotary(self.grid, width // heads)
    del self.feat_rope
    self.final_layer = torch_sit.Final(width, self.patch)
    self.final_layer.norm_final = torch_lightning.rms_norm(width)

  def forward(self, x, t, y):
    times = self.t_embedder(t)[:, None]
    c = F.silu(times + self.y_embedder(y)[:, None])
    f, features = self.run_blocks(self.s_embedder(x) + self.pos_embed, c)
    s = self.s_projector(F.silu(times + f))
    h = self.x_embedder(x)
    for block in itertools.islice(self.blocks, self.depth, None):
      h = block(h, s, self.dec_feat_rope)
    return self.unpatchify(self.final_layer(h, s)), features

  def run_block(self, block, x, c):
    return block(x, c, self.enc_feat_rope)
