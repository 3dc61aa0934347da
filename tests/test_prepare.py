"""What `prepare` does with logs of any size and catalogues of any kind; the rules of dropping are in test_dataset."""

import json
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import polars as pl
import pytest
from conftest import Given, tiny_tables, write_pictures
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlm2rec.data.dataset import Dataset
from vlm2rec.data.describe import target_warnings
from vlm2rec.data.fetching.client import Fetching
from vlm2rec.data.prepare import prepare
from vlm2rec.data.preparing import draft, log
from vlm2rec.data.sources import LINE, RawData
from vlm2rec.data.sources.broken import Broken
from vlm2rec.data.sources.local import Local
from vlm2rec.errors import InputError


def shelf(count: int) -> pl.DataFrame:
    return pl.DataFrame({"item_id": [f"i{n}" for n in range(count)], "title": [f"Thing {n}" for n in range(count)]})


def events(rows) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


logs = st.lists(
    st.tuples(st.sampled_from("uvwxyz"), st.integers(0, 9).map("i{}".format), st.integers(0, 5)),
    min_size=1,
    max_size=80,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=logs, k=st.integers(0, 4), bucket=st.integers(1, 30), chunk=st.integers(1, 30))
def test_buckets_and_chunks_change_nothing(rows, k: int, bucket: int, chunk: int, tmp_path_factory) -> None:
    """A log in small pieces, its other columns on disk, against the same in one piece sorted the plain way."""
    table = events(rows).with_columns(
        place=pl.Series(range(len(rows))), tags=pl.Series([[f"t{n}"] for n in range(len(rows))])
    )
    folder = tmp_path_factory.mktemp("buckets")

    def made(name: str, interactions) -> Dataset | None:
        try:
            source = Given(RawData("x", shelf(8), interactions))
            return prepare(source, folder / name, require=["title"], k_core=k, duplicates="keep")
        except InputError as error:
            assert "nothing is left" in str(error)
            return None

    whole = made("whole", table)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draft, "BUCKET", bucket)
        patch.setattr(log, "CHUNK", chunk)
        patch.setattr(log, "_IN_MEMORY", 0)
        pieces = made("pieces", iter(list(table.iter_slices(17))))
    if whole is None or pieces is None:
        assert whole is pieces
        return
    assert pieces.fingerprint == whole.fingerprint
    assert pieces.interactions.equals(whole.interactions)
    first = {user: row for row, user in reversed(list(enumerate(table["user_id"])))}
    expected = table.filter(pl.col("user_id").is_in(whole.user_ids) & pl.col("item_id").is_in(whole.item_ids))
    order = pl.col("user_id").replace_strict(first, return_dtype=pl.Int64)
    assert whole.interactions.equals(expected.sort(order, "timestamp", "place"))
    assert sorted(path.name for path in pieces.path.iterdir()) == sorted(path.name for path in whole.path.iterdir())


def test_a_catalogue_is_asked_only_for_what_can_matter(tmp_path: Path) -> None:
    bought = [(f"u{u}", f"i{n}", n) for u in range(3) for n in range(4)] + [("u0", "rare", 9), ("u0", "gone", 1)] * 2
    asked: list[str] = []

    def items(needed: pl.Series) -> pl.DataFrame:
        asked.extend(needed)
        return shelf(4).reverse()

    table = events([*bought, ("u1", "gone", 1)])
    source = Given(RawData("x", items, table))
    made = prepare(source, tmp_path / "out", require=["title"], k_core=3, duplicates="keep")
    assert asked == ["i0", "i1", "i2", "i3", "gone"]
    assert made.item_ids == ["i3", "i2", "i1", "i0"]
    dropped = pl.read_parquet(made.path / "dropped.parquet").filter(pl.col("kind") == "item")
    assert dropped.rows() == [("gone", "item", "not in the catalogue"), ("rare", "item", "k-core")]
    assert made.manifest["left_out"] == {"item not in the catalogue": 3}
    assert made.manifest["raw"] == {"users": 3, "items": 6, "interactions": 17}


