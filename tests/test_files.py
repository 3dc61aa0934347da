"""Other people's embeddings: what can be read, what is said of what cannot, and what is measured of them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from program import Call, Said, check_refused

from vlm2rec.data.candidates import draw_candidates
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split
from vlm2rec.diagnostics import diagnose, files
from vlm2rec.diagnostics.files import diagnose_files
from vlm2rec.diagnostics.vectors import read_vectors
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.errors import InputError

ITEMS, USERS, WIDTH = 40, 30, 6
IDS = [str(item) for item in range(ITEMS)]
NO_IDS = "have no ids: rows are taken for the ids 0 to 39 of items"
POOLED = "histories are the mean of their items' unit vectors"


@dataclass
class Shop:
    """Files of two modalities and a log, in a folder; each can be written again, spoilt."""

    folder: Path
    text: NDArray[Any]
    image: NDArray[Any]
    log: pl.DataFrame

    def npy(self, name: str, vectors: NDArray[Any]) -> Path:
        np.save(self.folder / f"{name}.npy", vectors)
        return self.folder / f"{name}.npy"

    def parquet(
        self, name: str, vectors: NDArray[Any], ids: Any = IDS, column: str = "item_id", array: bool = False
    ) -> Path:
        dtype = pl.Array(pl.Float32, vectors.shape[1]) if array else pl.List(pl.Float32)
        table = pl.DataFrame({column: ids, "vector": pl.Series(vectors.tolist(), dtype=dtype)})
        table.write_parquet(self.folder / f"{name}.parquet")
        return self.folder / f"{name}.parquet"

    def table(self, name: str, views: dict[str, NDArray[Any]], ids: Sequence[str] = IDS) -> Path:
        EmbeddingTable(list(ids), views).save(self.folder / name)
        return self.folder / name

    def write_log(self, table: pl.DataFrame | None = None, kind: str = "parquet") -> Path:
        path = self.folder / f"log.{kind}"
        table = self.log if table is None else table
        {"parquet": table.write_parquet, "csv": table.write_csv, "jsonl": table.write_ndjson}[kind](path)
        return path


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """Taste in two halves: who likes some things likes others near to them, in either modality."""
    return made(tmp_path)


def made(folder: Path) -> Shop:
    rng = np.random.default_rng(0)
    text, image = (rng.standard_normal((ITEMS, WIDTH)).astype(np.float32) for _ in range(2))
    rows = []
    for user in range(USERS):
        wanted = (text + image) @ rng.standard_normal(WIDTH) + rng.standard_normal(ITEMS)
        for item in np.argsort(-wanted)[: rng.integers(4, 9)]:
            rows.append((user, int(item), 1_700_000_000 + int(rng.integers(10**6))))
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return Shop(folder, text, image, log)


def ask(call: Call, text: Path, image: Path, log: Path, *more: object) -> Said:
    return call("diagnose", "--text", text, "--image", image, "--sequences", log, *more)


def answer(call: Call, *asked: Any) -> tuple[dict[str, Any], list[str]]:
    """Figures and notes of what can be diagnosed."""
    said = ask(call, *asked, "--json")
    assert said.status == 0 and "Traceback" not in said.err and "Warning" not in said.err, said
    found = json.loads(said.out)
    return found, found.pop("notes")


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    return [value] if isinstance(value, int | float) else []


def check_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Equal figures, but for the last digits: sums may be made in another order."""
    assert numbers(one) == pytest.approx(numbers(other), rel=1e-4, abs=1e-6)


# What is measured


def test_a_log_is_read_by_the_rules_of_prepare(shop: Shop) -> None:
    """Copies, two units, and dates written as numbers."""
    notes: list[str] = []
    expected = files._read_log(shop.write_log(), [])
    found = files._read_log(shop.write_log(pl.concat([shop.log, shop.log[:4]])), notes)
    assert notes == [f"4 events of {shop.folder / 'log.parquet'} are copies of an earlier one and were left out"]
    assert [own.tolist() for own in found.sequences] == [own.tolist() for own in expected.sequences]
    spoilt = shop.log.with_columns(
        timestamp=pl.when(pl.col("user_id") == 0).then(pl.col("timestamp") * 1000).otherwise("timestamp")
    )
    with pytest.raises(InputError, match="times are in different units"):
        files._read_log(shop.write_log(spoilt), [])
    compact = pl.from_epoch("timestamp").dt.strftime("%Y%m%d%H%M%S").cast(pl.Int64)
    found = files._read_log(shop.write_log(shop.log.with_columns(timestamp=compact)), notes)
    assert "times are dates written as numbers" in notes[-1]
    assert [own.tolist() for own in found.sequences] == [own.tolist() for own in expected.sequences]


def brute(shop: Shop, queries: Callable[[NDArray[Any], list[int]], NDArray[Any]], seed: int) -> dict[str, float]:
    """N@20 by the definition, of histories in order of time, among the candidates of the files' own data set."""
    found: dict[str, list[float]] = {"f2f": [], "t2f": [], "v2f": [], "t2t": [], "v2v": []}
    views = {"text": shop.text, "image": shop.image, "fused": shop.text + shop.image}
    ordered = shop.log.sort("timestamp", maintain_order=True)
    users = ordered["user_id"].unique(maintain_order=True).to_list()
    events = [ordered.filter(pl.col("user_id") == user)["item_id"].to_list() for user in users]
    log = files._read_log(shop.write_log(), [])
    assert log.user_ids == [str(user) for user in users]
    split = Split(files._restricted(log, IDS, Path(), []))  # type: ignore[arg-type]
    drawn = draw_candidates(split, np.arange(len(users)), "test", "sampled", seed)
    for own, candidates in zip(events, drawn, strict=True):
        for name, (query, items) in {
            "f2f": ("fused", "fused"), "t2f": ("text", "fused"), "v2f": ("image", "fused"), "t2t": ("text", "text"),
            "v2v": ("image", "image"),
        }.items():  # fmt: skip
            asked = queries(views[query], own[:-1])
            scores = views[items] @ asked / np.linalg.norm(views[items], axis=1) / np.linalg.norm(asked)
            above = int(sum(scores[item] > scores[own[-1]] + 1e-6 for item in candidates if item >= 0))
            found[name].append(1 / np.log2(above + 2) if above < 20 else 0.0)
            assert set(own).isdisjoint(candidates.tolist())
    return {name: float(np.mean(gains)) for name, gains in found.items()}


