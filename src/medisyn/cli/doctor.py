"""`medisyn doctor`: what this machine can run, and what stands in the way."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import typer

from medisyn.cli.options import Json
from medisyn.machine import choose_device, fast_dtype

GB = 1e9

# What the weights of a run need. Training in full keeps fp32 weights, gradients and two AdamW moments (16 bytes per
# trained parameter, 4 more with a moving average), LoRA the frozen fp32 weights; activations come on top, so a run
# wants about 1.3 times this. Parameters: SD 2 U-Net 0.87e9, whole model 1.29e9; SDXL U-Net 2.57e9, whole model 3.47e9.
NEEDS_GB = {
    "generate and train starter-image": 1.5,
    "LoRA on Stable Diffusion 2": 4 * 1.29,
    "LoRA on SDXL (medisyn-v2-lora)": 4 * 3.47,
    "full fine-tune of Stable Diffusion 2 (sd-finetune)": 20 * 0.87,
    "full fine-tune of SDXL (medisyn-v2)": 16 * 2.57,
}
GENERATES_GB = {  # in bfloat16; twice as much in float32
    "generate with Stable Diffusion 1 or 2": 2 * 1.29,
    "generate with SDXL": 2 * 3.47,
}
HEADROOM = 1.3

# Transfer syntaxes that medical archives use (DICOM PS3.5 annex A); what a plain installation cannot decode is named.
CODECS = {
    "JPEG baseline": "1.2.840.10008.1.2.4.50",
    "JPEG 12-bit": "1.2.840.10008.1.2.4.51",
    "JPEG lossless": "1.2.840.10008.1.2.4.70",
    "JPEG-LS": "1.2.840.10008.1.2.4.80",
    "JPEG 2000": "1.2.840.10008.1.2.4.90",
    "RLE": "1.2.840.10008.1.2.5",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report. `state` "problem" stops work, "note" limits it; `advice` says what to do about it."""

    topic: str
    value: str
    state: Literal["ok", "note", "problem"] = "ok"
    advice: str = ""


def doctor(
    as_json: Json = False,
) -> None:
    """Say what this machine can run, and what stands in the way.

    The exit code is 1 when something found here stops the package from working.

    Example:
        medisyn doctor
        medisyn doctor --json
    """
    findings = examine()
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            typer.echo(line(finding))
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


def line(finding: Finding) -> str:
    """A finding as one line of text."""
    mark = {"ok": " ", "note": "-", "problem": "!"}[finding.state]
    return f"{mark} {finding.topic:<50} {finding.value}" + (f": {finding.advice}" if finding.advice else "")


def examine() -> list[Finding]:
    """Everything there is to say about this machine, most basic first."""
    memory = memory_gb()
    return [*machine(memory), *torch_build(), torchvision_trap(), *starter_models(), *codecs(), *what_fits(memory)]


def memory_gb() -> float:
    """Memory of this machine in GB, or of the container that it is, where that is less."""
    import psutil

    limits = [float(psutil.virtual_memory().total)]
    cgroup = Path("/sys/fs/cgroup/memory.max")
    if cgroup.is_file() and cgroup.read_text().strip().isdigit():
        limits.append(float(cgroup.read_text()))
    return min(limits) / GB