def test_counts_stand_beside_the_published_ones(tmp_path: Path) -> None:
    table, said = events([(f"u{u}", f"i{n}", n) for u in range(6) for n in range(5)]), []
    right = {"users": 6, "items": 5, "interactions": 30}
    wrong = {"users": 6, "items": 5, "interactions": 31}
    for number, published in enumerate((right, wrong)):
        source = Given(RawData("x", shelf(5), table, published=published))
        prepare(source, tmp_path / str(number), require=["title"], notice=said.append)
    assert said == [
        "5-core of the log alone: 6 users, 5 items, 30 interactions, as published",
        "warning: 5-core of the log alone: 6 users, 5 items, 30 interactions; published are 6 users, 5 items,"
        " 31 interactions",
    ]


def test_events_that_are_there_twice_are_left_out_and_said_unless_they_are_to_be_kept(tmp_path: Path) -> None:
    rows = [("u", "i0", 1), ("u", "i1", 2), ("u", "i0", 1), ("u", "i2", 3), ("u", "i2", 4)]
    source, said = Given(RawData("x", shelf(3), events(rows))), []
    kept = prepare(source, tmp_path / "kept", require=["title"], k_core=0, duplicates="keep")
    assert kept.sequences[0].tolist() == [0, 0, 1, 2, 2] and kept.manifest["left_out"] == {}
    made = prepare(source, tmp_path / "made", require=["title"], k_core=0, notice=said.append)
    assert made.sequences[0].tolist() == [0, 1, 2, 2]
    assert made.manifest["left_out"] == {"copy of an earlier event": 1}
    assert made.manifest["options"]["duplicates"] == "drop"
    assert said == [
        "dropped 1 of 5 events (20.0%): copy of an earlier event, such as user 'u'; --duplicates keep keeps them",
        "warning: 1 of 1 test targets (users u) are the item of the event just before, so whoever repeats the last item"
        " finds them",
    ]
    with pytest.raises(InputError, match="--duplicates first: unknown; give drop or keep"):
        prepare(source, tmp_path / "none", duplicates="first")  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows_twice", "duplicates", "same"), [
    (False, "drop", True), (False, "keep", True), (True, "keep", True), (True, "drop", False),
])  # fmt: skip
def test_a_data_set_that_is_older_than_the_option_counts_as_the_same_where_it_is(
    rows_twice: bool, duplicates, same: bool, tiny_folder: Path, tmp_path: Path
) -> None:
    """Before, every source but Amazon's kept them, and no manifest said so."""
    log = pl.read_parquet(tiny_folder / "interactions.parquet")
    pl.concat([log, log[:7]] if rows_twice else [log]).write_parquet(tiny_folder / "interactions.parquet")
    source, out = Local(tiny_folder), tmp_path / "out"
    old = prepare(source, out, require=["title"], duplicates="keep")
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["options"]["duplicates"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    said: list[str] = []

    def again() -> Dataset:
        return prepare(source, out, require=["title"], duplicates=duplicates, notice=said.append)

    if same:
        assert again().fingerprint == old.fingerprint and f"{out} already holds this data; nothing to do" in said
    else:
        with pytest.raises(InputError, match="exists and holds other data"):
            again()
    with pytest.raises(InputError, match="exists, prepared with other options"):
        prepare(source, out, require=["title"], duplicates=duplicates, k_core=3)


def test_test_targets_that_repeat_or_are_tied_are_warned_of(tmp_path: Path) -> None:
    tied = [("u", "i0", 1), ("u", "i1", 2), ("u", "i2", 2)]
    repeats = [("v", "i0", 1), ("v", "i1", 2), ("v", "i1", 3), ("w", "i2", 1), ("w", "i0", 2), ("w", "i0", 3)]
    plain = [("x", "i0", 1), ("x", "i1", 1), ("x", "i0", 2)]  # a tie, but not of the target
    said: list[str] = []
    source = Given(RawData("x", shelf(3), events([*tied, *repeats, *plain])))
    made = prepare(source, tmp_path / "made", require=["title"], k_core=0, notice=said.append)
    expected = [
        "warning: 2 of 4 test targets (users v, w) are the item of the event just before, so whoever repeats the last"
        " item finds them",
        "warning: 1 of 4 test targets (users u) have the same time as the event before, so the order of rows in the"
        " file decides which of the two is the target",
    ]
    assert said == expected == target_warnings(made)
    alone = prepare(Given(RawData("x", shelf(3), events(plain))), tmp_path / "alone", require=["title"], k_core=0)
    assert target_warnings(alone) == []


def test_drawn_users_are_a_pure_nested_sample(tmp_path: Path) -> None:
    items, table = tiny_tables()

    def made(count: int | None, seed: int = 0) -> Dataset:
        source = Given(RawData("x", items, table))
        return prepare(source, tmp_path / f"{count}-{seed}", require=["title"], k_core=0, users=count, seed=seed)

    ten, twenty = made(10), made(20)
    assert len(ten.user_ids) == 10
    assert set(ten.user_ids) < set(twenty.user_ids)
    assert made(10, seed=1).user_ids != ten.user_ids
    assert made(500).fingerprint == made(None).fingerprint
    assert ten.manifest["dropped"]["user"] == {"not drawn": 30}


def test_broken_lines_are_listed_beside_the_data(tmp_path: Path) -> None:
    table = events([("u", f"i{n % 3}", n) for n in range(300)] + [("", "i0", 1)])
    table = table.with_columns(pl.Series(LINE, range(301)))

    def made(name: str, **options) -> Dataset:
        broken = Broken()
        broken.count("log.csv", 500)
        broken.add("log.csv", 7, "3 fields instead of 4", "a,b,c")
        raw = RawData("x", shelf(3), table, interactions_from="log.csv", broken=broken)
        return prepare(Given(raw), tmp_path / name, require=["title"], k_core=0, **options)

    said: list[str] = []
    lenient = made("lenient", notice=said.append)
    listed = pl.read_parquet(lenient.path / "broken.parquet")
    assert listed.rows() == [("log.csv", 7, "3 fields instead of 4", "a,b,c"), ("log.csv", 300, "user_id is empty", "")]
    assert lenient.manifest["broken"] == {"log.csv": {"lines": 500, "broken": 2}}
    assert said[0].startswith("log.csv: 2 of 500 lines cannot be read and are left out, the first is line 7")
    with pytest.raises(InputError, match=r"log.csv: 2 of 500 lines cannot be read"):
        made("strict", bad_lines=0.001)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A folder of pictures behind an address."""
    write_pictures(tmp_path / "web", [f"{n}.png" for n in range(20)])

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "web")))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_pictures_are_fetched_for_what_would_survive_with_them(web: str, tmp_path: Path) -> None:
    """Odd ids, a picture that is there already, one that fails and takes another item with it."""
    ids = ["plain", "a/b ü", "here", "gone", *(f"i{n}" for n in range(4)), "rare"]
    items = pl.DataFrame({"item_id": ids, "title": ids, "image": ids})
    items = items.with_columns(url=pl.Series([f"{web}/{n}.png" for n in range(9)])).with_columns(
        url=pl.when(pl.col("item_id") == "gone").then(pl.lit(f"{web}/none.png")).otherwise("url")
    )
    images = tmp_path / "images"
    write_pictures(images, ["here.png"])
    bought = [(f"u{u}", name, n) for u in range(3) for n, name in enumerate(ids[:4] + ids[4:7])]
    table = events([*bought, ("w", "gone", 1), ("w", "i3", 2), ("w", "plain", 3), ("u0", "rare", 50)])
    said: list[str] = []

    def made(name: str, **options) -> Dataset:
        source = Given(RawData("x", items, table, images))
        return prepare(source, tmp_path / name, k_core=1, picture_size=16, notice=said.append, **options)

    fetched = made("a", fetching=Fetching(private=True, retries=0))
    assert fetched.item_ids == ["plain", "a/b ü", "here", "i0", "i1", "i2", "rare"]  # i3 goes with w, w with gone
    assert all(picture is not None for picture in fetched.pictures)
    dropped = {row[0]: row[2] for row in pl.read_parquet(fetched.path / "dropped.parquet").rows()}
    assert dropped["gone"].startswith("picture not fetched: ")
    assert "1 of 8 pictures could not be fetched" in said[0]
    assert sorted(path.stem for path in images.glob("*.png")) == sorted(
        [*fetched.item_ids[:1], "a%2Fb%20%C3%BC", "here", "i0", "i1", "i2", "i3", "rare"]
    )
    # Once they are there, nobody needs to fetch.
    assert made("b").fingerprint == fetched.fingerprint


def test_fetching_needs_addresses_and_a_folder(tmp_path: Path) -> None:
    items, table = tiny_tables()
    source = Given(RawData("x", items, table, tmp_path / "images"))
    with pytest.raises(InputError, match="names no addresses"):
        prepare(source, tmp_path / "out", fetching=Fetching())
    (tmp_path / "pictures.zip").write_bytes(b"PK\5\6" + bytes(18))
    archive = Given(
        RawData("x", items.with_columns(url=pl.lit("http://x.test/1.jpg")), table, tmp_path / "pictures.zip")
    )
    with pytest.raises(InputError, match="only be fetched into a folder"):
        prepare(archive, tmp_path / "out", fetching=Fetching())


def test_the_manifest_names_raw_files_by_their_hashes(tiny_folder: Path, tmp_path: Path) -> None:
    from hashlib import sha256

    made = prepare(Local(tiny_folder), tmp_path / "out").manifest["made_from"]["files"]
    expected = [
        {
            "name": name,
            "bytes": (tiny_folder / name).stat().st_size,
            "sha256": sha256((tiny_folder / name).read_bytes()).hexdigest(),
        }
        for name in ("items.parquet", "interactions.parquet")
    ]
    assert made == expected


def test_ten_thousand_users_are_read_without_their_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a data set reads lengths and a memory map; ids and titles wait until somebody asks."""
    rng = np.random.default_rng(0)
    table = events([]).clear()
    table = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(10_000), 3),
            "item_id": [f"i{n}" for n in rng.integers(0, 50, 30_000)],
            "timestamp": np.arange(30_000),
        }
    )
    path = prepare(Given(RawData("x", shelf(50), table)), tmp_path / "out", require=["title"], k_core=0).path
    read: list[tuple] = []
    original = pl.read_parquet
    monkeypatch.setattr(
        pl, "read_parquet", lambda *a, **k: read.append((Path(a[0]).name, k.get("columns"))) or original(*a, **k)
    )
    dataset = Dataset.load(path)
    assert (dataset.n_users, dataset.n_items, dataset.n_interactions) == (10_000, 50, 30_000)
    assert read[0] == ("users.parquet", ["events"])
    assert {name for name, _ in read} == {"users.parquet", "pictures.parquet"}
    assert isinstance(dataset.sequences.values.base, np.memmap) or isinstance(dataset.sequences.values, np.memmap)
    assert dataset.user_ids[-1] == "9999"


