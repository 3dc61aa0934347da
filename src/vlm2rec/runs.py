"""A run directory: one method, one seed, everything that came of it.

```
config.toml    what was asked for            manifest.json  versions, data fingerprint, stages done
metrics.jsonl  one JSON object a line        checkpoints/   to continue from
model/         the trained encoder           items/         EmbeddingTable of the catalogue
users.parquet  ranks of every evaluated user results.json   the figures
baselines.parquet  the same ranks of popularity, item-kNN and chance
```

Files are written beside their place and renamed into it, and a stage is listed in the manifest only when all of
its files stand. So a run killed at any moment can be continued: stages that are listed are skipped.
"""

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vlm2rec.config import Config, config_toml, parse_config
from vlm2rec.errors import InputError
from vlm2rec.process import rank

STAGES = ("reference", "train", "encode", "evaluate", "seqrec", "report")
"""What a run does, in this order; `vlm2rec.job` has the work of each."""
BASELINES = "baselines.parquet"
"""Ranks of popularity, item-kNN and chance, rows as in `users.parquet`; runs from before they were kept have none."""

_PACKAGES = ("vlm2rec", "torch", "transformers", "peft", "accelerate", "numpy", "polars")


class Run:
    """An open run directory. `Run.create` makes or continues one, `Run.open` reads one."""

    def __init__(self, path: Path, config: Config, manifest: dict[str, Any]) -> None:
        self.path = path
        self.config = config
        self.manifest = manifest

    @classmethod
    def create(cls, path: Path | str, config: Config) -> "Run":
        """Make the directory, or open it again if it was made for this very configuration.

        Raises:
            InputError: `path` holds something else, or a run of another configuration.
        """
        path = Path(path)
        run = cls.existing(path, config)
        if run is not None:
            return run
        path.mkdir(parents=True, exist_ok=True)
        manifest = {"schema": 1, "seed": config.seed, "versions": _versions(), "done": {}}
        run = cls(path, config, manifest)
        write_text(path / "config.toml", config_toml(config))
        run.record()
        return run

    @classmethod
    def existing(cls, path: Path, config: Config) -> "Run | None":
        """The run that `create` would go on with, or None where it would make a new one. Writes nothing.

        Raises:
            InputError: `path` holds something else, or a run of another configuration.
        """
        if (path / "manifest.json").exists():
            run = cls.open(path)
            different = difference(run.config.model_dump(mode="json"), config.model_dump(mode="json"))
            if different:
                raise InputError(
                    f"{path}: is a run of another config ({different}); give another --out, or remove the folder"
                )
            return run
        if path.exists() and not (path.is_dir() and all(_of_a_start(file.name) for file in path.iterdir())):
            raise InputError(f"{path}: exists and is no run directory; give another --out")
        return None

    @classmethod
    def open(cls, path: Path | str) -> "Run":
        """Read an existing run directory. Raises InputError if it is none."""
        path = Path(path)
        manifest = read_json(path / "manifest.json", "run directory")
        if not {"config", "done"} <= manifest.keys():
            raise InputError(f"{path}: manifest.json is not that of a run; give a folder that `vlm2rec run` wrote")
        config = parse_config(_renamed(manifest["config"]), origin=str(path / "manifest.json"))
        return cls(path, config, manifest)

    @property
    def quick(self) -> bool:
        """Whether it was made with --quick: a look, not a result."""
        return bool(self.manifest.get("quick"))

    def record(self, **entries: Any) -> None:
        """Put entries into the manifest and write it; of several processes that share the run, the first writes."""
        self.manifest.update(entries)
        self.manifest["config"] = self.config.model_dump(mode="json", exclude_none=True)
        if rank() == 0:
            write_json(self.path / "manifest.json", self.manifest)

    def is_done(self, stage: str) -> bool:
        """Whether a stage was finished."""
        return stage in self.manifest["done"]

    def finish(self, stage: str, **info: Any) -> None:
        """List a stage as finished, with whatever is worth keeping of it (seconds, counts)."""
        self.record(done={**self.manifest["done"], stage: info})

    def stage(self, name: str, work: Callable[[], Mapping[str, Any] | None]) -> None:
        """Run `work` unless the stage is done; what it returns goes into the manifest."""
        if not self.is_done(name):
            self.finish(name, **(work() or {}))

    def results(self) -> dict[str, Any]:
        """`results.json`. Raises InputError where the run has none yet."""
        return read_json(self.path / "results.json", "finished run")


def find_runs(paths: Sequence[Path | str]) -> list[Path]:
    """Run directories among `paths` and in the folders below them. Raises InputError where there are none."""
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path}: no such folder; give folders that `vlm2rec run` wrote")
        below = [path] if (path / "manifest.json").exists() else sorted(p.parent for p in path.glob("*/manifest.json"))
        if not below:
            raise InputError(f"{path}: no run directory here or below; give folders that `vlm2rec run` wrote")
        found += below
    return found


def read_metrics(path: Path | str, kind: str) -> list[dict[str, Any]]:
    """All lines of one kind ('train', 'validation') of a `metrics.jsonl`; none where there is no file."""
    return [line for line in metrics_lines(path) if line["kind"] == kind]


def metrics_lines(path: Path | str) -> Iterator[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, one that a kill cut short left out."""
    path = Path(path)
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:  # the line a kill cut short
                continue


def write_text(path: Path | str, text: str) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON whole or not at all. NaN and infinity are refused: they are never a result."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path | str, what: str) -> dict[str, Any]:
    """Read a JSON object. Raises InputError saying that `path` is no `what`."""
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing = f"{path.name} is missing" if path.parent.is_dir() else "no such folder"
        raise InputError(f"{path.parent}: no {what} ({missing})") from None
    except (OSError, ValueError):
        raise InputError(f"{path}: cannot be read as JSON, so there is no {what}; put it back from a copy") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object, so there is no {what}; put it back from a copy")
    return value


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary file path beside `path`; renamed onto it when the block ends well, removed when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path | str) -> Iterator[Path]:
    """A temporary folder beside `path`; takes its place when the block ends well, removed when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    old = temporary.with_name(temporary.name + ".old")
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():  # a folder cannot be replaced in one step, and one half removed must not be left in place
            path.replace(old)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on `path` (made if need be) that one process at a time can have; a process that dies lets it go."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """As `locked`, without waiting: whether the lock was free, in which case it is held until the block ends."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def difference(old: Any, new: Any, where: str = "") -> str:
    """The first place at which two configurations differ, for a message; empty if they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            found = difference(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
            if found:
                return found
        return ""
    return "" if old == new else f"{where} is {old!r} there, {new!r} here"


def _renamed(config: dict[str, Any]) -> dict[str, Any]:
    """A manifest's configuration in today's words: `prompt.combine` was `prompt.sum`, and said raw or unit."""
    prompt = dict(config.get("prompt", {}))
    if "sum" in prompt:
        prompt["combine"] = {"raw": "sum", "unit": "unit_sum"}.get(prompt.pop("sum"))
    return {**config, **({"prompt": prompt} if prompt else {})}


def _of_a_start(name: str) -> bool:
    """Whether a file is one that making a run directory leaves when it is killed."""
    return name == "config.toml" or name.startswith((".config.toml.", ".manifest.json."))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
