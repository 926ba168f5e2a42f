"""The section `rae` of a config: latents that an encoder makes of pixels, and their decoder."""

import dataclasses
from typing import Any

from diversedit_jax import options, types
from diversedit_jax.data import sources
from diversedit_jax.data.sources import encoded as encoded_lib
from diversedit_jax.evaluation import decoder as decoder_lib
from diversedit_jax.frozen import encoders, rae, rae_decoder
from diversedit_jax.models import config as model_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class RaeOptions(options.Section, section='rae'):
  """Representation autoencoders (arXiv 2510.11690): which encoder's tokens are the latents."""

  encoder: str = options.option(
    '',
    doc='Encoder by name, as dinov2reg-vit-b: the model learns to make its patch tokens, which the '
    "step makes of the pixels of data.source; '' has no such latents.",
  )
  weights: str = options.option(
    '', path=True, may_change=True, doc="Folder with the encoder's official weight file."
  )
  statistics: str = options.option(
    '',
    path=True,
    may_change=True,
    doc="Published file with the mean and variance of its tokens, which normalise them; '' leaves "
    'them as they are.',
  )
  patch: int = options.option(
    rae.PATCH,
    at_least=1,
    doc='Side in pixels that one latent stands for: 16 with every transformer, whatever its own '
    'patches are.',
  )
  dtype: str = options.option(
    'float32', choices=model_config.DTYPES, doc="Type of the encoder's matrix products."
  )
  decoder: str = options.option(
    '',
    path=True,
    may_change=True,
    doc='Published file of the decoder that makes pictures of samples, or its folder, or '
    'hf://ORG/REPO/PATH; without it they stay latents.',
  )
  pixels: str = options.option(
    'imagenet',
    choices=tuple(decoder_lib.RAE_PIXELS),
    may_change=True,
    doc='What its numbers are: pixels normalised by ImageNet (RAE with DINOv2 or MAE), by 0.5 and '
    '0.5 (symmetric: RAE with SigLIP 2), or in [0, 1] (unit: RAEv2).',
  )

  def encoded(self, source: sources.Source) -> sources.Source:
    """A source whose latents the encoder makes of its pixels; the source itself without encoder.

    A source that is such latents already, or their description, is left as it is.

    Raises:
      UserError: a source without pixels, or an encoder that does not take them.
    """
    if not self.encoder or _encoder_of(source) == self.encoder:
      return source
    latents = self._latents(source)
    found = encoded_lib.EncodedSource(
      source, tokenizer=latents.tokenizer(), shape=latents.shape, facts=latents.facts
    )
    found.name = f'{self.encoder} of {source.name}'
    return found

  def _latents(self, source):
    shape = source.pixel_shape
    if shape is None:
      raise types.UserError(
        f'rae.encoder={self.encoder!r} looks at pixels, and {source.name} has none; a store has '
        'them with --store=pixels or --store=both'
      )
    if shape[0] % self.patch or shape[1] % self.patch:
      raise types.UserError(
        f'rae.patch={self.patch} does not divide the pixels of {source.name}, {shape[0]}x{shape[1]}'
      )
    request = encoders.Request(
      source=source,
      grid=(shape[0] // self.patch, shape[1] // self.patch),
      image_shape=shape,
      weights=self.weights,
      dtype=self.dtype,
      key='rae.weights',
    )
    return rae.open_latents(self.encoder, request, self.statistics)

  def open_decoder(self, source: sources.Source) -> decoder_lib.OfRae:
    """What makes pictures of the latents of a source.

    Raises:
      UserError: no such files, or others than those of the latents.
    """
    facts, channels = source.latent_facts() or {}, source.shape[-1]
    decoder, blame = rae_decoder.load(self.decoder), f'rae.decoder={self.decoder}'
    if decoder.config.latent != channels:
      raise types.UserError(
        f'{blame} takes tokens of {decoder.config.latent} channels, but the model makes {channels}'
      )
    statistics = rae.statistics(self.statistics, channels)
    statistics.over(source.shape)  # Refuses those of another grid.
    known = facts.get('statistics_sha256', statistics.sha256)
    if known != statistics.sha256:
      raise types.UserError(
        f'rae.statistics={self.statistics!r} are not those of {source.name}: SHA-256 '
        f'{statistics.sha256[:12] or "of none"}, but its latents have {known[:12] or "none"}'
      )
    return decoder_lib.OfRae(
      decoder=decoder,
      statistics=statistics,
      shape=source.shape,
      pixels=self.pixels,
      encoder=facts.get('encoder', ''),
    )

  def check(self, source: sources.Source, vae: str) -> None:
    """Refuses a decoder of what are no such latents, and two decoders.

    source: as `encoded` gives it. vae: `vae.weights`.

    Raises:
      UserError: naming the keys.
    """
    ours = bool(self.encoder) or _encoder_of(source) is not None
    if vae and (self.decoder or ours):
      other = f'rae.decoder={self.decoder!r}' if self.decoder else f'latents of {source.name}'
      raise types.UserError(
        f'vae.weights={vae!r} decodes latents of a VAE, not {other}: give rae.decoder=FILE alone'
      )
    if self.decoder and source.space == 'pixels':
      raise types.UserError(
        f'rae.decoder={self.decoder!r}, but {source.name} are pixels: give rae.encoder, whose '
        'tokens the model then learns to make'
      )
    if self.decoder and source.scaling is not None:
      raise types.UserError(f'rae.decoder={self.decoder!r}, but {source.name} has latents of a VAE')


def _encoder_of(source: sources.Source) -> Any:
  """The encoder whose tokens the latents of a source are; None where it has others, or pixels."""
  return None if source.tokenizer else (source.latent_facts() or {}).get('encoder')