def test_placeholders_count_as_missing_where_that_is_asked(tmp_path: Path) -> None:
    """Six unlike products share a picture that says that there is none."""
    items, table = tiny_tables()
    write_pictures(tmp_path / "images", items["image"].to_list())
    said_none = np.full((64, 64, 3), 255, np.uint8)
    said_none[20:44, 8:56] = np.random.default_rng(3).integers(0, 255, (24, 48, 1))
    titles = ["red shoe", "kitchen clock", "garden hose", "silk scarf", "steel bolt", "paper lamp"]
    for name in items["image"][:6]:
        Image.fromarray(said_none).save(tmp_path / "images" / name)
    items = items.with_columns(title=pl.Series([*titles, *items["title"][6:]]))
    source = Given(RawData("x", items, table, tmp_path / "images"))
    kept = prepare(source, tmp_path / "kept", k_core=0)
    bare = prepare(source, tmp_path / "bare", k_core=0, require=["title"], drop_placeholders=True)
    gone = prepare(source, tmp_path / "gone", k_core=0, drop_placeholders=True)
    assert [picture is None for picture in kept.pictures] == [False] * 24
    assert [picture is None for picture in bare.pictures] == [True] * 6 + [False] * 18
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(bare.pictures[6:], kept.pictures[6:], strict=True))
    assert gone.item_ids == kept.item_ids[6:]
    assert gone.manifest["dropped"]["item"] == bare.manifest["dropped"]["picture"] == {"picture is a placeholder": 6}
