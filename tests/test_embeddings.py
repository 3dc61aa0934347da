import json
from pathlib import Path

import numpy as np
import pytest

from vlm2rec.embeddings import EmbeddingTable, one_sided
from vlm2rec.errors import InputError


def table(n: int = 5, seed: int = 0) -> EmbeddingTable:
    rng = np.random.default_rng(seed)
    return EmbeddingTable(
        [f"éß {i}" for i in range(n)],
        {"fused": rng.normal(size=(n, 4)), "text": rng.normal(size=(n, 3)).astype(np.float32)},
        {"checkpoint": "abc", "step": 3},
    )


def test_save_load_is_the_same(tmp_path: Path) -> None:
    made = table()
    made.save(tmp_path / "deep" / "items")
    read = EmbeddingTable.load(tmp_path / "deep" / "items")
    assert read.ids.tolist() == made.ids.tolist()
    assert list(read.views) == ["fused", "text"]
    assert read.manifest == made.manifest == {"checkpoint": "abc", "step": 3}
    for view in made.views:
        assert read[view].dtype == np.float32
        assert np.array_equal(read[view], made[view])
        assert isinstance(read[view], np.memmap)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["items"]


def test_an_empty_table_survives(tmp_path: Path) -> None:
    EmbeddingTable([], {"fused": np.empty((0, 4), np.float32)}).save(tmp_path / "t")
    read = EmbeddingTable.load(tmp_path / "t")
    assert len(read) == 0
    assert read.unit("fused").shape == (0, 4)


def test_saving_replaces_and_never_leaves_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "t"
    table(5).save(folder)
    table(3, seed=1).save(folder)
    assert np.array_equal(EmbeddingTable.load(folder)["text"], table(3, seed=1)["text"])

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(json, "dump", fail)
    with pytest.raises(OSError, match="disk full"):
        table(4).save(folder)
    monkeypatch.undo()
    replace = Path.replace

    def fail_at_the_last_step(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError("gone")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_at_the_last_step)
    with pytest.raises(OSError, match="gone"):
        table(4).save(folder)
    assert len(EmbeddingTable.load(folder)) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_nan_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    bad = table()
    bad.views["fused"][2, 1] = np.nan
    with pytest.raises(ValueError, match="fused: 1 vectors are NaN"):
        bad.save(tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


def test_unit_vectors() -> None:
    vectors = np.array([[3, 4], [0, 0], [1e30, 1e30], [1e-30, 0], [-2, 0]], np.float32)
    made = EmbeddingTable(list("abcde"), {"fused": vectors})
    half = np.sqrt(0.5)
    assert np.allclose(made.unit("fused"), [[0.6, 0.8], [0, 0], [half, half], [1, 0], [-1, 0]], atol=1e-6)
    assert np.array_equal(made["fused"], vectors)


def test_rows_by_id() -> None:
    made = table()
    assert made.rows(["éß 3", "éß 0", "éß 3"]).tolist() == [3, 0, 3]
    assert made.rows(np.array(["éß 4"])).tolist() == [4]
    assert made.rows([]).shape == (0,)
    with pytest.raises(InputError, match=r"2 ids have no embedding.*'x'"):
        made.rows(["x", "éß 1", "y"])
    with pytest.raises(KeyError, match="fused, text"):
        made["image"]


def test_wrong_parts_are_refused() -> None:
    ones = np.ones((2, 3), np.float32)
    for ids, views, message in (
        (["a", "b"], {}, "at least one view"),
        (["a", "b"], {"fused": ones[0]}, "does not fit"),
        (["a"], {"fused": ones}, "does not fit"),
        (["a", "a"], {"fused": ones}, "twice"),
        (["a", "b"], {"../x": ones}, "file name"),
    ):
        with pytest.raises(ValueError, match=message):
            EmbeddingTable(ids, views)


@pytest.mark.parametrize("damage", ["nothing there", "no view", "short view", "other kind", "no json"])
def test_damage_is_one_line(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "t"
    if damage != "nothing there":
        table().save(folder)
    if damage == "no view":
        (folder / "text.npy").unlink()
    elif damage == "short view":
        np.save(folder / "text.npy", np.ones((2, 3), np.float32))
    elif damage == "other kind":
        (folder / "manifest.json").write_text(json.dumps({"kind": "dataset"}))
    elif damage == "no json":
        (folder / "ids.json").write_text("[")
    with pytest.raises(InputError, match=r"no readable embedding table|no such folder") as caught:
        EmbeddingTable.load(folder)
    assert "\n" not in str(caught.value)


def test_one_side_of_a_concatenation() -> None:
    vectors = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    assert one_sided(vectors, "text", 6).tolist() == [[1, 2, 3, 0, 0, 0], [4, 5, 6, 0, 0, 0]]
    assert one_sided(vectors, "image", 6).tolist() == [[0, 0, 0, 1, 2, 3], [0, 0, 0, 4, 5, 6]]
    assert one_sided(vectors, "image", 6).dtype == np.float32
    assert one_sided(vectors, "image", 5)[0].tolist() == [0, 0, 1, 2, 3], "sides need not be of one width"
    for view in ("fused", "text", "image"):
        assert one_sided(vectors, view, 3) is vectors


@pytest.mark.parametrize(("view", "width"), [("text", 2), ("image", 0), ("fused", 6)])
def test_a_side_that_is_no_part_of_the_items(view: str, width: int) -> None:
    with pytest.raises(ValueError, match=f"{view} vectors of 3 numbers do not fit items of {width}"):
        one_sided(np.ones((2, 3)), view, width)
