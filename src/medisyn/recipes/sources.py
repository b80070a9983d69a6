"""Where the values of a preset come from: the comments beside them in the file that defines it."""

from __future__ import annotations

import ast
import inspect
import sys
from types import ModuleType
from typing import Any


def sources_of(preset: Any) -> dict[str, str]:
    """Dotted key -> comment, for a preset that is a constant of a recipe's module; {} for one made otherwise.

    A value taken over from another constant (`dataclasses.replace`) has the comment that stands there.
    """
    for module in [module for name, module in sorted(sys.modules.items()) if name.startswith("medisyn.recipes.")]:
        for name in [name for name, value in vars(module).items() if value is preset]:
            text = Text(module)
            if name in text.constants:
                return text.comments(text.constants[name])
    return {}


class Text:
    """The source of one module: its constants, and the comments beside the keywords they are built from."""

    def __init__(self, module: ModuleType) -> None:
        source = inspect.getsource(module)
        self.lines = source.splitlines()
        self.constants = {
            target.id: node.value
            for node in ast.parse(source).body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }

    def comments(self, node: ast.expr) -> dict[str, str]:
        """Of an expression: a constant's name, a field of one (`MEDISYN_V2.train`), or a call with keywords."""
        if isinstance(node, ast.Name):
            return self.comments(self.constants[node.id]) if node.id in self.constants else {}
        if isinstance(node, ast.Attribute):
            prefix = f"{node.attr}."
            inherited = self.comments(node.value).items()
            return {key.removeprefix(prefix): text for key, text in inherited if key.startswith(prefix)}
        if not isinstance(node, ast.Call):
            return {}
        found = self.comments(node.args[0]) if node.args else {}
        for keyword in node.keywords:
            key = str(keyword.arg)
            found = {k: text for k, text in found.items() if k != key and not k.startswith(f"{key}.")}
            found |= {f"{key}.{inner}": text for inner, text in self.comments(keyword.value).items()}
            _, hash_sign, text = self.lines[(keyword.value.end_lineno or 1) - 1].partition("  # ")
            if hash_sign:
                found[key] = text.strip()
        return found
