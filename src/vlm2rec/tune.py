"""Random search: train, look at validation, keep the best. The test users are never looked at."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm2rec.config import config_toml, load_config, parse_override
from vlm2rec.errors import InputError
from vlm2rec.job import run
from vlm2rec.runs import write_json, write_text

TUNABLE = ("sft", "vlm2rec", "sasrec", "gru4rec")
"""Methods whose training reports N@20 on validation."""


def tune(
    path: Path | str,
    space: Sequence[str],
    overrides: Sequence[str],
    trials: int,
    out: Path | str,
    say: Callable[[str], None],
) -> Path:
    """Train `trials` draws from `space` (entries `section.key=a,b,c`) and write the best one's `best.toml`.

    Trial t is a function of the configuration's seed and t, so a search that was stopped goes on, and one with
    more trials begins with the same ones. Trials go to `out`/trial-NNN, all figures to `out`/trials.json.

    Raises:
        InputError: the method reports no N@20 on validation, or `space` is not understood.
    """
    out, choices = Path(out), [_choices(entry) for entry in space]
    base = load_config(path, overrides)
    if base.method.kind not in TUNABLE:
        raise InputError(
            f"{path}: method.kind={base.method.kind} is not chosen by validation N@20, so there is nothing to tune by;"
            f" take {', '.join(TUNABLE)}"
        )
    for key, values in choices:
        for value in values:  # a wrong one is found now, not when it happens to be drawn
            load_config(path, [*overrides, f"{key}={value}"])
    table: list[dict[str, Any]] = []
    for number in range(trials):
        rng = np.random.default_rng([base.seed, number])
        drawn = {key: str(rng.choice(values)) for key, values in choices}
        config = load_config(path, [*overrides, *(f"{key}={value}" for key, value in drawn.items())])
        done = run(config, out / f"trial-{number:03d}", shared=out / ".shared", until="train")
        figures = done.manifest["done"]["train"]["validation"]
        table.append({"trial": number, **drawn, **figures})
        say(f"[{number + 1}/{trials}] N@20 {figures['N@20']:.4f}  " + "  ".join(f"{k}={v}" for k, v in drawn.items()))
        best = max(table, key=lambda row: row["N@20"])
        if best["trial"] == number:
            write_text(out / "best.toml", config_toml(config))
        write_json(out / "trials.json", {"trials": table, "best": best["trial"]})
    return out / "best.toml"


def _choices(entry: str) -> tuple[str, list[str]]:
    key, value = parse_override(entry)
    values = value if isinstance(value, list) else entry.partition("=")[2].split(",")
    return ".".join(key), [str(choice).strip() for choice in values]
