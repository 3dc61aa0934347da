"""What verbs share: lists in an option, and results as lines."""

from collections.abc import Iterator, Mapping
from typing import Any


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
