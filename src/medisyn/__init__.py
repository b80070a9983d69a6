"""MediSyn: medical images into a text-guided generator, and the proof of what the generator is worth.

The verbs of the command line are functions: `medisyn.curate`, `medisyn.train`, `medisyn.generate` with its forms
`medisyn.interpolate` and `medisyn.inpaint`, `medisyn.evaluate`, `medisyn.sweep`, `medisyn.audit`, `medisyn.utility`.
Each is imported when it is first used, so that `import medisyn` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medisyn.corpus.curate import curate
    from medisyn.recipes.audit import audit
    from medisyn.recipes.evaluate_folder import evaluate_folder as evaluate
    from medisyn.recipes.generate_images import generate_images as generate
    from medisyn.recipes.inpaint_images import inpaint_images as inpaint
    from medisyn.recipes.interpolate_images import interpolate_images as interpolate
    from medisyn.recipes.sweep import sweep
    from medisyn.recipes.train_preset import train_preset as train
    from medisyn.recipes.utility import utility

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "audit",
    "curate",
    "evaluate",
    "generate",
    "inpaint",
    "interpolate",
    "sweep",
    "train",
    "utility",
]

# Verb -> module and function.
_VERBS = {
    "curate": ("medisyn.corpus.curate", "curate"),
    "train": ("medisyn.recipes.train_preset", "train_preset"),
    "generate": ("medisyn.recipes.generate_images", "generate_images"),
    "interpolate": ("medisyn.recipes.interpolate_images", "interpolate_images"),
    "inpaint": ("medisyn.recipes.inpaint_images", "inpaint_images"),
    "evaluate": ("medisyn.recipes.evaluate_folder", "evaluate_folder"),
    "sweep": ("medisyn.recipes.sweep", "sweep"),
    "audit": ("medisyn.recipes.audit", "audit"),
    "utility": ("medisyn.recipes.utility", "utility"),
}


def __getattr__(name: str) -> Any:
    if name not in _VERBS:
        raise AttributeError(f"module 'medisyn' has no attribute {name!r}")
    module, function = _VERBS[name]
    return getattr(importlib.import_module(module), function)


def __dir__() -> list[str]:
    return sorted(__all__)
