"""Who may import whom. The rules are the table; they hold for imports inside functions too."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "medisyn"

GROUND = {"types", "errors", "geometry", "intensity", "terms", "seeding", "parallel", "runs", "ffv1", "machine"}
PARTS = {"corpus", "diffusion", "nn", "families", "training", "generation", "evaluation", "recipes", "cli", "phantoms"}
EVERYTHING = GROUND | PARTS

# Part -> what it may import besides itself. "families.base" is one module; "families" the whole folder.
MAY_IMPORT = {
    **dict.fromkeys(GROUND, GROUND),
    "corpus": GROUND,
    "diffusion": GROUND,
    "nn": GROUND,
    "phantoms": GROUND,
    "families": GROUND | {"diffusion", "nn"},
    "training": GROUND | {"families.base"},
    "generation": GROUND | {"families.base"},
    "evaluation": GROUND | {"nn"},
    "recipes": EVERYTHING - {"cli"},
    "cli": EVERYTHING - {"cli"},
    "__init__": EVERYTHING - {"cli"},
    "__main__": {"cli"},
}

# Part -> packages that it never imports. What stands under "everywhere" breaks beside a CPU build of torch.
NEVER = {
    "everywhere": {"torchvision", "timm", "torch_fidelity", "open_clip", "cleanfid", "torchxrayvision", "lpips"},
    "corpus": {"torch", "diffusers", "transformers", "accelerate", "peft", "safetensors"},
    "evaluation": {"diffusers", "accelerate", "peft"},
}

# Distributions behind an extra of pyproject.toml: imported only inside the function that needs them.
OPTIONAL = {"tensorboard", "h5py"}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """`corpus.readers` for src/medisyn/corpus/readers/__init__.py, `types` for types.py, `__init__` for the root."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, and the line; `from medisyn import runs` counts as `medisyn.runs`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports name the whole module, never `from .`"
            yield from ((f"{node.module}.{name.name}", node.lineno) for name in node.names)


def is_allowed(importer: str, imported: str) -> bool:
    """Both are dotted names below medisyn."""
    part, _, rest = importer.partition(".")
    if part == "families" and rest:
        family = rest.split(".")[0]
        if imported.startswith("families.") and imported.split(".")[1] not in {family, "base"}:
            return False
    if imported.split(".")[0] == part:
        return True
    return any(imported == allowed or imported.startswith(f"{allowed}.") for allowed in MAY_IMPORT[part])


def test_every_part_stands_in_the_table():
    there = {module_of(path).split(".")[0] for path in sources()}
    assert there <= set(MAY_IMPORT), "a new part needs its row in MAY_IMPORT"


def test_the_rules_hold():
    broken = []
    for path in sources():
        for imported, line in imports(path):
            name = imported.removeprefix("medisyn.")
            if name != imported and name.split(".")[0] in EVERYTHING and not is_allowed(module_of(path), name):
                broken.append(f"{path.relative_to(ROOT)}:{line} imports {imported}")
    assert broken == []


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("corpus.curate", "corpus.shards", True),
        ("corpus.curate", "diffusion.schedules", False),
        ("types", "errors", True),
        ("types", "corpus.curate", False),
        ("families.stable_diffusion.model", "families.base", True),
        ("families.stable_diffusion.model", "families.higen.model", False),
        ("training.loop", "families.base", True),
        ("training.loop", "families.base.Family", True),
        ("training.loop", "families.stable_diffusion", False),
        ("generation.generate", "evaluation.frechet", False),
        ("recipes.models", "families.stable_diffusion", True),
        ("recipes.models", "cli.generate", False),
        ("cli.generate", "recipes.models", True),
    ],
)
def test_the_rules_are_read_as_meant(importer, imported, allowed):
    assert is_allowed(importer, imported) is allowed


def test_no_part_imports_what_it_must_not():
    broken = []
    for path in sources():
        never = NEVER["everywhere"] | NEVER.get(module_of(path).split(".")[0], set())
        broken += [
            f"{path.relative_to(ROOT)}:{line} {name}" for name, line in imports(path) if name.split(".")[0] in never
        ]
    assert broken == []


def test_every_imported_package_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {_plain(re.split(r"[<>=!~\[; ]", line)[0]) for line in project["dependencies"]} | OPTIONAL
    owners = importlib.metadata.packages_distributions()
    missing = set()
    for path in sources():
        for name, _ in imports(path):
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names | {"medisyn"}:
                distributions = {_plain(owner) for owner in owners.get(top, [top])}
                if not distributions & declared:
                    missing.add(f"{path.relative_to(ROOT)}: {top}")
    assert missing == set()


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def test_torchvision_is_not_installed():
    # Beside a CPU build of torch it fails at import and takes transformers and diffusers down with it.
    assert importlib.util.find_spec("torchvision") is None, "run: pip uninstall torchvision"


# ---- what an import costs: checked by what it loads, never by the clock

HEAVY = (
    "torch",
    "numpy",
    "pandas",
    "scipy",
    "sklearn",
    "skimage",
    "matplotlib",
    "diffusers",
    "transformers",
    "pydicom",
)


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh interpreter holds after running `code`."""
    program = f"{code}\nimport sys\nprint('modules:', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.rsplit("modules:", 1)[1].split())


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_by("import medisyn").isdisjoint(HEAVY)


def test_help_loads_nothing_heavy_and_no_command():
    loaded = loaded_by("from medisyn.cli import main; assert main(['--help']) == 0")
    assert loaded.isdisjoint(HEAVY)
    assert {name for name in loaded if name.startswith("medisyn.cli.")} == set()


def test_the_modules_of_the_commands_load_nothing_heavy():
    loaded = loaded_by("from medisyn.cli import COMMANDS, load_command\nfor name in COMMANDS: load_command(name)")
    assert loaded.isdisjoint(HEAVY)


def test_the_corpus_loads_no_torch():
    modules = [f"medisyn.{module_of(path)}" for path in sources() if module_of(path).startswith("corpus")]
    assert "torch" not in loaded_by("".join(f"import {module}\n" for module in modules))


# ---- the package as a whole


def test_the_verbs_of_the_command_line_are_functions():
    import medisyn

    verbs = [name for name in dir(medisyn) if not name.startswith("_")]
    expected = ["audit", "curate", "evaluate", "generate", "inpaint", "interpolate", "sweep", "train", "utility"]
    assert verbs == expected
    assert all(callable(getattr(medisyn, verb)) for verb in verbs)
    with pytest.raises(AttributeError, match="module 'medisyn' has no attribute 'genarate'"):
        _ = medisyn.genarate


def test_every_data_file_is_installed_with_the_package():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    installed = {path for pattern in tools["package-data"]["medisyn"] for path in PACKAGE.glob(pattern)}
    data = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
    assert {str(path.relative_to(PACKAGE)) for path in data - installed} == set()
