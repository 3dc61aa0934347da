"""Configurations of jobs that take a second: a tiny random checkpoint, the tiny data set, a handful of steps."""

from pathlib import Path
from typing import Any

from vlm2rec.config import Config, config_toml, parse_config
from vlm2rec.data.dataset import Dataset

TRAINING = {"batch_size": 16, "epochs": 2, "samples": "last", "lr": 1e-3, "checkpoint_every": 1}


def raw_config(dataset: Dataset | Path, checkpoint: Path, kind: str = "vlm2rec", /, **sections: Any) -> dict[str, Any]:
    """A configuration as nested mappings; `sections` are laid over it, key by key."""
    path = dataset.path if isinstance(dataset, Dataset) else dataset
    raw: dict[str, Any] = {
        "preset": "small",
        "data": {"path": str(path)},
        "method": {"kind": kind},
        "backbone": {"path": str(checkpoint), "lora": {"rank": 4}},
        "training": dict(TRAINING),
    }
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values} if isinstance(values, dict) else values
    return raw


def make_config(dataset: Dataset | Path, checkpoint: Path, kind: str = "vlm2rec", /, **sections: Any) -> Config:
    """The same, checked."""
    return parse_config(raw_config(dataset, checkpoint, kind, **sections))


def write_config(path: Path, config: Config) -> Path:
    """The configuration as a TOML file."""
    path.write_text(config_toml(config), encoding="utf-8")
    return path


def without_clock(line: dict[str, Any]) -> dict[str, Any]:
    """A line of `metrics.jsonl` without what depends on the machine."""
    return {name: value for name, value in line.items() if name not in ("samples_per_s", "memory_gib", "seconds")}
