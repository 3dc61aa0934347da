"""What can be found wrong with a verb's arguments before torch is imported. Nothing here writes anything.

The Python API checks the same again: these checks are here to come early.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlm2rec.errors import InputError

if TYPE_CHECKING:  # `--help` needs no configuration
    from vlm2rec.config import Config, Section


def check_config(config: "Config", out: Path) -> None:
    """A run of `config` at `out`: the place, the data set, and what the method reads, unless it has been read already.

    Raises:
        InputError: one of them cannot be used.
    """
    from vlm2rec.runs import Run

    run = Run.existing(out, config)
    check_dataset(config.data.path)
    if run is None or not run.is_done("encode"):
        check_checkpoints(config)
        _check_paths(config.method)


def check_run(folder: Path) -> None:
    """Raise InputError where `folder` is no run directory, or its data set is gone."""
    from vlm2rec.runs import Run

    check_dataset(Run.open(folder).config.data.path)


def check_dataset(path: Path) -> None:
    """Raise InputError where there is no prepared data set at `path`."""
    from vlm2rec.data.dataset import Dataset

    Dataset.load(path)


def check_checkpoints(config: "Config") -> None:
    """Raise InputError where a checkpoint that the configuration names is neither in a folder nor on the hub."""
    from vlm2rec.backbones.hub import locate

    for key, name in config.checkpoints().items():
        locate(name, key)


def check_file(option: str, path: Path, suffixes: Sequence[str]) -> None:
    """Raise InputError where a file cannot be written at `path`, or its suffix is none of `suffixes`."""
    if path.suffix not in suffixes:
        raise InputError(f"{option} {path}: unknown kind of file; give a name that ends in {_either(suffixes)}")
    if path.is_dir():
        raise InputError(f"{option} {path}: is a folder; give the name of a file")
    _check_above(option, path)


def check_folder(option: str, path: Path) -> None:
    """Raise InputError where `path` cannot be a folder, since a file is there or above it."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{option} {path}: is a file; give a folder")
    _check_above(option, path)


def _check_above(option: str, path: Path) -> None:
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise InputError(f"{option} {path}: {above} is a file, not a folder; give another place")


def _check_paths(method: "Section") -> None:
    """Folders and files that a method reads; it says itself what must be in them."""
    for name, value in method:
        if isinstance(value, Path) and not value.exists():
            raise InputError(f"method.{name} = {str(value)!r}: no such file or folder")


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