def pooled(vectors: NDArray[Any], history: list[int]) -> NDArray[Any]:
    some = vectors[history[-10:]]
    return (some / np.linalg.norm(some, axis=1, keepdims=True)).mean(axis=0)


@pytest.mark.parametrize("seed", [0, 3])
def test_plain_arrays_against_the_definition(call: Call, shop: Shop, seed: int) -> None:
    files_ = (shop.npy("text", shop.text), shop.npy("image", shop.image), shop.write_log())
    found, notes = answer(call, *files_, "--seed", seed)
    assert found["dropout"] == pytest.approx(brute(shop, pooled, seed), abs=1e-9)
    assert len(notes) == 3 and NO_IDS in notes[0] and notes[1] == "texts and pictures are fused as a sum"
    assert POOLED in notes[2]
    assert set(found["diagnosis"]["norms"]) == {"items"}, "the length of a mean says nothing of a modality"
    assert "change" not in found["diagnosis"] and "There is no step 0" in " ".join(found["diagnosis"]["verdict"])
    said = ask(call, *files_)
    assert said.status == 0 and said.err == "" and "note: " in said.out and "Modality dropout" in said.out


def test_a_history_is_cut_to_its_last_events(shop: Shop) -> None:
    paths = (shop.npy("text", shop.text), shop.npy("image", shop.image), shop.write_log())
    found, _ = diagnose_files(*paths, max_history=1)
    right = brute(shop, lambda vectors, history: vectors[history[-1]], 0)
    assert found.measured.dropout() == pytest.approx(right, abs=1e-9)


def test_every_format_gives_the_same(call: Call, shop: Shop) -> None:
    """Arrays, lists and arrays in Parquet, a table; any order of rows, ids as numbers or text."""
    log = shop.write_log()
    right, _ = answer(call, shop.npy("text", shop.text), shop.npy("image", shop.image), log)
    order = np.random.default_rng(1).permutation(ITEMS)
    numbered = pl.Series(order.tolist(), dtype=pl.Int64)
    texts = [
        shop.parquet("lists", shop.text),
        shop.parquet("arrays", shop.text, array=True),
        shop.parquet("numbered", shop.text, range(ITEMS), "id"),
        shop.parquet("named", shop.text, IDS, "asin"),
        shop.table("table", {"text": shop.text, "image": shop.image}),
    ]
    images = [
        shop.parquet("image-shuffled", shop.image[order], numbered),
        shop.table("other", {"image": shop.image[order], "fused": shop.image}, [IDS[row] for row in order]),
    ]
    for text in texts:
        for image in images:
            found, notes = answer(call, text, image, log)
            check_same(found, right)
            assert len(notes) == 2 and not any("left out" in note for note in notes)
    # Ids in another order give the same but for which items are drawn.
    shuffled = shop.parquet("shuffled", shop.text[order], numbered)
    found, notes = answer(call, shuffled, images[0], log)
    for view, own in right["geometry"].items():
        assert found["geometry"][view]["A_pos"] == pytest.approx(own["A_pos"], rel=1e-5)
    assert found["diagnosis"]["isotropy"] == pytest.approx(right["diagnosis"]["isotropy"], abs=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4"])
def test_other_float_types(call: Call, shop: Shop, dtype: str) -> None:
    log = shop.write_log()
    right, _ = answer(call, shop.npy("text", shop.text), shop.npy("image", shop.image), log)
    found, _ = answer(call, shop.npy("text", shop.text.astype(dtype)), shop.npy("image", shop.image), log)
    assert found["geometry"]["text"] == pytest.approx(right["geometry"]["text"], rel=1e-2)


def test_arrays_in_columns_first_order(call: Call, shop: Shop) -> None:
    log, image = shop.write_log(), shop.npy("image", shop.image)
    right, _ = answer(call, shop.npy("text", shop.text), image, log)
    check_same(answer(call, shop.npy("text", np.asfortranarray(shop.text)), image, log)[0], right)


def test_one_file_with_ids_and_one_without(call: Call, shop: Shop) -> None:
    order = np.random.default_rng(2).permutation(ITEMS)
    ids, log = [IDS[row] for row in order], shop.write_log()
    text, bare = shop.parquet("text", shop.text[order], ids), shop.npy("image", shop.image[order])
    found, notes = answer(call, text, bare, log)
    assert f"{bare} has no ids: its rows are taken to be in the order of the other file" in notes
    named, _ = answer(call, text, shop.parquet("image", shop.image[order], ids), log)
    check_same(found, named)
    _, notes = answer(call, bare, text, log)
    assert any(note.startswith(f"{bare} has no ids") for note in notes)


def test_two_widths_are_put_side_by_side(call: Call, shop: Shop) -> None:
    log, wide = shop.write_log(), np.concatenate([shop.image, shop.image], axis=1)
    found, notes = answer(call, shop.npy("text", shop.text), shop.npy("image", wide), log)
    assert "texts and pictures are fused as unit vectors side by side" in notes
    assert "norms" not in found["diagnosis"], "unit vectors lean nowhere"
    text, image = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (shop.text, wide))
    table = {"text": text, "image": image, "fused": np.concatenate([text, image], axis=1)}
    loaded = files._restricted(files._read_log(log, []), IDS, log, [])
    split = Split(loaded)  # type: ignore[arg-type]
    past = [split.history(user, "test").tolist() for user in range(split.n_users)]
    histories = {view: np.stack([pooled(vectors, own) for own in past]) for view, vectors in table.items()}
    right = diagnose(
        EmbeddingTable(loaded.user_ids, histories), EmbeddingTable(IDS, table), split, np.arange(split.n_users), 0
    ).figures()
    assert found["dropout"] == pytest.approx(right["dropout"], abs=1e-9)
    check_same(found["geometry"], right["geometry"])


