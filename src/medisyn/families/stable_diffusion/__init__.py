"""Stable Diffusion 1, 2 and XL: latent diffusion in ordinary diffusers folders."""
