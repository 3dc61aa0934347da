"""What verbs share: lists in an option, results as lines, and what is said of arguments that make no sense."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import typer
from typer.exceptions import TyperException


def listed(text: str) -> list[str]:
    """The parts of an option that takes several, with commas between."""
    return [part.strip() for part in text.split(",") if part.strip()]


def lines(values: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """A nested mapping as indented lines."""
    for name, value in values.items():
        label = f"{indent}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield label
            yield from lines(value, indent + "  ")
        elif isinstance(value, bool):
            yield f"{label:<39} {'yes' if value else 'no'}"
        elif isinstance(value, float):
            yield f"{label:<39} {value:,.4g}"
        else:
            yield f"{label:<39} {value:,}" if isinstance(value, int) else f"{label:<39} {value}"


def help_without_verb(context: typer.Context) -> None:
    """Callback of a group of verbs: where none is given, print the help and end with status 2."""
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


def usage(error: TyperException) -> str:
    """One line for arguments that cannot be understood: of which verb, what is wrong, and where to read on."""
    context: typer.Context | None = getattr(error, "ctx", None)
    command = context.command_path if context else "vlm2rec"
    message = " ".join(error.format_message().split()).rstrip(".")
    message = message.replace("Value error, ", "").replace("Input should", "should")  # pydantic's words, not ours
    possible: list[str] | None = getattr(error, "possibilities", None)
    if possible:
        message = f"{error.message.rstrip('.')}. Did you mean {', '.join(sorted(possible))}?"
    verb = command.removeprefix("vlm2rec").strip()
    said = f"{message[0].lower()}{message[1:]}" if message else "cannot be understood"
    return f"{verb}{': ' if verb else ''}{said}{' ' if said.endswith('?') else '; '}`{command} --help` says more"
