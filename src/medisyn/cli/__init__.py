"""The command line: parse, call one library function, print. A command's module is imported when it is called.

`main` turns every error into one line on stderr and an exit code: 2 for what the user can mend, 1 for a failure,
130 after Ctrl-C. `MEDISYN_DEBUG=1` adds the traceback.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from medisyn import __version__
from medisyn.errors import MedisynError, closest

# Command -> summary, in the order of the work. The module is `medisyn.cli.<command>`; a test holds each summary equal
# to the first line of the command's docstring, so that `medisyn --help` need not import it.
COMMANDS = {
    "curate": "Turn files and a metadata table into a captioned, split corpus with a data card.",
    "corpus": "Look into a corpus: show, verify, and the schema of a source description.",
    "train": "Train a model from a preset; the same command resumes.",
    "presets": "List the training presets, or one preset with its values and their sources.",
    "phantom": "Make phantoms: chest CT and heart ultrasound with exact masks and truth.",
    "convert": "Turn published checkpoints into model folders; the only command that reads pickles.",
    "generate": "Make images, CT volumes or clips from a prompt or a file of prompts.",
    "models": "List the models that are at hand, or describe one.",
    "evaluate": "Measure generated images against a corpus.",
    "sweep": "Make images with every combination of some settings, and rank them by distance to real images.",
    "audit": "Look for copies of training images, and decide what may be released.",
    "utility": "Measure what synthetic images are worth to a classifier.",
    "study": "Analyse what readers answered in a finished study.",
    "report": "Combine every result below a folder into one page.",
    "paper": "Print a paper's tables, the commands that give ours, and both side by side.",
    "doctor": "Say what this machine can run, and what stands in the way.",
}

# Command -> forms of it, chosen by its first word: `medisyn generate inpaint` is `medisyn.cli.forms.inpaint`.
FORMS = {"generate": ("interpolate", "inpaint", "anatomy", "segment")}

# Set before a heavy package is imported, and only where the user has not decided otherwise.
ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",  # torchvision is absent on purpose; transformers says so at every start
    "DIFFUSERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def load_command(name: str) -> Any:
    """The parsed command tree of one name in COMMANDS; imports its module."""
    from medisyn.cli.forms import CommandWithForms

    module = importlib.import_module(f"medisyn.cli.{name}")
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer()
        app.command(name, cls=CommandWithForms if name in FORMS else None)(getattr(module, name))
    app.info.name = name
    app.rich_markup_mode = None
    app._add_completion = False
    command = typer.main.get_command(app)
    if isinstance(command, CommandWithForms):
        command.commands = {form: _load_form(form) for form in FORMS[name]}
    for part in (command, *getattr(command, "commands", {}).values()):
        part.help = keep_examples(part.help or "")
        part.no_args_is_help = False
    return command


def _load_form(name: str) -> Any:
    """The command of one form; its name is the word that chooses it."""
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command(name)(getattr(importlib.import_module(f"medisyn.cli.forms.{name}"), name))
    command = typer.main.get_command(app)
    command.name = name
    return command


def keep_examples(text: str) -> str:
    """Mark each paragraph that opens with "Example" and what follows it, so that help prints its lines unwrapped."""
    head, found, examples = text.partition("\nExample")
    if not found:
        return text
    blocks = ("Example" + examples).split("\n\n")
    return head + "\n" + "\n\n".join("\b\n" + block.removeprefix("\b\n") for block in blocks)


class LazyGroup(TyperGroup):
    """The commands of COMMANDS; help lists them without importing one."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return load_command(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in COMMANDS:
            raise typer.BadParameter(
                f"{args[0]!r} is not a command.{closest(args[0], COMMANDS)} Commands: {', '.join(COMMANDS)}",
                param_hint="COMMAND",
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


app = typer.Typer(cls=LazyGroup, name="medisyn", add_completion=False, rich_markup_mode=None)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medisyn {__version__}")
        raise typer.Exit


@app.callback()
def medisyn(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
) -> None:
    """Medical images from text: curate files, train a model, generate images, evaluate them.

    Example:
        medisyn generate "Frontal (PA) chest X-ray image" -n 4 --out pictures/
    """


def tree() -> Any:
    """The root command; its sub-commands are loaded by `load_command`."""
    root = typer.main.get_command(app)
    root.help = keep_examples(root.help or "")
    return root


def main(args: list[str] | None = None) -> int:
    """Run one command and return its exit code. Nothing but Python's own exit is raised."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    arguments = sys.argv[1:] if args is None else list(args)
    try:
        with tree().make_context("medisyn", arguments or ["--help"]) as context:
            context.command.invoke(context)
        sys.stdout.flush()
        return 0
    except typer.Exit as stop:
        return stop.exit_code
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        return tell(error)


def tell(error: BaseException) -> int:
    """Print one line for an error on stderr, and return the exit code."""
    if isinstance(error, BrokenPipeError):  # the reader of our output, such as `head`, has gone: nothing to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if os.environ.get("MEDISYN_DEBUG") == "1":
        traceback.print_exception(error)
    message, code = explain(error)
    print(f"medisyn: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


def explain(error: BaseException) -> tuple[str, int]:
    """What to tell the user about an error, and the exit code."""
    if isinstance(error, MedisynError):
        return str(error), error.exit_code
    if isinstance(error, TyperException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "medisyn"
        return f"{error.format_message()} (see `{command} --help`)", 2
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "interrupted; finished work is kept, and the same command goes on with the rest", 130
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if is_full or "No space left on device" in str(error):
        return "the disk is full. Free some space or choose an --out on another disk, then repeat the command", 1
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return "out of memory. Lower the batch size or the image size; `medisyn doctor` shows what is free", 1
    # The path in an OSError may hold a patient's name, so only its reason is shown.
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return f"unexpected {type(error).__name__}: {reason}. Set MEDISYN_DEBUG=1 for the traceback", 1
