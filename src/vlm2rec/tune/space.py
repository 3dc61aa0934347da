"""What is searched: the configuration that stays, and the values that are tried."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlm2rec.config import Config, load_config, parse_override
from vlm2rec.errors import InputError
from vlm2rec.runs import difference

TUNABLE = ("sft", "vlm2rec", "sasrec", "gru4rec")
"""Methods whose training reports N@20 on validation."""

Point = Mapping[str, str]
"""key -> one of the values that are listed for it, as it was written."""


@dataclass(frozen=True)
class Search:
    """A configuration and the lists to draw from.

    Attributes:
        path: the configuration's file.
        overrides: `section.key=value` over it, for all points.
        base: the configuration without a point.
        choices: key -> the values to try.
        values: key -> what each value is in a configuration.
    """

    path: Path
    overrides: tuple[str, ...]
    base: Config
    choices: Mapping[str, tuple[str, ...]]
    values: Mapping[str, tuple[Any, ...]]

    @classmethod
    def read(cls, path: Path, space: Sequence[str], overrides: Sequence[str]) -> "Search":
        """Check the file, and every value that may be drawn.

        Raises:
            InputError: a key or a value is wrong or there twice, or the method is not chosen by validation.
        """
        choices: dict[str, tuple[str, ...]] = {}
        for key, listed in map(_choices, space):
            if key in choices:
                raise InputError(f"--space {key}: is given twice; list all of its values in one")
            choices[key] = listed
        base = load_config(path, overrides)
        _check_tunable(path, base)
        values: dict[str, tuple[Any, ...]] = {}
        for key, listed in choices.items():  # a wrong one is found now, not when it happens to be drawn
            configs = [load_config(path, [*overrides, f"{key}={value}"]) for value in listed]
            for config in configs:
                _check_tunable(path, config)
            for number, config in enumerate(configs):
                if config in configs[:number]:
                    twice = listed[configs.index(config)], listed[number]
                    raise InputError(f"--space {key}: {twice[0]} and {twice[1]} are the same value; leave one out")
            values[key] = tuple(_at(config, key) for config in configs)
        return cls(path, tuple(overrides), base, choices, values)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values there are of each key."""
        return tuple(len(listed) for listed in self.choices.values())

    @property
    def size(self) -> int:
        """How many points there are."""
        return math.prod(self.sizes)

    def point(self, index: int) -> dict[str, str]:
        """The point of a number in 0 … size - 1."""
        places = np.unravel_index(index, self.sizes)
        return {key: listed[place] for (key, listed), place in zip(self.choices.items(), places, strict=True)}

    def index(self, point: Point) -> int:
        """The number of a point."""
        places = [listed.index(point[key]) for key, listed in self.choices.items()]
        return int(np.ravel_multi_index(places, self.sizes))

    def config(self, point: Point) -> Config:
        """The configuration at a point. Raises InputError where values that are right alone do not go together."""
        return load_config(self.path, [*self.overrides, *(f"{key}={value}" for key, value in point.items())])

    def point_of(self, config: Config, where: Path) -> dict[str, str]:
        """The point at which a configuration lies. Raises InputError, naming `where`, if it lies at none."""
        point = {}
        for key, listed in self.choices.items():
            value = _at(config, key)
            if value not in self.values[key]:
                raise InputError(_of_another(where, f"{key} is {value!r} there"))
            point[key] = listed[self.values[key].index(value)]
        if different := difference(config.model_dump(mode="json"), self.config(point).model_dump(mode="json")):
            raise InputError(_of_another(where, different))
        return point


def _of_another(where: Path, different: str) -> str:
    return f"{where}: is a trial of another search ({different}); give another --out, or remove the folder"


def _check_tunable(path: Path, config: Config) -> None:
    if config.method.kind not in TUNABLE:
        raise InputError(
            f"{path}: method.kind={config.method.kind} is not chosen by validation N@20, so there is nothing to tune"
            f" by; take {', '.join(TUNABLE)}"
        )


def _choices(entry: str) -> tuple[str, tuple[str, ...]]:
    key, value = parse_override(entry, option="--space")
    values = value if isinstance(value, list) else entry.partition("=")[2].split(",")
    return ".".join(key), tuple(str(choice).strip() for choice in values)


def _at(config: Config, key: str) -> Any:
    """The value at a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
