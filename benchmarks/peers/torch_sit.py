"""SiT and its training step in plain PyTorch, written from the papers, for comparison.

  python benchmarks/peers/torch_sit.py --serve         told what to do by train_step.py and check.py

What a careful PyTorch user would run: scaled_dot_product_attention, fused AdamW, foreach clipping
and averaging, torch.compile and autocast by option. Names in the state dict are REPA's (arXiv
2410.06940), which `diversedit_jax.convert` reads; `check.py` shows that both compute the same.
Time runs from 0 (data) to 1 (noise); inputs are [N, C, H, W].
"""

import argparse
import contextlib
import math
import time

import serving
import torch
from torch import nn
import torch.nn.functional as F
import torch_loss

SIZES = {'S': (12, 384, 6), 'B': (12, 768, 12), 'L': (24, 1024, 16), 'XL': (28, 1152, 16)}
CHANNELS, CLASSES, FREQUENCIES = 4, 1000, 256
LEARNING_RATE, CLIP, DECAY, LABEL_DROPOUT = 1e-4, 1.0, 0.9999, 0.1


def modulate(x, shift, scale):
  """x * (1 + scale) + shift, [N, T, D] by [N, D]."""
  return x * (1 + scale[:, None]) + shift[:, None]


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
    shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
    x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1))
    return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class Final(nn.Module):
  """adaLN with its own shift and scale, then the head."""

  def __init__(self, width, patch):
    super().__init__()
    self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
    self.linear = nn.Linear(width, patch * patch * CHANNELS)
    self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

  def forward(self, x, c):
    shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
    return self.linear(modulate(self.norm_final(x), shift, scale))


class SkipLinear(nn.Module):
  """2D -> D; a module of its own, because the authors' weights are named so."""

  def __init__(self, width):
    super().__init__()
    self.linear = nn.Linear(2 * width, width)

  def forward(self, x):
    return self.linear(x)


