"""From noise to latents: which solver, and the loop around the U-Net.

Shapes here: B requests, C latent channels, h, w latent rows and columns, L text tokens, E text width, P pooled width.
The loop is diffusers' pipeline in its order of operations, so that the same noise gives the same image.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from medisyn.diffusion.schedules import check_zero_snr
from medisyn.diffusion.targets import check_prediction_type
from medisyn.errors import ConfigError, ModelError, closest
from medisyn.families.stable_diffusion.conditions import Conditions
from medisyn.families.stable_diffusion.config import SOLVERS
from medisyn.families.stable_diffusion.held import Held

# Schedulers whose checkpoints are ordinary diffusion models: another solver may be put in their place. The others
# (LCM, TCD, EDM, ...) belong to distilled or differently trained networks and keep their own.
EXCHANGEABLE = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)

KNOW_ZERO_SNR = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "UniPCMultistepScheduler",
)


def choose_solver(solver: str | None, scheduler_config: Mapping[str, Any]) -> str:
    """The solver's name: the one asked for, else dpmpp-2m where the checkpoint allows it, else the checkpoint's own.

    Raises ConfigError for an unknown name, or for a solver that this checkpoint's scheduler does not allow.
    """
    own = str(scheduler_config.get("_class_name"))
    if solver is None:
        return "dpmpp-2m" if own in EXCHANGEABLE else "checkpoint"
    if solver not in SOLVERS:
        raise ConfigError(f"solver {solver!r} is unknown, allowed: {', '.join(SOLVERS)}.{closest(solver, SOLVERS)}")
    if solver != "checkpoint" and own not in EXCHANGEABLE:
        raise ConfigError(
            f"solver {solver!r} does not fit a checkpoint made for {own}: it was distilled or trained for its own "
            f"schedule. Use solver 'checkpoint'."
        )
    return solver


def check_inpaints(scheduler_config: Mapping[str, Any]) -> None:
    """Raise ConfigError for a checkpoint whose noise levels are not those of an ordinary diffusion model."""
    own = str(scheduler_config.get("_class_name"))
    if own not in EXCHANGEABLE:
        raise ConfigError(f"inpainting needs an ordinary diffusion checkpoint; this one was made for {own}")


def with_objective(
    scheduler_config: Mapping[str, Any], prediction_type: str | None, zero_terminal_snr: bool | None
) -> dict[str, Any]:
    """The checkpoint's scheduler config, with the objective it is to be trained with; None keeps the checkpoint's.

    A scheduler class that knows no zero terminal SNR gives way to Euler, so that what is saved samples as trained.
    """
    changed = dict(scheduler_config)
    if prediction_type is not None:
        changed["prediction_type"] = prediction_type
    if zero_terminal_snr is not None:
        changed["rescale_betas_zero_snr"] = zero_terminal_snr
    if zero_terminal_snr:
        changed["timestep_spacing"] = "trailing"
        if changed.get("_class_name") not in KNOW_ZERO_SNR:
            changed["_class_name"] = "EulerDiscreteScheduler"
    return changed


def build_solver(solver: str, scheduler_config: Mapping[str, Any]) -> Any:
    """A fresh diffusers scheduler. It follows the checkpoint's betas, prediction type and zero terminal SNR.

    With zero terminal SNR the steps are spaced "trailing": only then does sampling start at the pure-noise timestep
    (Lin et al. 2023, section 3.3).
    """
    import diffusers

    prediction_type = str(scheduler_config.get("prediction_type", "epsilon"))
    zero_snr = bool(scheduler_config.get("rescale_betas_zero_snr", False))
    check_prediction_type(prediction_type)
    check_zero_snr(zero_snr, prediction_type)
    own = str(scheduler_config.get("_class_name"))
    names = {"dpmpp-2m": "DPMSolverMultistepScheduler", "euler": "EulerDiscreteScheduler", "checkpoint": own}
    scheduler_class = getattr(diffusers, names[solver], None)
    if scheduler_class is None:
        raise ModelError(f"the checkpoint's scheduler {own!r} is not one that diffusers {diffusers.__version__} has")
    overrides: dict[str, Any] = {}
    if zero_snr:
        overrides["timestep_spacing"] = "trailing"
    if solver == "dpmpp-2m":
        overrides |= {"algorithm_type": "dpmsolver++", "solver_order": 2}
    return scheduler_class.from_config(dict(scheduler_config), **overrides)


def denoise(
    unet: Any,
    scheduler: Any,
    noise_BChw: torch.Tensor,
    conditions: Conditions,
    *,
    steps: int,
    guidance: float,
    guidance_rescale: float,
    generators: Sequence[torch.Generator],
    held: Held | None = None,
) -> torch.Tensor:
    """Latents (B, C, h, w) float32 from unit noise; `generators` feed solvers that add noise.

    `held` is what an inpainting keeps of a picture; it may let the loop start later.
    """
    scheduler = copy.deepcopy(scheduler)  # it counts its steps
    scheduler.set_timesteps(steps, device=noise_BChw.device)
    step_arguments = _step_arguments(scheduler, generators)
    latents, first = noise_BChw * scheduler.init_noise_sigma, 0
    if held is not None:
        latents, first = held.begin(scheduler, noise_BChw, steps)
    for number, timestep in enumerate(scheduler.timesteps[first:], start=first):
        noisy = scheduler.scale_model_input(latents, timestep)
        read = noisy if held is None else held.beside(noisy)

        def call(rows: torch.Tensor, text: Mapping[str, torch.Tensor], now: torch.Tensor = timestep) -> torch.Tensor:
            return condition_call(unet, rows, now, text)

        prediction = conditions.predict(call, read, guidance, guidance_rescale)
        if held is not None:
            prediction = held.keep(scheduler, number, noisy, prediction)
        latents = scheduler.step(prediction, timestep, latents, **step_arguments, return_dict=False)[0]
    return latents


def condition_call(
    unet: Any, noisy_BChw: torch.Tensor, timesteps: torch.Tensor, text: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """The U-Net's answer, float32. `text` holds "text" (B, L, E); for SDXL also "pooled" (B, P), "time_ids" (B, 6)."""
    dtype = next(unet.parameters()).dtype  # diffusers' own `dtype` walks through all modules
    extra = {"text_embeds": text["pooled"].to(dtype), "time_ids": text["time_ids"]} if "pooled" in text else None
    prediction = unet(
        noisy_BChw.to(dtype),
        timesteps,
        encoder_hidden_states=text["text"].to(dtype),
        added_cond_kwargs=extra,
        return_dict=False,
    )[0]
    return prediction.float()


def _step_arguments(scheduler: Any, generators: Sequence[torch.Generator]) -> dict[str, Any]:
    if "generator" in inspect.signature(scheduler.step).parameters:
        return {"generator": list(generators)}
    return {}
