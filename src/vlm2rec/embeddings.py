"""Vectors with names: what encoding leaves behind and every task starts from. NumPy only.

manifest.json   ids, shapes, and whatever the maker adds
ids.json        one id a row
VIEW.npy        (n, D) float32, one file a view (fused, text, image)
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm2rec.damage import RESTORE, damage
from vlm2rec.errors import InputError

Vectors = NDArray[np.float32]
FORMAT = 1
_NUMBERS_AT_ONCE = 1 << 22


class EmbeddingTable:
    """Ids `(n,)` and, under each view's name, their vectors `(n, D)` float32. Raw vectors, not normalised.

    Attributes:
        ids: `(n,)` of text.
        views: vectors by view; memory-mapped after `load`.
        manifest: what the maker wanted to keep beside them (checkpoint, data fingerprint, …).
    """

    def __init__(
        self,
        ids: Sequence[str] | NDArray[np.str_],
        views: Mapping[str, NDArray[Any]],
        manifest: Mapping[str, Any] | None = None,
    ) -> None:
        """Check the parts and hold them; vectors of another float type are converted.

        Raises:
            ValueError: no view, a view of the wrong shape or with an odd name, an id there twice.
        """
        self.ids: NDArray[np.str_] = np.asarray(ids, dtype=np.str_)
        self.views: dict[str, Vectors] = {}
        self.manifest: dict[str, Any] = dict(manifest or {})
        if not views:
            raise ValueError("a table needs at least one view")
        for name, vectors in views.items():
            if re.fullmatch(r"\w+", name) is None:
                raise ValueError(f"view {name!r}: a name is letters, digits and _, since it becomes a file name")
            if vectors.ndim != 2 or len(vectors) != len(self.ids):
                raise ValueError(f"view {name}: shape {vectors.shape} does not fit {len(self.ids)} ids")
            self.views[name] = vectors if vectors.dtype == np.float32 else vectors.astype(np.float32)
        self._rows = {str(name): row for row, name in enumerate(self.ids)}
        if len(self._rows) != len(self.ids):
            raise ValueError("an id is there twice")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, view: str) -> Vectors:
        """The vectors `(n, D)` of one view. Raises KeyError naming the views there are."""
        if view not in self.views:
            raise KeyError(f"no view {view}; there are {', '.join(self.views)}")
        return self.views[view]

    def unit(self, view: str) -> Vectors:
        """The vectors of one view at length 1, a copy; a zero vector stays zero."""
        vectors = np.array(self[view])
        for part in _in_parts(vectors):
            # The squares of a long vector overflow in float32; its largest entry is divided out first.
            part /= np.maximum(np.abs(part).max(axis=1, keepdims=True, initial=0), np.finfo(np.float32).tiny)
            part /= np.maximum(np.linalg.norm(part, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return vectors

    def rows(self, ids: Sequence[str] | NDArray[np.str_]) -> NDArray[np.int64]:
        """Row numbers `(len(ids),)`. Raises InputError if an id is not in the table."""
        missing = [name for name in ids if str(name) not in self._rows]
        if missing:
            like = f", whose ids are like {str(self.ids[0])!r}" if len(self) else ""
            raise InputError(
                f"{len(missing):,} ids have no embedding, such as {str(missing[0])!r}; {len(ids):,} were asked for of a"
                f" table of {len(self):,}{like}"
            )
        return np.array([self._rows[str(name)] for name in ids], dtype=np.int64)

    def check_ids(self, ids: Sequence[str], what: str, where: str = "the table") -> None:
        """Raise InputError unless the rows are those of `ids`, in that order; `what` they are, such as "items"."""
        if self.ids.tolist() == list(ids):
            return
        said = f"{where}: has {len(self):,} rows, but there are {len(ids):,} {what}"
        if len(self) == len(ids):
            row = next(row for row, (own, other) in enumerate(zip(self.ids, ids, strict=True)) if own != other)
            said = (
                f"{where}: has {len(self):,} rows for {len(ids):,} {what}, but row {row} is {str(self.ids[row])!r}"
                f" where {ids[row]!r} is wanted"
            )
        raise InputError(f"{said}; give vectors of these {what}, in their order")

    def save(self, folder: Path | str) -> None:
        """Write the table as a directory, in place of one that is there; never half of it.

        Raises:
            ValueError: a vector is not finite. Nothing is written.
        """
        for name, vectors in self.views.items():
            wrong = sum(int((~np.isfinite(part).all(axis=1)).sum()) for part in _in_parts(vectors))
            if wrong:
                raise ValueError(f"view {name}: {wrong} vectors are NaN or infinite")
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        new, old = (folder.parent / f".{folder.name}.{os.getpid()}.{what}" for what in ("partial", "old"))
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        try:
            for name, vectors in self.views.items():
                with (new / f"{name}.npy").open("wb") as file:
                    np.save(file, vectors, allow_pickle=False)
                    file.flush()
                    os.fsync(file.fileno())
            _write_json(new / "ids.json", self.ids.tolist())
            shapes = {name: list(vectors.shape) for name, vectors in self.views.items()}
            head = {"kind": "embeddings", "format": FORMAT, "views": shapes}
            _write_json(new / "manifest.json", {**self.manifest, **head})
            # A directory cannot be replaced in one step, so the old one steps aside first.
            if folder.exists():
                folder.replace(old)
            new.replace(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.replace(folder)
            shutil.rmtree(new, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path | str, ids: Sequence[str] | None = None, what: str = "items") -> "EmbeddingTable":
        """Open a directory that `save` wrote, vectors memory-mapped.

        Args:
            folder: the directory.
            ids: what its rows must be, in order; None: anything.
            what: what these ids are of.

        Raises:
            InputError: it is none or not whole, or its rows are others than `ids`.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give one with an embedding table, such as RUN/items")
        manifest = _manifest(folder)
        if manifest is None:
            reason = damage(folder / "manifest.json") or "manifest.json is not that of one"
            raise InputError(f"{folder}: no readable embedding table ({reason}); give one such as RUN/items")
        try:
            views = {}
            for name, shape in manifest.pop("views").items():
                views[name] = np.load(folder / f"{name}.npy", mmap_mode="r" if all(shape) else None, allow_pickle=False)
                if list(views[name].shape) != shape:
                    raise ValueError(f"{name}.npy has another shape than its manifest says")
            table = cls(json.loads((folder / "ids.json").read_text(encoding="utf-8")), views, manifest)
        except (OSError, EOFError, ValueError, TypeError, AttributeError) as error:
            reason = damage(folder) or str(error)
            raise InputError(f"{folder}: no readable embedding table ({reason}); {RESTORE}") from None
        if ids is not None:
            table.check_ids(ids, what, str(folder))
        return table