def test_a_prepared_data_set_has_the_candidates_of_its_runs(call: Call, tiny_dataset: Dataset, tmp_path: Path) -> None:
    """A run's own tables, taken for two files: the dropout and shape that the run has. In any order of the items."""
    shop, split = made(tmp_path), Split(tiny_dataset)
    rng, n = np.random.default_rng(0), split.n_items
    items = {view: rng.standard_normal((n, 5)).astype(np.float32) for view in ("text", "image")}
    users = {view: rng.standard_normal((split.n_users, 5)).astype(np.float32) for view in ("text", "image")}
    both = [{**views, "fused": views["text"] + views["image"]} for views in (items, users)]
    tables = [
        EmbeddingTable(ids, x) for ids, x in zip((tiny_dataset.item_ids, tiny_dataset.user_ids), both, strict=True)
    ]
    right = diagnose(tables[1], tables[0], split, np.arange(split.n_users), 4).figures()

    def given(shelf: tuple[Path, Path], people: tuple[Path, Path]) -> tuple[dict[str, Any], list[str]]:
        more = ("--text-users", people[0], "--image-users", people[1], "--seed", 4)
        return answer(call, *shelf, tiny_dataset.path, *more)

    order, turn = rng.permutation(n), rng.permutation(split.n_users)
    ids, names = [tiny_dataset.item_ids[i] for i in order], [tiny_dataset.user_ids[i] for i in turn]
    bare = (shop.npy("text", items["text"]), shop.npy("image", items["image"]))
    shuffled = (shop.parquet("t", items["text"][order], ids), shop.parquet("i", items["image"][order], ids))
    more = np.concatenate([items["text"][order], np.ones((2, 5), np.float32)])
    longer = (shop.parquet("m", more, [*ids, "x", "y"]), shop.parquet("i2", more * 0 + 1, [*ids, "x", "y"]))
    people = (shop.npy("tu", users["text"]), shop.npy("iu", users["image"]))
    by_name = tuple(shop.parquet(f"{view}-users", users[view][turn], names, "user_id") for view in ("text", "image"))
    for shelf in (bare, shuffled):
        for asked in (people, by_name):
            found, notes = given(shelf, asked)  # type: ignore[arg-type]
            check_same(found, right)
            # Noise finds nothing, whoever owns it; what was assumed of bare rows is said.
            rows = [f"{one} and {other} have no ids: their rows are taken to be in the order of the {what} of"
                    f" {tiny_dataset.path}"
                    for what, (one, other) in (("items", shelf), ("users", asked)) if one.suffix == ".npy"]  # fmt: skip
            assert [note for note in notes if not note.startswith("warning: ")] == [
                *rows[: shelf is bare], "texts and pictures are fused as a sum", *rows[shelf is bare :]
            ]  # fmt: skip
            warned = [note for note in notes if note.startswith("warning: ")]
            assert [("not in the order" in note, "beside them" in note) for note in warned] == [
                (shelf is bare, shelf is not bare)
            ] * len(warned)
    _, notes = given((longer[0], shuffled[1]), people)
    assert any("2 items of" in note and "were left out" in note for note in notes)
    _, notes = given(longer, people)
    assert f"2 items that have vectors are not in {tiny_dataset.path} and were left out" in notes


def test_user_vectors_of_a_plain_log_go_by_id(call: Call, shop: Shop) -> None:
    """Users of a table come in order of time: rows of bare vectors are ids, not places in the log."""
    rng = np.random.default_rng(3)
    users = {view: rng.standard_normal((USERS, WIDTH)).astype(np.float32) for view in ("text", "image")}
    items = (shop.npy("text", shop.text), shop.npy("image", shop.image), shop.write_log())
    bare = ("--text-users", shop.npy("tu", users["text"]), "--image-users", shop.npy("iu", users["image"]))
    found, notes = answer(call, *items, *bare)
    assert any("taken for the ids 0 to 29 of users" in note for note in notes)
    turn = rng.permutation(USERS)
    named = [shop.parquet(f"{v}-u", users[v][turn], turn.tolist(), "user_id") for v in ("text", "image")]
    check_same(found, answer(call, *items, "--text-users", named[0], "--image-users", named[1])[0])
    ordered = shop.log.sort("timestamp")["user_id"].unique(maintain_order=True).to_list()
    assert ordered != sorted(ordered), "else this test could not fail"
    places = {view: dict(enumerate(vectors)) for view, vectors in users.items()}

    def whose(vectors: NDArray[Any], history: list[int]) -> NDArray[Any]:
        """The vector of whoever has this history."""
        own = next(user for user in ordered if _events(shop, user)[:-1] == history)
        if vectors.shape == shop.text.shape and np.array_equal(vectors, shop.text):
            return places["text"][own]
        return places["image"][own] if np.array_equal(vectors, shop.image) else sum(p[own] for p in places.values())

    assert found["dropout"] == pytest.approx(brute(shop, whose, 0), abs=1e-9)
    assert set(found["diagnosis"]["norms"]) == {"histories", "items"}


def _events(shop: Shop, user: int) -> list[int]:
    return shop.log.sort("timestamp").filter(pl.col("user_id") == user)["item_id"].to_list()


# What is left out, and said to be


