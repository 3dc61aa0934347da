"""Lines that are Python literals, as the Amazon release of 2014 has them; read as data, never run."""

import ast
import warnings
from typing import Any

from vlm2rec.data.sources.json_lines import parse_json

_LONGEST = 1 << 20  # characters; the parser may take 500 times that in memory, a real line has some thousand


def parse_literal(text: str) -> Any:
    """What a Python literal stands for. Raises ValueError that says in a few words what is wrong with it."""
    if len(text) > _LONGEST:
        raise ValueError("too long for a record")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a backslash too many
            return ast.literal_eval(text.strip())
    except (RecursionError, MemoryError):  # the second is how the parser says that its stack is full
        raise ValueError("nested too deeply") from None
    except (ValueError, SyntaxError, TypeError):
        raise ValueError("no Python literal") from None


def parse_either(text: str) -> Any:
    """A line of JSON or, failing that, a Python literal: both are found under the same name."""
    if not text.startswith(("{'", "{u'")):
        try:
            return parse_json(text)
        except ValueError:
            if not text.strip():
                raise
    try:
        return parse_literal(text)
    except ValueError as error:
        reason = str(error)
    raise ValueError("neither JSON nor a Python literal" if reason.startswith("no ") else reason)
