"""Write docs/reference/cli.md from the commands themselves: `make docs`. A test fails when the file is out of date."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medisyn.cli import COMMANDS, load_command, tree

TARGET = Path(__file__).parent / "reference" / "cli.md"
WIDTH = 100
HEAD = """# Command line

Every command exits with 0 when it is done, 2 for something you can mend (a wrong option, a file that cannot be read),
1 for a failure, and 130 after Ctrl-C. An error is one line on stderr; `MEDISYN_DEBUG=1` adds the traceback.

This page is generated from the commands with `make docs`.
"""


def commands() -> Iterator[tuple[str, Any, Any]]:
    """Each command line ("medisyn corpus verify"), its command and its context, groups before their members."""
    root = tree().make_context("medisyn", [], resilient_parsing=True, terminal_width=WIDTH)
    for name in COMMANDS:
        command = load_command(name)
        context = command.context_class(command, parent=root, info_name=name)
        yield context.command_path, command, context
        for member in getattr(command, "commands", {}).values():
            context_of_member = member.context_class(member, parent=context, info_name=member.name)
            yield context_of_member.command_path, member, context_of_member


def render() -> str:
    """The page."""
    parts = [HEAD]
    for path, command, context in commands():
        level = "##" if path.count(" ") == 1 else "###"
        parts.append(f"{level} {path}\n\n```text\n{plain(command.get_help(context))}\n```\n")
    return "\n".join(parts)


def plain(text: str) -> str:
    """Without the marks and the spaces at the end of a line that a terminal does not show."""
    return "\n".join(line.rstrip() for line in text.replace("\b", "").splitlines())


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