class SiT(nn.Module):
  """(x, t, y) -> (velocity, outputs of all blocks); long skips are fused after the later block."""

  def __init__(self, size: str, side: int, *, skips: bool):
    super().__init__()
    name, _, patch = size.partition('/')
    depth, width, heads = SIZES[name]
    self.patch, self.grid, self.depth = int(patch), side // int(patch), depth
    self.x_embedder, self.t_embedder = PatchEmbed(width, self.patch), TimeEmbed(width)
    self.y_embedder = LabelEmbed(width)
    positions = position_table(self.grid, width)[None]
    self.pos_embed = nn.Parameter(positions, requires_grad=False)
    self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
    self.skips = skips
    if skips:
      half = range(depth // 2)
      self.skip_norms = nn.ModuleList(nn.LayerNorm(2 * width, eps=1e-6) for _ in half)
      self.skip_linears = nn.ModuleList(SkipLinear(width) for _ in half)
    self.final_layer = Final(width, self.patch)

  def forward(self, x, t, y):
    x = self.x_embedder(x) + self.pos_embed
    c = self.t_embedder(t) + self.y_embedder(y)
    features, waiting = [], []
    for i, block in enumerate(self.blocks):
      x = block(x, c)
      if self.skips and i < self.depth // 2:
        waiting.append(x)
      elif self.skips:
        k = i - self.depth // 2
        x = self.skip_linears[k](self.skip_norms[k](torch.cat([x, waiting.pop()], dim=-1)))
      features.append(x)
    return self.unpatchify(self.final_layer(x, c)), features

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


def adamw(parameters: list[torch.Tensor]) -> torch.optim.AdamW:
  """AdamW, fused where this PyTorch has it for the device."""
  options = {'lr': LEARNING_RATE, 'betas': (0.9, 0.999), 'eps': 1e-8, 'weight_decay': 0.0}
  try:
    return torch.optim.AdamW(parameters, **options, fused=True)
  except RuntimeError:
    return torch.optim.AdamW(parameters, **options, foreach=True)


class Trainer:
  """The training step: times, noise, loss, gradient, clipping, AdamW, moving average."""

  def make(
    self, *, size: str, batch: int, side: int = 32, variant: str = 'plain', dtype: str = 'float32',
    compile: str = '', tf32: bool = True, decay: float = DECAY, seed: int = 0,
  ) -> dict:  # fmt: skip
    """Builds the model and its optimizer.

    Args:
      variant: 'plain', 'skips', or 'skips+loss', whose loss is the authors' eager one on all pairs.
      dtype: 'bfloat16' and 'float16' are autocast, the latter without a scaler of the loss.
      compile: mode of torch.compile; '' runs eagerly.
      tf32: let products of float32 be rounded to TF32, as the published recipes do on a GPU.
      decay: of the moving average.
    """
    self._device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    self._model = SiT(size, side, skips=variant != 'plain')
    randomise(self._model, seed)
    self._model.to(self._device)
    self._run = torch.compile(self._model, mode=compile) if compile else self._model
    self._trained = [p for p in self._model.parameters() if p.requires_grad]
    self._average = [p.detach().clone() for p in self._trained]
    self._optimizer = adamw(self._trained)
    self._decay, self._diverse, self._dtype = decay, variant == 'skips+loss', getattr(torch, dtype)
    latents = torch.randn(batch, CHANNELS, side, side, generator=torch.manual_seed(seed))
    self._latents = latents.to(self._device)
    self._labels = (torch.arange(batch) % CLASSES).to(self._device)
    return {'device': str(self._device), 'torch': torch.__version__}

  def draw(self):
    """(x_t, t, y, target) of a step, drawn on the device."""
    n = len(self._labels)
    t = torch.rand(n, device=self._device)
    noise = torch.randn_like(self._latents)
    dropped = torch.rand(n, device=self._device) < LABEL_DROPOUT
    y = torch.where(dropped, CLASSES, self._labels)
    return *noised(self._latents, noise, t), t, y

  def loss(self, x_t, target, t, y):
    """Mean squared error of the velocity in float32, and the diversity loss if asked for."""
    lower = contextlib.nullcontext()
    if self._dtype != torch.float32:
      lower = torch.autocast(self._device.type, self._dtype)
    with lower:
      pred, features = self._run(x_t, t, y)
    loss = (pred.float() - target).square().mean()
    if self._diverse:
      loss = loss + torch_loss.adaptive(torch_loss.per_pair([f.float() for f in features]))
    return loss, pred

  def update(self, loss) -> torch.Tensor:
    """Gradient, clipping, AdamW and the moving average; the norm before clipping."""
    self._optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(self._trained, CLIP, foreach=True)
    self._optimizer.step()
    with torch.no_grad():
      torch._foreach_lerp_(self._average, self._trained, 1 - self._decay)
    return norm

  def step(self) -> None:
    """One whole step, waited for."""
    loss, _ = self.loss(*self.draw())
    self._norm = self.update(loss)
    self._loss = loss.item()  # Waits.
    if self._device.type == 'cuda':
      torch.cuda.synchronize()

  def turn(self, *, count: int = 1) -> dict:
    """Seconds of one of so many steps, and the last loss."""
    seconds = serving.clocked(self.step, count)
    if not math.isfinite(self._loss):
      raise FloatingPointError(f'the loss is {self._loss}')
    peak = torch.cuda.max_memory_allocated() if self._device.type == 'cuda' else 0
    return {**seconds, 'loss': self._loss, 'peak_bytes': peak}

  def compiled(self) -> dict:
    """Runs the first step; its wall seconds."""
    started = time.perf_counter()
    self.step()
    return {'seconds': time.perf_counter() - started}

  def release(self) -> dict:
    """Gives cached memory of the device back, for the other process."""
    if self._device.type == 'cuda':
      torch.cuda.empty_cache()
    return {}

  def save(self, *, file: str) -> dict:
    """Writes the state dict."""
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in self._model.state_dict().items()}, file)
    return {}

  def given(self, *, inputs: str, outputs: str) -> dict:
    """One step on given latents, noise, times and labels; all that it computes goes to a file.

    inputs: safetensors with latents, noise [N, C, H, W], t and y [N]. outputs: 'pred', and by the
    names of the state dict 'gradient.NAME' (before clipping), 'after.NAME', 'average.NAME'.
    """
    from safetensors.torch import load_file, save_file

    given = {k: v.to(self._device) for k, v in load_file(inputs).items()}
    x_t, target = noised(given['latents'], given['noise'], given['t'])
    loss, pred = self.loss(x_t, target, given['t'], given['y'].long())
    names = [name for name, p in self._model.named_parameters() if p.requires_grad]
    loss.backward(retain_graph=True)
    found = {f'gradient.{n}': p.grad.clone() for n, p in zip(names, self._trained, strict=True)}
    norm = self.update(loss)
    found |= {f'after.{n}': p.detach().clone() for n, p in zip(names, self._trained, strict=True)}
    found |= {f'average.{n}': a.clone() for n, a in zip(names, self._average, strict=True)}
    save_file({'pred': pred.detach().contiguous(), **found}, outputs)
    return {'loss': loss.item(), 'norm': norm.item()}


def noised(latents, noise, t):
  """(x_t, target) on the linear path."""
  at = t[:, None, None, None]
  return (1 - at) * latents + at * noise, noise - latents


def main() -> None:
  """Serves one trainer."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--serve', action='store_true', required=True, help='read requests')
  parser.add_argument('--threads', type=int, default=1)
  torch.set_num_threads(parser.parse_args().threads)
  trainer = Trainer()
  names = ('make', 'turn', 'compiled', 'release', 'save', 'given')
  serving.serve({name: getattr(trainer, name) for name in names})


if __name__ == '__main__':
  main()