def machine(memory: float) -> list[Finding]:
    """Cores, memory and free disk."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = shutil.disk_usage(Path.cwd()).free / GB
    tight = free < 5
    return [
        Finding("cores", str(cores)),
        Finding("memory", f"{memory:.1f} GB"),
        Finding(
            "free disk, this folder",
            f"{free:.1f} GB",
            "note" if tight else "ok",
            "checkpoints of a large model take 5 GB and more each" if tight else "",
        ),
    ]


def torch_build() -> list[Finding]:
    """The torch that is installed and the accelerators it sees."""
    import torch

    found = [Finding("torch", f"{torch.__version__}, CPU kernels {torch.backends.cpu.get_cpu_capability()}")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(Finding(f"GPU {index}", f"{properties.name}, {properties.total_memory / GB:.0f} GB"))
    if torch.cuda.device_count() == 0:
        found.append(Finding("GPU", "none", "note", "starter models run well on the CPU; larger ones are slow there"))
    fast = fast_dtype(choose_device("auto"))
    note = "" if fast == "bfloat16" else "this processor is many times slower in bfloat16; `auto` avoids it"
    return [*found, Finding("trains and generates in", fast, "note" if note else "ok", note)]


def torchvision_trap() -> Finding:
    """Whether a torchvision is installed that does not fit torch: transformers then fails at import.

    The package never needs torchvision, so absent is right and present is only safe when it imports.
    """
    if importlib.util.find_spec("torchvision") is None:
        return Finding("torchvision", "not installed, as it should be")
    version = importlib.metadata.version("torchvision")
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # whatever it raises is the finding
        advice = "it breaks transformers and diffusers; run `pip uninstall torchvision`"
        return Finding("torchvision", f"{version} does not import ({type(error).__name__})", "problem", advice)
    return Finding("torchvision", f"{version}, imports", "note", "not needed here; keep it in step with torch")


def starter_models() -> list[Finding]:
    """The models that came with the package."""
    from medisyn.recipes.shipped_models import shipped_models

    return [starter_model(model.name, model.present, model.megabytes) for model in shipped_models()]


def starter_model(name: str, present: bool, megabytes: float) -> Finding:
    """Whether one shipped model has its weights."""
    if present:
        return Finding(f"model {name}", f"{megabytes:.0f} MB")
    return Finding(f"model {name}", "its weights are missing", "note", "install the package again, from a whole copy")


def codecs() -> list[Finding]:
    """DICOM compressions that can be read here, and features that wait for an optional package."""
    from pydicom.pixels import get_decoder

    plugins = {name: get_decoder(syntax).available_plugins for name, syntax in CODECS.items()}
    readable = [name for name in CODECS if can_decode(name, plugins[name])]
    found = [Finding("DICOM compressions", ", ".join(readable))]
    missing = [name for name in CODECS if name not in readable]
    if missing:
        advice = "pip install -c constraints.txt 'medisyn[jpeg12]' (GPL-3)"
        found.append(Finding("DICOM compressions not readable", ", ".join(missing), "note", advice))
    if importlib.util.find_spec("tensorboard") is None:
        found.append(Finding("tensorboard", "not installed", "note", "pip install -c constraints.txt 'medisyn[track]'"))
    return found


def can_decode(name: str, plugins: Sequence[str]) -> bool:
    """Whether one of pydicom's plugins reads this compression; Pillow offers 12-bit JPEG but reads 8 bits of it."""
    return bool(set(plugins) - ({"pillow"} if name == "JPEG 12-bit" else set()))


def what_fits(cpu_gb: float) -> list[Finding]:
    """Which work fits the largest GPU, or else the machine's memory."""
    import torch

    sizes = [torch.cuda.get_device_properties(i).total_memory / GB for i in range(torch.cuda.device_count())]
    room, where = (max(sizes), "GPU") if sizes else (cpu_gb, "memory")
    fast = fast_dtype(choose_device("auto"))
    generating = {
        f"{work} ({fast})": gigabytes * (1 if fast == "bfloat16" else 2) for work, gigabytes in GENERATES_GB.items()
    }
    return [fit(work, HEADROOM * gigabytes, room, where) for work, gigabytes in {**NEEDS_GB, **generating}.items()]


def fit(work: str, needs_gb: float, room_gb: float, where: str) -> Finding:
    """Whether work that needs so much fits."""
    if needs_gb <= room_gb:
        return Finding(work, f"fits: {needs_gb:.0f} of {room_gb:.0f} GB {where}")
    return Finding(work, f"does not fit: {needs_gb:.0f} GB needed, {room_gb:.0f} GB {where}", "note")
