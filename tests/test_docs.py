"""The documents follow the code: examples parse, links resolve, the reference is the one the commands give."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_cli", ROOT / "docs" / "generate_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = _generator()


def id_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ---- the commands and their reference


def test_the_reference_is_what_the_commands_say_now():
    there = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert there == GENERATOR.render(), "the reference is out of date: run `make docs`"


def test_every_command_has_a_summary_an_example_and_help_for_each_option():
    for path, command, _ in GENERATOR.commands():
        summary = (command.help or "").splitlines()[0]
        assert summary.endswith("."), f"{path}: the summary is a sentence"
        assert len(summary) <= 110, f"{path}: the summary fits a line"
        if not getattr(command, "commands", None):
            assert "Example" in command.help, f"{path}: no example"
            assert f"    {path} " in f"{command.help} ".replace("\n", " \n"), f"{path}: the example does not call it"
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{path}: {parameter.name} has no help"


def test_every_command_has_a_section_in_the_reference():
    headings = re.findall(r"^##+ (.*)$", (ROOT / "docs" / "reference" / "cli.md").read_text(), re.MULTILINE)
    assert headings == [path for path, _, _ in GENERATOR.commands()]


# ---- the examples: every `medisyn ...` line can be parsed, every Python block compiles


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """The fenced code blocks of a page in one of the languages."""
    for language, block in re.findall(
        r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        if language in languages:
            yield block


def command_lines(text: str) -> list[str]:
    """The lines that call medisyn, continuation lines joined, comments and prompts left out."""
    lines = [line.strip().removeprefix("$ ") for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if re.match(r"(\w+=\S+ )*medisyn( |$)", line)]


def parse(line: str) -> None:
    """Match a command line with the options and arguments that exist; an error says what does not."""
    words = shlex.split(re.split(r" (?:\||>|&&) ", line)[0], comments=True)
    words = words[words.index("medisyn") :]
    if len(words) == 1 or words[1].startswith("-"):
        return
    tree = {path: (command, context) for path, command, context in GENERATOR.commands()}
    path = " ".join(words[:3]) if " ".join(words[:3]) in tree else " ".join(words[:2])
    assert path in tree, f"no command {path!r} in: {line}"
    command, context = tree[path]
    rest = words[path.count(" ") + 1 :]
    given, left_over, _ = command.make_parser(context).parse_args(list(rest))
    assert left_over == [], f"{left_over} is too much in: {line}"
    if "--help" not in rest:
        missing = [p.name for p in command.params if p.required and _is_absent(given.get(p.name))]
        assert missing == [], f"{missing} is missing in: {line}"


def _is_absent(value: Any) -> bool:
    """Typer marks an argument that was not given with None, nothing, or a sentinel of its own."""
    return value is None or value == () or "unset" in type(value).__name__.lower()


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_every_command_line_on_a_page_exists(page):
    for block in blocks(page, "bash", "sh", "shell", "console"):
        for line in command_lines(block):
            parse(line)


def test_every_command_line_in_the_help_exists():
    for _, command, _ in GENERATOR.commands():
        for line in command_lines(command.help or ""):
            parse(line)


@pytest.mark.parametrize(
    "line",
    ["medisyn generat x", "medisyn generate x --stepps 3", "medisyn doctor extra", "medisyn corpus verify"],
)
def test_a_command_line_that_does_not_exist_is_found(line):
    with pytest.raises(Exception, match=r"no command|No such option|too much|missing"):
        parse(line)


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_python_blocks_compile_and_call_what_exists(page):
    medisyn = __import__("medisyn")
    for block in blocks(page, "python", "py"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "medisyn":
                assert hasattr(medisyn, node.attr), f"medisyn.{node.attr} does not exist"


def test_every_make_target_on_a_page_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert named <= targets, page.name


# ---- links, the tree, and what must not stand in a file


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_links_inside_the_repository_resolve(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {target}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, made as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_tree_in_the_readme_is_the_tree():
    tree = next(block for block in blocks(ROOT / "README.md", "text") if "src/medisyn" in block)
    named = set(re.findall(r"[a-z_]+(?:\.py|/)", tree))
    parts = {path.name + "/" for path in (ROOT / "src" / "medisyn").iterdir() if path.is_dir() and path.name[0] != "_"}
    assert parts <= named, "a folder of the package has no line in the README"
    below = {path.name + "/" * path.is_dir() for path in (ROOT / "src" / "medisyn").rglob("*")}
    tops = {path.name + "/" for path in ROOT.iterdir()} | {"medisyn/", "build.py"}
    assert named <= below | tops, "the README names a file or folder that is not there"


def tracked_files() -> list[Path]:
    """Files that are or would be in the repository, as text."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


# Spelled in two parts, so that this file does not name them either.
MACHINE_PATH = re.compile(r"(?<![\w.:/>)}*-])/(?:work|root|home|Users|tmp|opt|mnt)" + r"/\w")
REGISTRY_HOST = re.compile(
    "|".join(["py" + r"pi\.org", "python" + "hosted", r"download\.py" + r"torch\.org", "conda" + r"\.org"])
)
VOCABULARIES = {"vocab.json", "merges.txt", "tokenizer.json"}  # word pieces, not sentences


def test_no_file_names_a_path_of_one_machine_or_a_package_registry():
    found = []
    for path in tracked_files():
        try:
            lines = [] if path.name in VOCABULARIES else path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, start=1):
            if MACHINE_PATH.search(line) or REGISTRY_HOST.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}")
    assert found == []


def test_what_must_not_stand_in_a_file_is_recognised():
    assert MACHINE_PATH.search("open('" + "/wo" + "rk/x')")
    assert MACHINE_PATH.search("in /ho" + "me/someone")
    assert not MACHINE_PATH.search("https://example.org/home/page and src/work/x")
    assert REGISTRY_HOST.search("https://py" + "pi.org/simple")


def test_constraints_pin_every_package_and_hold_torch():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert "torch==2.13.0" in lines
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lines)
    assert not {line.partition("==")[0] for line in lines} & {"torchvision", "timm", "medisyn"}


def test_every_declared_dependency_is_pinned():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    declared = project["dependencies"] + optional["dev"] + optional["track"]
    names = {re.split(r"[<>=!~\[; ]", line)[0].lower().replace("_", "-") for line in declared}
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert names <= pinned