def test_items_without_a_vector_in_one_modality(call: Call, shop: Shop) -> None:
    text, image = shop.parquet("text", shop.text[:35], IDS[:35]), shop.parquet("image", shop.image[3:], IDS[3:])
    log = shop.write_log()
    found, notes = answer(call, text, image, log)
    assert f"3 items of {text} are not in {image} and were left out" in notes
    assert f"5 items of {image} are not in {text} and were left out" in notes
    unknown = shop.log.filter(~pl.col("item_id").is_between(3, 34))["item_id"].n_unique()
    assert any(note.startswith(f"{unknown} items of {log} have no vector") for note in notes)
    rest = shop.log.filter(pl.col("item_id").is_between(3, 34))
    same, notes = answer(
        call, shop.parquet("t", shop.text[3:35], IDS[3:35]), shop.parquet("i", shop.image[3:35], IDS[3:35]),
        shop.write_log(rest),
    )  # fmt: skip
    check_same(found["dropout"], same["dropout"])
    for view, own in found["geometry"].items():  # the pairs of U go by the order of the users, which is another
        assert {**own, "U": 0} == pytest.approx({**same["geometry"][view], "U": 0})


def test_users_with_too_few_events(call: Call, shop: Shop) -> None:
    paths = (shop.npy("text", shop.text), shop.npy("image", shop.image))
    lonely = pl.DataFrame({"user_id": [100, 101, 101], "item_id": [1, 99, 2], "timestamp": [1, 2, 3]})
    log = shop.write_log(pl.concat([shop.log, lonely]))
    found, notes = answer(call, *paths, log)
    assert f"1 items of {log} have no vector and were left out" in notes
    assert "2 users have fewer than 2 such events and were left out" in notes
    check_same(found["dropout"], answer(call, *paths, shop.write_log())[0]["dropout"])


def counted(shop: Shop, first: int, keep: Callable[[pl.Expr], pl.Expr] = lambda item: item >= 0) -> Path:
    """The shop's log with items counted from `first`, those that are kept."""
    item = pl.col("item_id")
    return shop.write_log(shop.log.filter(keep(item)).with_columns(item + first))


def paths_of(shop: Shop) -> tuple[Path, Path]:
    return shop.npy("text", shop.text), shop.npy("image", shop.image)


def test_ids_counted_from_1_are_noticed_before_anything_is_said(call: Call, shop: Shop) -> None:
    """Off by one, good vectors look as if they could not be read."""
    assert {0, ITEMS - 1} <= set(shop.log["item_id"])
    right, _ = answer(call, *paths_of(shop), counted(shop, 0))
    log = counted(shop, 1)
    check_refused(
        ask(call, *paths_of(shop), log),
        f"{log}: the ids of items look as if counted from 1",
        "40 vectors",
        "--first-id 1",
    )
    found, notes = answer(call, *paths_of(shop), log, "--first-id", 1)
    check_same(found, right)
    assert "rows are taken for the ids 1 to 40 of items" in notes[0]
    stated, notes = answer(call, *paths_of(shop), log, "--first-id", 0)
    assert numbers(stated) != pytest.approx(numbers(right), rel=1e-4)
    assert any("1 items of" in note and "have no vector and were left out" in note for note in notes)


def test_ids_that_fit_either_way_are_questioned(call: Call, shop: Shop) -> None:
    said = ask(call, *paths_of(shop), counted(shop, 0, lambda item: item > 0))
    first = said.out.splitlines()[0]
    assert said.status == 0 and first.startswith("warning: ") and "the log has no id 0" in first
    assert "rows are taken for the ids 0 to 39 of items" in first and "--first-id 1" in first
    # Of a log with few of the items it says little that none of them is 0.
    sparse = ask(call, *paths_of(shop), counted(shop, 0, lambda item: (item > 0) & (item < 30)))
    assert not sparse.out.startswith("warning: ") and "the log has no id 0" in sparse.out
    _, notes = answer(call, *paths_of(shop), counted(shop, 0))
    assert not any("no id 0" in note for note in notes), "0 is there: nothing to question"
    _, notes = answer(call, *paths_of(shop), counted(shop, 5))
    assert not any("no id 0" in note for note in notes), "41 to 44 fit neither way, which is said"
    assert any("have no vector and were left out" in note for note in notes)


def test_users_counted_from_1_are_noticed_too(call: Call, shop: Shop) -> None:
    rng = np.random.default_rng(3)
    users = [shop.npy(f"{view}-u", rng.standard_normal((USERS, WIDTH)).astype(np.float32)) for view in ("t", "i")]
    shop.log = shop.log.with_columns(pl.col("user_id") + 1)
    asked = (*paths_of(shop), shop.write_log(), "--text-users", users[0], "--image-users", users[1])
    check_refused(ask(call, *asked), "the ids of users look as if counted from 1")


def test_an_option_for_files_needs_files(call: Call, tmp_path: Path) -> None:
    check_refused(call("diagnose", tmp_path, "--first-id", 1), "not both")


def test_chance_from_foreign_files_points_to_their_order(call: Call, shop: Shop) -> None:
    """Vectors in another order find chance; it is never said that training has done this."""
    rng = np.random.default_rng(8)
    users = {view: rng.standard_normal((USERS * 9, WIDTH)).astype(np.float32) for view in ("text", "image")}
    shop.log = pl.concat([shop.log.with_columns(pl.col("user_id") + USERS * k) for k in range(9)])
    last = shop.log.sort("timestamp").group_by("user_id").last().sort("user_id")["item_id"].to_numpy()
    users["text"] += 4 * shop.text[last]
    people = ("--text-users", shop.npy("tu", users["text"]), "--image-users", shop.npy("iu", users["image"]))
    log = shop.write_log()
    first, _, status = ask(call, *paths_of(shop), log, *people).out.splitlines()[:3]
    assert first.startswith("warning: pictures find no more than chance; the likeliest cause")
    assert "image.npy are not in the order of the ids" in first and status.startswith("at chance: ")
    named = shop.parquet("named", shop.image)
    said = ask(call, shop.folder / "text.npy", named, log, *people).out
    assert f"{named} do not belong to the ids beside them" in said and "collapsed" not in said


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), sign=st.sampled_from([-1, 0, 1]))
def test_foreign_files_are_never_called_collapsed(seed: int, sign: int, tmp_path: Path) -> None:
    """Whatever they find: two files cannot tell what training did."""
    shop = made(tmp_path)
    noise = np.random.default_rng(seed).standard_normal(shop.image.shape).astype(np.float32)
    found, _ = diagnose_files(shop.npy("t", shop.text), shop.npy("i", sign * shop.image + noise), shop.write_log())
    assert found.conclusion["status"] != "collapsed" and "change" not in found.conclusion
    assert "collapsed" not in " ".join(found.conclusion["verdict"])


