"""Commands that are also called in another form: `medisyn generate inpaint ...` beside `medisyn generate "..."`."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class CommandWithForms(TyperCommand):
    """A command whose first word may name one of its forms in `commands`; else it is the command's own argument."""

    commands: dict[str, Any] = {}  # noqa: RUF012  set once, by `load_command`

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        if args and args[0] in self.commands:
            above = self.context_class(self, info_name=info_name, parent=parent)
            return self.commands[args[0]].make_context(args[0], args[1:], parent=above, **extra)
        return super().make_context(info_name, args, parent=parent, **extra)

    def get_params(self, ctx: Any) -> Any:
        """Its parameters; none when a form asks, which would put our prompt before its own name in its usage line."""
        return super().get_params(ctx) if ctx.command is self else []

    def format_options(self, ctx: Any, formatter: Any) -> None:
        super().format_options(ctx, formatter)
        with formatter.section("Forms, chosen by the first word"):
            formatter.write_dl([(name, form.help.splitlines()[0]) for name, form in self.commands.items()])
