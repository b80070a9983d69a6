"""The image autoencoder that latent diffusion models of ours start from."""

from medisyn.families.autoencoder.model import Autoencoder, AutoencoderConfig

__all__ = ["Autoencoder", "AutoencoderConfig"]