def test_a_single_user(call: Call, shop: Shop) -> None:
    paths = (shop.npy("text", shop.text), shop.npy("image", shop.image))
    log = shop.write_log(shop.log.filter(pl.col("user_id") == 4))
    found, _ = answer(call, *paths, log)
    assert found["diagnosis"]["status"] == "unknown" and "One user has no spread" in found["diagnosis"]["verdict"][0]
    assert ask(call, *paths, log).out.startswith("unknown: ")


def test_zero_vectors_are_counted(call: Call, shop: Shop) -> None:
    shop.image[[0, 5, 9]] = 0
    found, _ = answer(call, shop.npy("text", shop.text), shop.npy("image", shop.image), shop.write_log())
    assert found["diagnosis"]["silent"]["image of items"] == 3
    assert "3 vectors (image of items) are zero" in " ".join(found["diagnosis"]["verdict"])


def test_users_without_vectors(call: Call, shop: Shop) -> None:
    users = np.ones((5, WIDTH), np.float32) * np.arange(1, 6)[:, None]
    users[:, 0] += 1
    ids = ["0", "1", "2", "stranger", "3"]
    people = [shop.parquet(name, users, ids, "user_id") for name in ("tu", "iu")]
    items = (shop.npy("text", shop.text), shop.npy("image", shop.image), shop.write_log())
    found, notes = answer(call, *items, "--text-users", people[0], "--image-users", people[1])
    assert f"26 users have no vector in {people[0]} and were left out" in notes
    assert f"1 vectors of {people[0]} belong to no user that can be asked" in notes
    assert "low" in found["diagnosis"]["dropout"]["f2f"]


def test_files_of_different_items_are_suspected(call: Call, tmp_path: Path) -> None:
    """Two modalities that share nothing, in files without ids: perhaps they are in two orders."""
    rng = np.random.default_rng(0)
    n = 400
    text = rng.standard_normal((n, 8)).astype(np.float32)
    image = text + 0.1 * rng.standard_normal((n, 8)).astype(np.float32)
    log = pl.DataFrame({"user_id": np.repeat(range(20), 5), "item_id": rng.integers(n, size=100)})
    log.write_csv(tmp_path / "log.csv")
    np.save(tmp_path / "text.npy", text)
    for name, vectors, suspected in (("same", image, False), ("turned", image[rng.permutation(n)], True)):
        np.save(tmp_path / f"{name}.npy", vectors)
        _, notes = answer(call, tmp_path / "text.npy", tmp_path / f"{name}.npy", tmp_path / "log.csv")
        assert any("make sure that both files hold the same items" in note for note in notes) == suspected


# Logs


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_logs_of_every_format(call: Call, shop: Shop, kind: str) -> None:
    paths = (shop.npy("text", shop.text), shop.npy("image", shop.image))
    right, notes = answer(call, *paths, shop.write_log())
    found, same = answer(call, *paths, shop.write_log(kind=kind))
    assert (found, same) == (right, notes)


@pytest.mark.parametrize(
    "times",
    [
        pl.col("timestamp").cast(pl.String),
        pl.col("timestamp").cast(pl.Float64) / 7,
        pl.from_epoch("timestamp"),
        pl.from_epoch("timestamp").dt.replace_time_zone("UTC"),
        pl.col("timestamp").cast(pl.UInt64),
    ],
)
def test_times_of_every_kind(call: Call, shop: Shop, times: pl.Expr) -> None:
    paths = (shop.npy("text", shop.text), shop.npy("image", shop.image))
    right, _ = answer(call, *paths, shop.write_log())
    assert answer(call, *paths, shop.write_log(shop.log.with_columns(times.alias("timestamp"))))[0] == right


