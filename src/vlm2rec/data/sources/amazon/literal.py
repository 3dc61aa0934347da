"""Lines that are Python literals, as the Amazon release of 2014 has them; read as data, never run."""

import ast
import re
import warnings
from typing import Any

from vlm2rec.data.sources.json_lines import parse_json

_LONGEST = 1 << 20  # characters; the parser may take 500 times that in memory, a real line has some thousand


_NAMED = re.compile(r"[:\[,(]\s*-?\s*(?:nan|inf)\b")


class _Nothing(ast.NodeTransformer):
    """Puts None where Python writes nan, inf or -inf, which are no literals."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(None) if node.id in ("nan", "inf") else node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        named = isinstance(node.operand, ast.Name) and node.operand.id == "inf"
        return ast.Constant(None) if named and isinstance(node.op, ast.USub) else node


def parse_literal(text: str) -> Any:
    """What a Python literal stands for. Raises ValueError that says in a few words what is wrong with it."""
    if len(text) > _LONGEST:
        raise ValueError("too long for a record")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a backslash too many
            if not _NAMED.search(text):
                return ast.literal_eval(text.strip())
            return ast.literal_eval(_Nothing().visit(ast.parse(text.strip(), mode="eval")))
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
