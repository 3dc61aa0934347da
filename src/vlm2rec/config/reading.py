"""From TOML to a checked configuration and back; what is wrong is said in one line."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from vlm2rec.config.methods import METHODS
from vlm2rec.config.sections import SPLITS, Section
from vlm2rec.config.tree import Config
from vlm2rec.errors import InputError

_UNIONS: dict[tuple[str, ...], Mapping[str, type[Section]]] = {("method",): METHODS, ("data", "split"): SPLITS}
"""Sections of several kinds, by where they stand in the tree."""


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, lay `section.key=value` overrides over it, and check the whole.

    Raises:
        InputError: the file is missing or no TOML, or a key or a value is wrong.
    """
    return parse_config(read_toml(path, overrides), origin=str(path))


def read_toml(path: Path | str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A TOML file with `section.key=value` overrides laid over it, not checked any further.

    Raises:
        InputError: the file is missing or no TOML.
    """
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file; `vlm2rec init` writes a commented one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error.__class__.__name__}); give a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None
    override_all(raw, overrides)
    return raw


def override_all(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Lay `section.key=value` overrides over nested mappings, in place."""
    for override in overrides:
        _set(raw, override)


def parse_config(raw: Mapping[str, Any], origin: str = "config") -> Config:
    """Check a nested mapping. Raises InputError, naming `origin` and the offending key."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        # A misspelt key first: the one that it was to be may be missing for it.
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        raise InputError(f"{origin}: {_explain(first)}") from None


def config_toml(config: Config) -> str:
    """The configuration as TOML, every value spelled out; reading it back gives an equal Config."""
    import tomli_w

    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def parse_override(override: str, option: str = "--set") -> tuple[list[str], Any]:
    """Split `a.b=value` into its path and its value; the value is read as TOML, else as a bare string."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise InputError(f"{option} {override}: write it as section.key=value")
    return key.strip().split("."), _value(text.strip())


def _value(text: str) -> Any:
    if text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _set(raw: dict[str, Any], override: str) -> None:
    path, value = parse_override(override)
    table = raw
    for depth, key in enumerate(path[:-1]):
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise InputError(f"--set {override}: {'.'.join(path[: depth + 1])} is a value, not a section")
    table[path[-1]] = value


def _explain(error: ErrorDetails) -> str:
    """One line for the first thing pydantic found."""
    path = [str(part) for part in error["loc"]]
    union = next((place for place in _UNIONS if tuple(path[: len(place)]) == place), ())
    kind = ""
    if union and len(path) > len(union):
        kind = path.pop(len(union))  # which pydantic puts between the section and the key
    where = ".".join(path)
    if error["type"] == "extra_forbidden":
        section = _section(path[:-1], kind)
        near = difflib.get_close_matches(path[-1], section, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*path[:-1], near[0]])}?" if near else f"known here: {', '.join(section)}"
        return f"unknown key {where}; {hint}"
    if error["type"] == "missing":
        return f"{where} is missing; give it in the file or with --set {where}=…"
    if error["type"] == "union_tag_not_found" and isinstance(error["input"], Mapping):
        return f"{where}.kind is missing; give one of {', '.join(_UNIONS[union])}"
    if error["type"] == "union_tag_invalid":
        known = _UNIONS[union]
        near = difflib.get_close_matches(str(error["input"].get("kind")), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        return f"unknown {where}.kind {error['input'].get('kind')!r}; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where} = {error['input']!r}: {message}" if where else message


def _section(path: Sequence[str], kind: str) -> list[str]:
    """The keys that are known at a path of the tree; `kind` is that of a section of several kinds."""
    section: Any = Config
    for depth, part in enumerate(path, start=1):
        union = _UNIONS.get(tuple(path[:depth]))
        field = section.model_fields.get(part)
        section = union[kind] if union and kind else field and field.annotation
        if not (isinstance(section, type) and issubclass(section, Section)):
            return ["kind"]
    return list(section.model_fields)
