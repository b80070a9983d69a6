"""What the network is asked for, and what its answer says about the clean latents.

All functions are element-wise; `alpha` and `sigma` broadcast and satisfy alpha**2 + sigma**2 == 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medisyn.errors import ConfigError, closest

if TYPE_CHECKING:
    import torch

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def check_prediction_type(prediction_type: str) -> None:
    """Raise ConfigError for a prediction type that this package does not train or sample."""
    if prediction_type not in PREDICTION_TYPES:
        hint = closest(prediction_type, PREDICTION_TYPES)
        allowed = ", ".join(PREDICTION_TYPES)
        raise ConfigError(f"prediction_type {prediction_type!r} is unknown, allowed: {allowed}.{hint}")


def velocity_target(clean: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """v = alpha * noise - sigma * clean (Salimans and Ho, 2022)."""
    return alpha * noise - sigma * clean


def clean_from_velocity(
    noisy: torch.Tensor, velocity: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """clean = alpha * x_t - sigma * v."""
    return alpha * noisy - sigma * velocity


def noise_from_velocity(
    noisy: torch.Tensor, velocity: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """noise = sigma * x_t + alpha * v."""
    return sigma * noisy + alpha * velocity


def clean_from_noise(
    noisy: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """clean = (x_t - sigma * noise) / alpha; alpha must not be 0."""
    return (noisy - sigma * noise) / alpha


def target_for(
    prediction_type: str, clean: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """The regression target: the noise, the velocity or the clean latents."""
    check_prediction_type(prediction_type)
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return clean
    return velocity_target(clean, noise, alpha, sigma)


def min_snr_weight(prediction_type: str, snr: torch.Tensor, gamma: float) -> torch.Tensor:
    """Loss weight that equals min(SNR, gamma) on the clean latents (Hang et al. 2023), for the MSE of any target.

    epsilon: min(SNR, gamma) / SNR. v_prediction: min(SNR, gamma) / (SNR + 1). sample: min(SNR, gamma).
    """
    check_prediction_type(prediction_type)
    clipped = snr.clamp(max=gamma)
    if prediction_type == "epsilon":
        return clipped / snr
    if prediction_type == "v_prediction":
        return clipped / (snr + 1)
    return clipped
