"""What this machine computes on, and in which numbers it is fast."""

from __future__ import annotations

from medisyn.errors import ConfigError, closest


def choose_device(name: str) -> str:
    """The device of that name, where "auto" is the GPU if there is one; ConfigError for one that is not here."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        hint = closest(name, ("auto", "cpu", "cuda"))
        raise ConfigError(f"device {name!r} is unknown, allowed: auto, cpu, cuda, cuda:N.{hint}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name!r}: torch sees {torch.cuda.device_count()} GPUs here; `medisyn doctor` shows them. "
            f"Take --device cpu, or auto"
        )
    return name


def fast_dtype(device: str) -> str:
    """`bfloat16` where the device computes in it, else `float32`. `device`: "cpu", "cuda" or "cuda:N".

    A processor without instructions for bfloat16 (AVX-512 BF16 or AMX; most laptops) does it by conversions, one number
    at a time: 30 to 130 times slower than float32 where it was measured (benchmarks/README.md).
    """
    return "bfloat16" if device != "cpu" or multiplies_bfloat16() else "float32"


def multiplies_bfloat16() -> bool:
    """Whether this machine's processor multiplies bfloat16 itself."""
    import torch

    abilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch cannot tell
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))
