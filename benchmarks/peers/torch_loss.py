"""The diversity loss of arXiv 2603.04239 in PyTorch, as one writes it down, for comparison.

  python benchmarks/peers/torch_loss.py --serve        told what to do by loss_overhead.py

`per_pair` is the way of the authors: `F.cosine_similarity` of every two blocks, which normalises
both again in every pair. `normalised_once` is the same loss with unit vectors made once; its pairs
remain. Equations by their numbers in the paper, features f_l [N, T, D].
"""

import argparse
import itertools

import serving
import torch
import torch.nn.functional as F


def per_pair(features: list[torch.Tensor], *, absolute: bool = False) -> torch.Tensor:
  """(15) over all pairs of blocks, each pair by itself.

  absolute: of every pair's mean in (12), as in the authors' code.
  """
  means = [f.mean(dim=(0, 1)) for f in features]
  orth, mi = [], []
  for i, j in itertools.combinations(range(len(features)), 2):
    orth.append(F.cosine_similarity(means[i], means[j], dim=0))
    token = F.cosine_similarity(features[i], features[j], dim=-1).mean()
    mi.append(token.abs() if absolute else token)
  return 0.33 * (torch.stack(orth).mean() + torch.stack(mi).mean() + dispersion(features))


def normalised_once(features: list[torch.Tensor]) -> torch.Tensor:
  """(15) over all pairs of blocks, of unit vectors that are made once."""
  units = [F.normalize(f, dim=-1) for f in features]
  means = [F.normalize(f.mean(dim=(0, 1)), dim=0) for f in features]
  pairs = list(itertools.combinations(range(len(features)), 2))
  mi = torch.stack([(units[i] * units[j]).sum(-1).mean() for i, j in pairs]).mean()
  orth = torch.stack([torch.dot(means[i], means[j]) for i, j in pairs]).mean()
  return 0.33 * (orth + mi + dispersion(features))


def dispersion(features: list[torch.Tensor]) -> torch.Tensor:
  """(13), with the absolute value of the authors' code, and (14)."""
  usage = [F.normalize(f.flatten(0, 1), dim=0).abs().mean(0) for f in features]
  usage = torch.stack(usage).mean(0)
  return -torch.var(usage / usage.max(), unbiased=False)


def adaptive(loss: torch.Tensor, lo: float = 0.1, hi: float = 0.5) -> torch.Tensor:
  """w(L) L; the gradient goes through w, as in the authors' code."""
  if loss > hi:
    return loss
  return (loss - lo) / hi * loss if loss > lo else loss * 0


WAYS = {'per_pair': per_pair, 'normalised_once': normalised_once}


class Loss:
  """Value and gradient of one way, on random features that lie ready."""

  def make(self, *, file: str, way: str, dtype: str = 'float32') -> dict:
    """Reads `f_LNTD` of a safetensors file and computes once; answers with loss and device."""
    from safetensors.torch import load_file

    self._device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    stacked = load_file(file)['f_LNTD'].to(self._device, getattr(torch, dtype))
    self._features = [f.clone().requires_grad_() for f in stacked]
    self._way = WAYS[way]
    self.run()
    return {'loss': self._loss.item(), 'device': str(self._device)}

  def run(self) -> None:
    """The loss and its gradient with respect to all features."""
    for f in self._features:
      f.grad = None
    self._loss = self._way(self._features)
    self._loss.backward()

  def turn(self, *, count: int = 1) -> dict:
    """Seconds of one of so many computations."""
    return serving.clocked(self.run, count, wait=self.wait)

  def wait(self) -> None:
    """Until the device has done all that it was given."""
    if self._device.type == 'cuda':
      torch.cuda.synchronize()

  def gradient(self, *, file: str) -> dict:
    """Writes the last gradient, stacked, as `g_LNTD`."""
    from safetensors.torch import save_file

    save_file({'g_LNTD': torch.stack([f.grad for f in self._features])}, file)
    return {}


def main() -> None:
  """Serves both ways."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--serve', action='store_true', required=True, help='read requests')
  parser.add_argument('--threads', type=int, default=1)
  torch.set_num_threads(parser.parse_args().threads)
  loss = Loss()
  handlers = {'make': loss.make, 'turn': loss.turn, 'gradient': loss.gradient}
  serving.serve(handlers)


if __name__ == '__main__':
  main()
