"""The networks of FDr6 (arXiv 2604.28190) and of CMMD (arXiv 2401.09603), with their own input.

Pixels of FDr6 are in [0, 1], resized with antialiasing and not clipped, normalised, and padded with
zeros at the bottom and at the right to whole patches, as the released evaluator (FD-loss 5c03b81,
`eval_all_fds.py`) has timm do it. Features are class tokens after the last norm, what SigLIP 2's
pooling head gives, and the mean of ConvNeXt's last positions without a norm. CLIP has the GELU of
timm's model of that name, although it was trained with another.

Pixels of CMMD are resized as Pillow does it, to bytes, and its features are CLIP's projections of
length one.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import trees, types
from diversedit_jax.evaluation import feature_network
from diversedit_jax.frozen.encoders import clip, convnext, dinov2, mae, siglip2, vit
from diversedit_jax.frozen.encoders import family as family_lib
from diversedit_jax.frozen.encoders import preprocess as pre
from diversedit_jax.weights import array_files, location

CMMD_POINTS = 50_000
"""Most reference pictures that CMMD compares with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Representation:
  """A network of FDr6 other than Inception.

  encoder: name of the encoder that has its published weights.
  family: the family of that encoder; None is ConvNeXt.
  changes: fields of its config that are otherwise.
  side: pixels of the input.
  mean, std: constants of its normalisation, for pixels in [0, 1].
  statistics: published file of its reference statistics.
  """

  encoder: str
  family: family_lib.Family | None = None
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  side: int
  mean: tuple[float, ...] = pre.IMAGENET_MEAN
  std: tuple[float, ...] = pre.IMAGENET_STD
  statistics: str

  @property
  def config(self) -> vit.ViTConfig | convnext.ConvNeXtConfig:
    """Sizes and parts of the network."""
    configs = convnext.CONFIGS if self.family is None else self.family.configs
    return dataclasses.replace(configs[self.encoder], **self.changes)

  def load(self, weights: str) -> tuple[dict[str, Any], str]:
    """Parameters and the name of their file, from a folder (UserError: see `files.find`)."""
    config = self.config
    if self.family is None:
      path = convnext.file(self.encoder, config, weights)
      return convnext.load(self.encoder, config, str(path), 'float32'), location.name(path)
    path = self.family.find(self.encoder, config, weights)
    grid = (-(-self.side // config.patch_size),) * 2
    return self.family.load(self.encoder, config, str(path), grid, 'float32'), location.name(path)

  def features(self, params: dict[str, Any], x_NHWC: jax.Array) -> jax.Array:
    """Features [N, D] of pictures, uint8."""
    config = self.config
    x_NHWC = pre.antialiased(x_NHWC.astype(jnp.float32) / 255, self.side, self.side)
    x_NHWC = pre.normalise(2 * x_NHWC - 1, self.mean, self.std)
    if self.family is None:
      return convnext.encode(params, x_NHWC, config).mean(axis=(1, 2))
    missing = -self.side % config.patch_size
    x_NHWC = jnp.pad(x_NHWC, ((0, 0), (0, missing), (0, missing), (0, 0)))
    return vit.summarise(params, vit.encode(params, x_NHWC, config), config)


REPRESENTATIONS = {
  'convnext': Representation(
    encoder='convnextv2-b', side=224, statistics='convnext_in256_t224_stats.npz'
  ),
  'dinov2': Representation(
    encoder='dinov2-vit-l',
    family=dinov2.FAMILY,
    side=256,
    statistics='vit_large_patch14_dinov2_lvd142m_in256_t256_stats.npz',
  ),
  'mae': Representation(
    encoder='mae-vit-l',
    family=mae.FAMILY,
    changes={'last_norm': True},
    side=224,
    statistics='vit_large_patch16_224_mae_in256_t224_stats.npz',
  ),
  'siglip': Representation(
    encoder='siglip2-vit-so400m',
    family=siglip2.FAMILY,
    side=224,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    statistics='vit_so400m_patch16_siglip_256_v2_webli_in256_t224_stats.npz',
  ),
  'clip': Representation(
    encoder='clip-vit-l',
    family=clip.FAMILY,
    changes={'last_norm': True, 'mlp': 'gelu'},
    side=256,
    mean=pre.CLIP_MEAN,
    std=pre.CLIP_STD,
    statistics='vit_large_patch14_clip_224_openai_in256_t256_stats.npz',
  ),
}
"""The networks of FDr6 other than Inception, by name."""

CMMD_CLIP = dataclasses.replace(clip.CONFIGS['clip-vit-l-336'], last_norm=True, projection=768)


def open_representation(name: str, weights: str) -> feature_network.FeatureNetwork:
  """A network of FDr6 with the weights in a folder; its features give a Fréchet distance alone.

  Raises:
    UserError: the file is missing, which is named with the place to get it, or is another's.
  """
  found = REPRESENTATIONS[name]
  params, file = _blaming('eval.fdr_weights', weights, lambda: found.load(weights))
  return _network(
    name=f'fdr-{name}',
    file=file,
    params=params,
    resize=f'bicubic with antialiasing to {found.side}, as FDr6',
    features=found.features,
    only='fid',
  )


def open_cmmd(weights: str) -> feature_network.FeatureNetwork:
  """CLIP as CMMD has it, with the weights in a folder or file.

  Raises:
    UserError: as `open_representation`.
  """
  name, config = 'clip-vit-l-336', CMMD_CLIP
  side = config.table * config.patch_size

  def load():
    path = clip.FAMILY.find(name, config, weights)
    grid = (config.table, config.table)
    return clip.FAMILY.load(name, config, str(path), grid, 'float32'), location.name(path)

  def features(params, x_NHWC):
    x_NHWC = pre.as_pillow(x_NHWC, side).astype(jnp.float32) / np.float32(127.5) - 1
    x_NHWC = pre.normalise(x_NHWC, pre.CLIP_MEAN, pre.CLIP_STD)
    return vit.projected(params, vit.encode(params, x_NHWC, config))

  params, file = _blaming('eval.cmmd', weights, load)
  return _network(
    name=f'cmmd-{name}',
    file=file,
    params=params,
    resize=f'bicubic to {side}, as Pillow',
    features=features,
    only='cmmd',
    points=CMMD_POINTS,
  )


def _network(*, features, params, **facts) -> feature_network.FeatureNetwork:
  def pool(params, x_NHWC):
    with jax.default_matmul_precision('highest'):  # As in Inception.
      return {'pool': features(params, x_NHWC)}

  digest = array_files.digest(trees.named_leaves(params).items())
  return feature_network.FeatureNetwork(
    random=False, sha256=digest, params=params, features=pool, **facts
  )


def _blaming(key: str, weights: str, load: Callable[[], Any]) -> Any:
  try:
    return load()
  except types.UserError as error:
    raise types.UserError(f'{key}={weights!r}: {error}') from error