def test_days_are_times_too(call: Call, shop: Shop) -> None:
    paths = (shop.npy("text", shop.text), shop.npy("image", shop.image))
    days = shop.log.with_columns(pl.from_epoch("timestamp").cast(pl.Date))
    floor = shop.log.with_columns(pl.col("timestamp") // 86_400)
    assert answer(call, *paths, shop.write_log(days))[0] == answer(call, *paths, shop.write_log(floor))[0]


def test_a_log_without_times_is_in_order(call: Call, shop: Shop) -> None:
    paths = (shop.npy("text", shop.text), shop.npy("image", shop.image))
    ordered = shop.log.sort("timestamp")
    right, before = answer(call, *paths, shop.write_log(ordered))
    log = shop.write_log(ordered.drop("timestamp"))
    found, notes = answer(call, *paths, log)
    assert found == right
    assert notes == [f"{log} has no timestamp: its rows are taken to be in order of time", *before]


def test_ids_of_items_and_users_are_text_or_whole_numbers(call: Call, shop: Shop) -> None:
    """`007` is not 7, and a category is its name."""
    padded = [f"{item:03}" for item in range(ITEMS)]
    text, image = shop.parquet("text", shop.text, padded), shop.parquet("image", shop.image, padded)
    log = shop.log.with_columns(pl.col("item_id").cast(pl.String).str.zfill(3))
    right, _ = answer(call, shop.npy("t", shop.text), shop.npy("i", shop.image), shop.write_log())
    for table, kind in ((log, "csv"), (log.with_columns(pl.col("item_id").cast(pl.Categorical)), "parquet")):
        found, _ = answer(call, text, image, shop.write_log(table, kind))
        assert found["geometry"]["text"]["A_pos"] == pytest.approx(right["geometry"]["text"]["A_pos"], rel=1e-6)
    said = ask(call, text, image, shop.write_log())
    check_refused(said, "log.parquet", "no user has 2 events", "like '", "with the vectors like '000'")


# Refusals


Spoil = Callable[[Shop], Path]


def _written(name: str, content: bytes) -> Spoil:
    def write(shop: Shop) -> Path:
        (shop.folder / name).write_bytes(content)
        return shop.folder / name

    return write


def _cut(shop: Shop) -> Path:
    path = shop.npy("bad", shop.text)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def _cut_parquet(shop: Shop) -> Path:
    path = shop.parquet("bad", shop.text)
    path.write_bytes(path.read_bytes()[:200])
    return path


def _with(value: float, row: int = 7) -> Callable[[Shop], NDArray[Any]]:
    def spoilt(shop: Shop) -> NDArray[Any]:
        vectors = shop.text.copy()
        vectors[[row, row + 4], 2] = value
        return vectors

    return spoilt


def _frame(**columns: Any) -> Spoil:
    def write(shop: Shop) -> Path:
        pl.DataFrame(columns).write_parquet(shop.folder / "bad.parquet")
        return shop.folder / "bad.parquet"

    return write


def _npz(shop: Shop) -> Path:
    np.savez(shop.folder / "archive.npz", a=shop.text)
    return (shop.folder / "archive.npz").rename(shop.folder / "archive.npy")


def _folder(shop: Shop) -> Path:
    (shop.folder / "folder").mkdir()
    return shop.folder / "folder"


def _broken_table(shop: Shop) -> Path:
    path = shop.table("broken", {"text": shop.text, "image": shop.text})
    (path / "text.npy").unlink()
    (path / "image.npy").unlink()
    return path


def _pickled(shop: Shop) -> Path:
    np.save(shop.folder / "objects.npy", np.array([[1, "a"], [None, 2]], dtype=object), allow_pickle=True)
    return shop.folder / "objects.npy"


LISTS = pl.Series([[1.0, 2.0], [3.0, 4.0]])
FILES: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "absent": (lambda shop: shop.folder / "no.npy", ("no.npy: no such file", "give .npy")),
    "of another kind": (_written("v.txt", b"1 2 3"), ("v.txt: of an unknown kind", "give .npy")),
    "empty npy": (_written("v.npy", b""), ("v.npy: cannot be read as .npy", "numpy.save")),
    "garbage npy": (_written("v.npy", b"\x93NUMPY and no more"), ("v.npy: cannot be read as .npy",)),
    "text npy": (_written("v.npy", b"hello world, this is no array"), ("v.npy: cannot be read as .npy",)),
    "cut npy": (_cut, ("bad.npy: cannot be read as .npy",)),
    "an archive": (_npz, ("archive.npy: is an archive", "numpy.save")),
    "objects": (_pickled, ("objects.npy: cannot be read as .npy",)),
    "whole numbers": (lambda s: s.npy("bad", np.ones((4, 2), np.int64)), ("bad.npy: holds int64", "give floats")),
    "complex": (lambda s: s.npy("bad", s.text * 1j), ("bad.npy: holds complex", "give floats")),
    "flat": (lambda s: s.npy("bad", s.text[0]), ("bad.npy: holds float32 of shape (6,)", "(rows, width)")),
    "cubic": (lambda s: s.npy("bad", s.text[None]), ("of shape (1, 40, 6)",)),
    "a scalar": (lambda s: s.npy("bad", np.float32(1)), ("bad.npy",)),
    "no rows": (lambda s: s.npy("bad", s.text[:0]), ("bad.npy",)),
    "no columns": (lambda s: s.npy("bad", s.text[:, :0]), ("bad.npy",)),
    "NaN": (lambda s: s.npy("bad", _with(np.nan)(s)), ("bad.npy: 2 vectors hold NaN", "row 7, counted from 0")),
    "infinity": (lambda s: s.parquet("bad", _with(-np.inf)(s)), ("2 vectors hold NaN or infinity", "that of '7'")),
    "too large": (
        lambda s: s.npy("bad", _with(1e300)(_doubled(s))), ("bad.npy: 2 vectors", "infinity (as float32)", "row 7")
    ),
    "all zero": (lambda s: s.npy("bad", s.text * 0), ("bad.npy: all vectors are zero",)),
    "empty parquet": (_written("v.parquet", b""), ("v.parquet: cannot be read as Parquet",)),
    "garbage parquet": (_written("v.parquet", b"PAR1 and no more"), ("v.parquet: cannot be read as Parquet",)),
    "cut parquet": (_cut_parquet, ("bad.parquet: cannot be read as Parquet",)),
    "no vectors": (_frame(item_id=["a"], x=[1.0]), ("has the columns item_id, x", "one of vectors")),
    "two vectors": (_frame(item_id=["a", "b"], x=LISTS, y=LISTS), ("has the columns item_id, x, y",)),
    "no ids": (_frame(x=LISTS), ("bad.parquet: has the columns x", "one of ids")),
    "unclear ids": (_frame(x=LISTS, a=[1, 2], b=[1, 2]), ("has the columns x, a, b", "item_id")),
    "no columns at all": (_frame(), ("bad.parquet", "none")),
    "an id missing": (_frame(item_id=["a", None], x=LISTS), ("column item_id is empty in row 2",)),
    "fractions for ids": (_frame(item_id=[1.0, 2.0], x=LISTS), ("column item_id holds Float64",)),
    "records for ids": (_frame(item_id=[{"a": 1}, {"a": 2}], x=LISTS), ("column item_id holds Struct",)),
    "an id twice": (
        lambda s: s.parquet("bad", s.text, [*IDS[:39], "17"]), ("bad.parquet: id '17' is there more than once",)
    ),
    "several lengths": (
        _frame(item_id=["a", "b", "c"], x=[[1.0, 2.0], [3.0, 4.0], [5.0]]),
        ("2 numbers in the first row and 1 in row 3", "give all the same"),
    ),
    "a vector missing": (_frame(item_id=["a", "b"], x=[[1.0, 2.0], None]), ("and 0 in row 2",)),
    "a number missing": (_frame(item_id=["a", "b"], x=[[1.0, 2.0], [3.0, None]]), ("NaN", "that of 'b'")),
    "words": (_frame(item_id=["a"], x=[["1", "2"]]), ("column x holds List(String)", "give lists of numbers")),
    "lists of lists": (_frame(item_id=["a"], x=[[[1.0], [2.0]]]), ("column x holds List(List", "lists of numbers")),
    "empty lists": (_frame(item_id=["a"], x=pl.Series([[]], dtype=pl.List(pl.Float32))), ("is empty",)),
    "no lists": (_frame(item_id=pl.Series([], dtype=pl.String), x=LISTS.clear()), ("bad.parquet: is empty",)),
    "a folder": (_folder, ("folder: is a folder, but no embedding table", "give .npy")),
    "a table without the view": (
        lambda s: s.table("bad", {"fused": s.text}), ("bad: has no view", "only fused", "another folder")
    ),
    "a damaged table": (_broken_table, ("broken: no readable embedding table",)),
    "ids that are not the other's": (
        lambda s: s.parquet("bad", s.text, [f"x{i}" for i in IDS]), ("have no id in common", "'x0'", "same items")
    ),
    "rows that are not the other's": (lambda s: s.npy("bad", s.text[:39]), ("39", "40", "without ids", "Parquet")),
}  # fmt: skip