def _manifest(folder: Path) -> dict[str, Any] | None:
    """What the manifest of a table says besides its kind; None where there is none, or it is of something else."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        fits = manifest.pop("kind") == "embeddings" and manifest.pop("format") == FORMAT
        return manifest if fits and isinstance(manifest["views"], dict) and manifest["views"] else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def one_sided(vectors: NDArray[Any], view: str, width: int) -> NDArray[Any]:
    """Histories `(n, D)` of one view as they meet items `width` wide: unchanged, or as a part of a concatenation.

    Concatenated items are `[text; image]`, so a query of text alone is `[text; 0]`, one of pictures `[0; image]`.

    Raises:
        ValueError: the items are narrower, or wider than a fused view.
    """
    missing = width - vectors.shape[1]
    if missing == 0:
        return vectors
    if missing < 0 or view not in ("text", "image"):
        raise ValueError(f"{view} vectors of {vectors.shape[1]} numbers do not fit items of {width}")
    return np.pad(vectors, ((0, 0), (0, missing) if view == "text" else (missing, 0)))


def _in_parts(vectors: Vectors) -> Iterator[Vectors]:
    """Some rows after the others, as views: what is computed of them should not take as much memory as all."""
    rows = max(1, _NUMBERS_AT_ONCE // max(1, vectors.shape[1]))
    return (vectors[start : start + rows] for start in range(0, len(vectors), rows))


def _write_json(path: Path, content: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
