"""Overrides that list several values, as in `--set seed=0,1,2`: every combination is a configuration of its own."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from vlm2rec.config.reading import load_config, parse_override
from vlm2rec.config.tree import Config
from vlm2rec.errors import InputError


def sweep_configs(path: Path | str, overrides: Sequence[str]) -> list[tuple[str, Config]]:
    """A configuration for every combination of listed values, and the name of its folder.

    Raises:
        InputError: the file, a key or any of the values is wrong, or a list is empty or has a value twice.
    """
    fixed, axes = _axes(overrides)
    found = []
    for values in itertools.product(*axes.values()):
        config = load_config(path, [*fixed, *(f"{key}={value}" for key, value in zip(axes, values, strict=True))])
        name = "-".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in zip(axes, values, strict=True)) or "run"
        found.append((name.replace("/", "_"), config))  # a path, say
    return found


def _axes(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Split overrides into those with one value and those that list several."""
    fixed: list[str] = []
    axes: dict[str, list[str]] = {}
    for override in overrides:
        path, value = parse_override(override)
        text = override.partition("=")[2]
        if "," in text and isinstance(value, str) and value == text.strip():  # not a list, nor a string in quotes
            axes[".".join(path)] = [part.strip() for part in text.split(",") if part.strip()]
            listed = axes[".".join(path)]
            if not listed:
                raise InputError(f"--set {override}: lists no value; write it as section.key=a,b,c")
            if len(set(listed)) < len(listed):
                raise InputError(f"--set {override}: lists a value twice; leave one of the two out")
        else:
            fixed.append(override)
    return fixed, axes
