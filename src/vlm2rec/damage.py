"""Whether files that were written whole still are, from their headers and sizes: nothing large is read.

A folder is judged by the file in it that lists the others: `manifest.json` of a table of embeddings, `encoder.json` and
`titles.json` of a saved model.
"""

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

TENSORS = "tensors"
"""Key of a saved model's JSON file: weights file beside it -> name of a tensor -> its shape, as `shape_text` has it."""

RESTORE = "put it back from a copy; if it belongs to a run, `vlm2rec run` with the same --out makes it again"
"""What to do about a file that is not whole."""

_BESIDE = {"adapter_model.safetensors": "adapter_config.json"}  # PEFT's weights do not say where they belong
_LONGEST_HEADER = 100_000_000  # what safetensors itself allows


def damage(path: Path) -> str:
    """What is wrong with a file or a folder of this program's making; empty where nothing is.

    Of files, .parquet, .npy, .npz, .safetensors, .json and .html are looked into; any other must hold something.
    """
    try:
        if not path.exists():
            return f"{path.name} is missing"
        if path.is_dir():
            return _of_folder(path)
        if path.stat().st_size == 0:
            return f"{path.name} is empty"
        look = _LOOKS.get(path.suffix)
        reason = look(path) if look else ""
        return f"{path.name} {reason}" if reason else _of_listed(path)
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"


def tensors_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file, from its header alone. Raises ValueError saying what is wrong with it."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_LONGEST_HEADER, path.stat().st_size):
            raise ValueError("is damaged or cut short")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            found = {name: tuple(entry["shape"]) for name, entry in header.items()}
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise ValueError("is no safetensors file, or damaged") from None
    if 8 + length + end != path.stat().st_size:
        raise ValueError("is cut short")
    return found


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as a saved model's JSON file has it: "32 x 8"."""
    return " x ".join(map(str, shape))


def misfit(found: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """How the tensors of a file differ from those wanted, name -> shape; empty where they do not."""
    missing, others = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing:
        said = f"lacks {len(missing):,} of {len(wanted):,} tensors, such as {missing[0]}"
        return said + (f", and has {len(others):,} others, such as {others[0]}" if others else "")
    if others:
        return f"has {len(others):,} tensors too many, such as {others[0]}"
    wrong = sorted(name for name in wanted if found[name] != wanted[name])
    if wrong:
        shapes = f"{wrong[0]} is {found[wrong[0]] or 'a number'}, not {wanted[wrong[0]] or 'a number'}"
        return f"has {len(wrong):,} tensors of another shape: {shapes}"
    return ""


def _of_folder(path: Path) -> str:
    manifest = path / "manifest.json"
    if reason := damage(manifest):
        return f"{path.name}/{reason}"
    views = json.loads(manifest.read_text(encoding="utf-8")).get("views", {})
    for name in ("ids.json", *(f"{view}.npy" for view in views)):
        if reason := damage(path / name):
            return f"{path.name}/{reason}"
    for view, shape in views.items():
        found = np.load(path / f"{view}.npy", mmap_mode="r" if all(shape) else None, allow_pickle=False)
        if list(found.shape) != shape:
            return f"{path.name}/{view}.npy has another shape than its manifest says"
    return ""


def _of_listed(path: Path) -> str:
    """What is wrong with the weights files that a saved model's JSON file lists."""
    if path.suffix != ".json":
        return ""
    content = json.loads(path.read_text(encoding="utf-8"))
    listed = content.get(TENSORS) if isinstance(content, dict) else None
    for name, wanted in (listed or {}).items():
        if found := damage(path.with_name(name)):
            return found
        shapes = {tensor: shape_text(shape) for tensor, shape in tensors_in(path.with_name(name)).items()}
        if found := misfit(shapes, wanted):
            return f"{name} {found}"
        if name in _BESIDE and (found := damage(path.with_name(_BESIDE[name]))):
            return found
    return ""


def _parquet(path: Path) -> str:
    with path.open("rb") as file:
        begins = file.read(4)
        file.seek(-min(8, path.stat().st_size), 2)
        end = file.read(8)
    whole = begins == b"PAR1" == end[4:] and int.from_bytes(end[:4], "little") + 12 <= path.stat().st_size
    return "" if whole else "is no Parquet file, or cut short"


def _npy(path: Path) -> str:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError):
        try:
            array = np.load(path, allow_pickle=False)  # one without numbers cannot be mapped
        except (ValueError, EOFError):
            return "is no .npy file, or cut short"
        return "" if array.size == 0 else "is cut short"
    return "" if isinstance(array, np.ndarray) else "is no .npy file"


def _npz(path: Path) -> str:
    return "" if zipfile.is_zipfile(path) else "is no .npz file, or cut short"


def _safetensors(path: Path) -> str:
    try:
        tensors_in(path)
    except ValueError as error:
        return str(error)
    return ""


def _json(path: Path) -> str:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return "cannot be read as JSON"
    return ""


def _html(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(-min(64, path.stat().st_size), 2)
        return "" if b"</html>" in file.read() else "is cut short"


_LOOKS: dict[str, Callable[[Path], str]] = {
    ".parquet": _parquet,
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".json": _json,
    ".html": _html,
}


def listing(tensors: Mapping[str, Any]) -> dict[str, str]:
    """What a saved model's JSON file says of a weights file: name of a tensor -> its shape."""
    return {name: shape_text(tuple(tensor.shape)) for name, tensor in tensors.items()}
