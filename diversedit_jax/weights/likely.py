"""Says what arrays most likely are, by names that only one kind of network has."""

from collections.abc import Iterable
import re

_CONVERT = 'convert it: python -m diversedit_jax.convert --input=FILE --output=NEW.safetensors'
# The first of these that fits a name is the kind; those that are parts of others come later.
_KINDS = {
  r'model/patch_embed/kernel': 'the weights of a model of this project: give them as --checkpoint',
  r'.*lora_(A|B|up|down|a|b)\b.*': 'LoRA matrices, which are added to weights and are none',
  r'.*\bmodel\.diffusion_model\..*input_blocks.*': (
    "a whole Stable Diffusion by CompVis' names: a U-Net, with its VAE, which --vae can read"
  ),
  r'.*(encoder\.down|decoder\.up)\.\d+\.block\.0\.conv1\.weight': (
    "CompVis' names of an autoencoder: give it as --vae or vae.weights"
  ),
  r'.*(encoder\.down|decoder\.up)_blocks\.0\.resnets\.0\.conv1\.weight': (
    "diffusers' names of an autoencoder: give it as --vae or vae.weights"
  ),
  r'.*(encoder\.down|decoder\.up)_blocks\.\d+\.\d+\..*': (
    "diffusers' names of a DC-AE: give it, with its config.json, as --vae or vae.weights"
  ),
  r'.*\b(encoder|decoder)\.stages\.\d+\.op_list\..*': (
    "a DC-AE by its authors' names: take their repository whose name ends in -diffusers"
  ),
  r'.*\b(down|up)_blocks\.0\.resnets\.0\.conv1\.weight': "diffusers' names of a U-Net",
  r'.*\badaln_single\..*': "diffusers' names of PixArt, another transformer than DiT",
  r'.*\b(transformer_blocks\.0\.attn\.add_q_proj|double_blocks\.0|joint_blocks\.0)\b.*': (
    'a transformer with text in its blocks, such as SD3 or Flux'
  ),
  r'.*\btransformer_blocks\.0\.norm1\.emb\..*': f"diffusers' names of DiT; {_CONVERT}",
  r'.*\bx_embedder\.proj\.weight': f'the names of SiT and DiT; {_CONVERT}',
  r'(.*/)?net/x_embedder/proj/kernel': f'the names of MeanFlow; {_CONVERT}',
  r'.*\bdecoder_layers\.0\.layernorm_before\.weight': (
    'a decoder of tokens, of RAE or MAE: that of RAE is given as rae.decoder'
  ),
  r'.*\bMixed_5b[./].*': 'Inception: give it as eval.inception',
  r'.*\bpatch_embed\.proj\.weight|.*\bembeddings\.patch_embeddings\..*': (
    'a vision transformer, as encoders are'
  ),
}


def kind(names: Iterable[str]) -> str:
  """' (these look like ...)' with the way on; '' for names of no known network."""
  names = list(names)
  for pattern, what in _KINDS.items():
    if any(re.fullmatch(pattern, name) for name in names):
      return f' (these look like {what})'
  return ''
