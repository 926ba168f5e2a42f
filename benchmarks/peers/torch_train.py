"""The training step of SiT, LightningDiT or DDT in plain PyTorch, for comparison.

  python benchmarks/peers/torch_train.py --serve       told what to do by train_step.py and check.py

What a careful PyTorch user would run: scaled_dot_product_attention, fused AdamW, foreach clipping
and averaging, torch.compile and autocast by option.
"""

import argparse
from collections.abc import Sequence
import contextlib
import math
import time

import serving
import torch
from torch import nn
import torch_ddt
import torch_lightning
import torch_loss
import torch_sit

LEARNING_RATE, CLIP, DECAY, LABEL_DROPOUT = 1e-4, 1.0, 0.9999, 0.1


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
    self,
    *,
    size: str,
    batch: int,
    side: int = 32,
    variant: str = 'plain',
    block: str = 'sit',
    qk_norm: bool = False,
    head: Sequence[int] = (),
    dtype: str = 'float32',
    compile: str = '',
    tf32: bool = True,
    decay: float = DECAY,
    seed: int = 0,
  ) -> dict:
    """Builds the model and its optimizer.

    Args:
      variant: 'plain', 'skips', or 'skips+loss', whose loss is the authors' eager one on all pairs.
      block: 'sit', 'lightning' or 'ddt'.
      qk_norm: normalise queries and keys, of the latter two.
      head: depth, width and attention heads of the decoder, of 'ddt' alone.
      dtype: 'bfloat16' and 'float16' are autocast, the latter without a scaler of the loss.
      compile: mode of torch.compile; '' runs eagerly.
      tf32: let products of float32 be rounded to TF32, as the published recipes do on a GPU.
      decay: of the moving average.
    """
    self._device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    options = {'skips': variant != 'plain', 'keep': variant == 'skips+loss'}
    if qk_norm and block == 'sit':
      raise ValueError("the peer of block 'sit' has no qk_norm")
    if bool(head) != (block == 'ddt'):
      raise ValueError(f"the peer of block 'ddt' has a head, and no other has: {block=}, {head=}")
    if block == 'ddt':
      self._model = torch_ddt.DDT(size, side, **options, qk_norm=qk_norm, head=tuple(head))
    elif block == 'lightning':
      self._model = torch_lightning.LightningDiT(size, side, **options, qk_norm=qk_norm)
    else:
      self._model = torch_sit.SiT(size, side, **options)
    torch_sit.randomise(self._model, seed)
    self._model.to(self._device)
    self._run = torch.compile(self._model, mode=compile) if compile else self._model
    self._trained = [p for p in self._model.parameters() if p.requires_grad]
    self._average = [p.detach().clone() for p in self._trained]
    self._optimizer = adamw(self._trained)
    self._decay, self._diverse, self._dtype = decay, variant == 'skips+loss', getattr(torch, dtype)
    latents = torch.randn(batch, torch_sit.CHANNELS, side, side, generator=torch.manual_seed(seed))
    self._latents = latents.to(self._device)
    self._labels = (torch.arange(batch) % torch_sit.CLASSES).to(self._device)
    return {'device': str(self._device), 'torch': torch.__version__}

  def draw(self):
    """(x_t, t, y, target) of a step, drawn on the device."""
    n = len(self._labels)
    t = torch.rand(n, device=self._device)
    noise = torch.randn_like(self._latents)
    dropped = torch.rand(n, device=self._device) < LABEL_DROPOUT
    y = torch.where(dropped, torch_sit.CLASSES, self._labels)
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
    """Starts one whole step."""
    loss, _ = self.loss(*self.draw())
    self.update(loss)
    self._last = loss.detach()

  def wait(self) -> None:
    """Until the device has done all steps."""
    if self._device.type == 'cuda':
      torch.cuda.synchronize()

  def turn(self, *, count: int = 1) -> dict:
    """Seconds of one of so many steps, and the last loss."""
    seconds, loss = serving.clocked(self.step, count, wait=self.wait), self._last.item()
    if not math.isfinite(loss):
      raise FloatingPointError(f'the loss is {loss}')
    peak = torch.cuda.max_memory_allocated() if self._device.type == 'cuda' else 0
    return {**seconds, 'loss': loss, 'peak_bytes': peak}

  def compiled(self) -> dict:
    """Runs the first step; its wall seconds."""
    started = time.perf_counter()
    self.step()
    self.wait()
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