def _doubled(shop: Shop) -> Shop:
    return Shop(shop.folder, shop.text.astype(np.float64), shop.image, shop.log)


@pytest.mark.parametrize("what", list(FILES))
def test_a_file_that_cannot_be_used(call: Call, shop: Shop, what: str) -> None:
    """On either side: one line that names the file, and nothing written."""
    spoil, says = FILES[what]
    bad = spoil(shop)
    rival = shop.npy("good", shop.text) if what.startswith("rows") else shop.parquet("good", shop.image)
    log = shop.write_log()
    before = {str(path) for path in shop.folder.rglob("*")}
    for pair in ((bad, rival), (rival, bad)):
        check_refused(ask(call, *pair, log), str(bad), *says)
    assert {str(path) for path in shop.folder.rglob("*")} == before


def _log(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Spoil:
    return lambda shop: shop.write_log(change(shop.log))


LOGS: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "absent": (lambda s: s.folder / "no.parquet", ("no.parquet: give a prepared data set, or a .parquet",)),
    "of another kind": (_written("log.xlsx", b""), ("log.xlsx: give a prepared data set",)),
    "a folder": (_folder, ("folder: give a prepared data set",)),
    "a table of vectors": (lambda s: s.table("vectors", {"text": s.text}), ("vectors: not a prepared data set",)),
    "empty file": (_written("log.csv", b""), ("log.csv: cannot be read as csv",)),
    "garbage": (_written("log.parquet", b"PAR1 and no more"), ("log.parquet: cannot be read as parquet",)),
    "no rows": (_log(lambda t: t.clear()), ("log.parquet: is empty",)),
    "no user_id": (_log(lambda t: t.rename({"user_id": "user"})), ("no column user_id", "only user, item_id")),
    "no item_id": (_log(lambda t: t.drop("item_id")), ("no column item_id", "only user_id, timestamp")),
    "a user missing": (
        _log(lambda t: t.with_columns(pl.when(pl.int_range(pl.len()) != 2).then("user_id").alias("user_id"))),
        ("column user_id is empty in row 3",),
    ),
    "an item missing": (
        _log(lambda t: t.with_columns(pl.when(pl.int_range(pl.len()) != 0).then("item_id").alias("item_id"))),
        ("column item_id is empty in row 1",),
    ),
    "fractions for items": (_log(lambda t: t.with_columns(pl.col("item_id").cast(pl.Float64))), ("holds Float64",)),
    "lists for users": (_log(lambda t: t.with_columns(pl.concat_list("user_id"))), ("user_id holds List",)),
    "no time": (
        _log(lambda t: t.with_columns(pl.when(pl.int_range(pl.len()) != 4).then("timestamp").alias("timestamp"))),
        ("timestamp None in row 5 is no time",),
    ),
    "NaN for a time": (
        _log(lambda t: t.with_columns(timestamp=pl.lit(float("nan")))), ("timestamp nan in row 1 is no time",)
    ),
    "words for times": (
        _log(lambda t: t.with_columns(timestamp=pl.lit("soon"))), ("timestamp 'soon' in row 1", "give a number")
    ),
    "truth for times": (_log(lambda t: t.with_columns(timestamp=True)), ("timestamp holds Boolean",)),
    "unknown items": (
        _log(lambda t: t.with_columns(pl.format("x{}", "item_id").alias("item_id"))),
        ("no user has 2 events with items that have vectors", "like 'x", "with the vectors like '0'"),
    ),
    "one event each": (_log(lambda t: t.unique("user_id")), ("no user has 2 events",)),
    "everything bought": (
        lambda s: s.write_log(pl.DataFrame({"user_id": [1] * ITEMS, "item_id": list(range(ITEMS))})),
        ("every user has every item", "nothing to choose from"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", list(LOGS))
def test_a_log_that_cannot_be_used(call: Call, shop: Shop, what: str) -> None:
    spoil, says = LOGS[what]
    bad = spoil(shop)
    said = ask(call, shop.npy("text", shop.text), shop.npy("image", shop.image), bad)
    check_refused(said, str(bad), *says)


def test_user_vectors_that_cannot_be_used(call: Call, shop: Shop) -> None:
    items = (shop.npy("text", shop.text), shop.npy("image", shop.image), shop.write_log())
    good = shop.npy("users", np.ones((USERS, WIDTH), np.float32))
    narrow = shop.npy("narrow", np.ones((USERS, 2), np.float32))
    strangers = shop.parquet("strangers", shop.text, [f"x{i}" for i in IDS], "user_id")
    check_refused(ask(call, *items, "--text-users", good), "--text-users and --image-users belong together")
    check_refused(ask(call, *items, "--image-users", good), "belong together", "give both")

    def users(text: Path, image: Path) -> Said:
        return ask(call, *items, "--text-users", text, "--image-users", image)

    check_refused(users(narrow, good), f"{narrow}: vectors of 2 numbers, those of the items have 6")
    check_refused(users(good, narrow), f"{narrow}: vectors of 2 numbers, those of the items have 6")
    check_refused(users(strangers, strangers), f"{strangers}: has no vector of any user", "like 'x0'")
    check_refused(users(shop.folder / "no.npy", good), "no.npy: no such file")


def test_what_to_diagnose_must_be_said(call: Call, shop: Shop) -> None:
    text = shop.npy("text", shop.text)
    for asked in ([], ["--text", text], ["--text", text, "--image", text]):
        check_refused(call("diagnose", *asked), "give a run directory, or all of --text, --image and --sequences")
    check_refused(call("diagnose", shop.folder, "--text", text), "not both")


def test_everybody_has_everything_that_is_left(call: Call, tmp_path: Path) -> None:
    """A prepared data set of which only few items have vectors."""
    shop = made(tmp_path)
    log = shop.write_log(pl.DataFrame({"user_id": [1, 1, 1, 2, 2, 2], "item_id": [0, 1, 9, 1, 0, 9]}))
    text, image = (shop.parquet(name, shop.text[:2], IDS[:2]) for name in ("text", "image"))
    check_refused(ask(call, text, image, log), "every user has every item that has vectors")


# The readers, on whatever there may be

SETTINGS = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6)


@SETTINGS
@given(
    ids=st.lists(st.one_of(NAMES), min_size=1, max_size=8, unique=True),
    width=st.integers(1, 4),
    wide=st.booleans(),
    array=st.booleans(),
    data=st.data(),
)
def test_what_is_written_is_read(
    tmp_path: Path, ids: list[str], width: int, wide: bool, array: bool, data: st.DataObject
) -> None:
    dtype = np.float64 if wide else np.float32
    numbers_ = st.floats(-(2.0**99), 2.0**99, width=64 if wide else 32)
    rows = data.draw(st.lists(st.lists(numbers_, min_size=width, max_size=width), min_size=len(ids), max_size=len(ids)))
    vectors = np.array(rows, dtype)
    vectors[0, 0] = 1
    inner = pl.Float64 if wide else pl.Float32
    kind = pl.Array(inner, width) if array else pl.List(inner)
    path = tmp_path / "v.parquet"
    pl.DataFrame({"item_id": ids, "v": pl.Series(vectors.tolist(), dtype=kind)}).write_parquet(path)
    np.save(tmp_path / "v.npy", vectors)
    named, bare = read_vectors(path, "text"), read_vectors(tmp_path / "v.npy", "text")
    assert named.ids == ids and bare.ids is None
    for found in (named, bare):
        assert found.rows.shape == vectors.shape
        np.testing.assert_array_equal(np.asarray(found.rows[:], np.float32), vectors.astype(np.float32))


@SETTINGS
@given(
    st.lists(
        st.one_of(st.none(), st.lists(st.one_of(st.none(), st.floats(width=32)), max_size=3), st.just([1.0, 2.0])),
        max_size=5,
    ),
    st.lists(st.one_of(st.none(), NAMES), min_size=5, max_size=5),
)
def test_lists_of_any_kind_are_read_or_refused_in_a_line(
    tmp_path: Path, lists: list[list[float | None] | None], ids: list[str | None]
) -> None:
    path = tmp_path / "v.parquet"
    vectors = pl.Series(lists, dtype=pl.List(pl.Float32))
    pl.DataFrame({"id": pl.Series(ids[: len(lists)], dtype=pl.String), "v": vectors}).write_parquet(path)
    try:
        found = read_vectors(path, "text")
    except InputError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    else:
        assert found.ids == ids[: len(lists)] and len(set(found.ids)) == len(lists)
        np.testing.assert_array_equal(found.rows[:], np.array(lists, np.float32))
        assert np.isfinite(found.rows[:]).all()


@SETTINGS
@given(st.binary(max_size=200), st.sampled_from(["npy", "parquet"]), st.booleans())
def test_bytes_of_any_kind_are_refused_in_a_line(tmp_path: Path, content: bytes, ending: str, headed: bool) -> None:
    path = tmp_path / f"v.{ending}"
    head = {"npy": b"\x93NUMPY\x01\x00", "parquet": b"PAR1"}[ending] if headed else b""
    path.write_bytes(head + content)
    with pytest.raises(InputError) as caught:
        read_vectors(path, "text")
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_long_file_with_an_id_twice_is_refused_at_once(tmp_path: Path) -> None:
    """Looking back from each would take longer than all the other tests."""
    ids = [*map(str, range(50_000)), "49999"]
    vectors = pl.Series(np.ones((len(ids), 1), np.float32).tolist(), dtype=pl.List(pl.Float32))
    pl.DataFrame({"item_id": ids, "v": vectors}).write_parquet(tmp_path / "v.parquet")
    with pytest.raises(InputError, match="id '49999' is there more than once"):
        read_vectors(tmp_path / "v.parquet", "text")
