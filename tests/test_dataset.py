import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import Given, tiny_tables, write_pictures
from PIL import Image

from vlm2rec.data.dataset import Dataset
from vlm2rec.data.describe import describe
from vlm2rec.data.prepare import prepare
from vlm2rec.data.preparing.tables import clean_title, clean_titles
from vlm2rec.data.sources import RawData
from vlm2rec.data.sources.local import Local
from vlm2rec.errors import InputError


def raw(items: pl.DataFrame, interactions: pl.DataFrame, pictures=None) -> Given:
    return Given(RawData("given", items, interactions, pictures))


def events(rows) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def shelf(*ids: str, title: str = "a thing") -> pl.DataFrame:
    return pl.DataFrame({"item_id": ids, "title": [title] * len(ids)})


def test_same_data_same_fingerprint(tiny_folder: Path, tmp_path: Path) -> None:
    first = prepare(Local(tiny_folder), tmp_path / "a")
    moved = tiny_folder.rename(tmp_path / "elsewhere")
    second = prepare(Local(moved), tmp_path / "deep" / "b")
    assert first.fingerprint == second.fingerprint
    for name in ("pictures.bin", "items.parquet", "interactions.parquet", "dropped.parquet"):
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes()


@pytest.mark.parametrize("change", ["title", "order", "picture", "fit", "size"])
def test_other_data_other_fingerprint(change: str, tiny_folder: Path, tmp_path: Path) -> None:
    before = prepare(Local(tiny_folder), tmp_path / "a").fingerprint
    options = {}
    if change == "title":
        items = pl.read_parquet(tiny_folder / "items.parquet")
        items.with_columns(pl.col("title").replace("Thing i03", "Thing")).write_parquet(tiny_folder / "items.parquet")
    elif change == "order":
        table = pl.read_parquet(tiny_folder / "interactions.parquet")
        table.with_columns(-pl.col("timestamp")).write_parquet(tiny_folder / "interactions.parquet")
    elif change == "picture":
        Image.new("RGB", (40, 60)).save(tiny_folder / "images" / "i05.png")
    else:
        options = {"fit": {"picture_fit": "aspect"}, "size": {"picture_size": 32}}[change]
    assert prepare(Local(tiny_folder), tmp_path / "b", **options).fingerprint != before


def test_order_is_stable_by_time_then_position(tmp_path: Path) -> None:
    rows = [("v", "c", 5), ("u", "b", 2), ("u", "a", 2), ("v", "a", 1), ("u", "c", 1), ("v", "b", 1), ("u", "d", 2)]
    dataset = prepare(raw(shelf("a", "b", "c", "d"), events(rows)), tmp_path / "out", require=["title"], k_core=0)
    assert dataset.user_ids == ["v", "u"]
    assert [own.tolist() for own in dataset.sequences] == [[0, 1, 2], [2, 1, 0, 3]]
    assert dataset.sequences[0].dtype == np.int32
    assert dataset.interactions["item_id"].to_list() == ["a", "b", "c", "c", "b", "a", "d"]


def test_everything_dropped_is_listed_with_its_reason(tmp_path: Path) -> None:
    items = pl.DataFrame(
        {
            "item_id": ["good", "blank", "bare", "gone", "broken", "alone", "fine"],
            "title": ["Good", " &nbsp; ", "Bare", "Gone", "Broken", "Alone", "Fine"],
            "image": ["good.png", "good.png", None, "gone.png", "broken.png", "alone.png", "fine.png"],
        }
    )
    write_pictures(tmp_path / "images", ["good.png", "fine.png", "alone.png"])
    (tmp_path / "images" / "broken.png").write_bytes((tmp_path / "images" / "good.png").read_bytes()[:90])
    rows = [(f"u{u}", name, t) for u in range(3) for t, name in enumerate(["good", "fine", "broken", "good"])]
    rows += [("short", "good", 1), ("short", "broken", 2), ("short", "broken", 3), ("u0", "alone", 9)]
    table = raw(items, events(rows), tmp_path / "images")
    dataset = prepare(table, tmp_path / "out", k_core=2)
    assert dataset.item_ids == ["good", "fine"]
    assert dataset.user_ids == ["u0", "u1", "u2"]
    listed = {(row[0], row[1]): row[2] for row in pl.read_parquet(tmp_path / "out" / "dropped.parquet").iter_rows()}
    assert listed == {
        ("blank", "item"): "no title",
        ("bare", "item"): "no picture",
        ("gone", "item"): "picture missing",
        ("broken", "item"): "picture broken",
        ("alone", "item"): "k-core",
        ("short", "user"): "fewer than 3 events",
    }
    assert dataset.manifest["dropped"]["item"]["picture broken"] == 1
    assert dataset.manifest["counts"] == {"users": 3, "items": 2, "interactions": 9}


def test_a_broken_picture_counts_before_the_core(tmp_path: Path) -> None:
    """`a` goes for its picture, so u loses its third event, so `b` has no events left."""
    items = pl.DataFrame(
        {"item_id": ["a", "b", "c", "d"], "title": list("abcd"), "image": [f"{x}.png" for x in "abcd"]}
    )
    write_pictures(tmp_path / "images", [f"{x}.png" for x in "bcd"])
    (tmp_path / "images" / "a.png").write_bytes(b"no picture")
    rows = [("u", "a", 1), ("u", "b", 2), ("u", "c", 3), *(("v", x, t) for t, x in enumerate("cdcd"))]
    dataset = prepare(raw(items, events(rows), tmp_path / "images"), tmp_path / "out", k_core=1, picture_size=8)
    assert dataset.item_ids == ["c", "d"]
    assert dataset.user_ids == ["v"]
    only = {}
    for name in "cd":
        with Image.open(tmp_path / "images" / f"{name}.png") as image:
            only[name] = np.asarray(image.convert("RGB").resize((8, 8), Image.Resampling.BICUBIC))
    assert np.array_equal(dataset.pictures[0], only["c"])
    assert np.array_equal(dataset.pictures[1], only["d"])


def test_items_may_lack_pictures_when_only_titles_are_required(tiny_folder: Path, tmp_path: Path) -> None:
    (tiny_folder / "images" / "i00.png").unlink()
    (tiny_folder / "images" / "i01.png").write_bytes(b"\x89PNG")
    dataset = prepare(Local(tiny_folder), tmp_path / "out", require=["title"])
    assert len(dataset.item_ids) == 24
    assert [i for i in range(24) if dataset.pictures[i] is None] == [0, 1]
    pictures = describe(dataset)["pictures"]
    assert (pictures["present"], pictures["missing"], pictures["broken"]) == (22, 1, 1)


def test_one_core_of_zero_keeps_items_that_nobody_bought(tmp_path: Path) -> None:
    rows = [("u", "a", 1), ("u", "b", 2), ("u", "a", 3)]
    zero = prepare(raw(shelf("a", "b", "c"), events(rows)), tmp_path / "0", require=["title"], k_core=0)
    one = prepare(raw(shelf("a", "b", "c"), events(rows)), tmp_path / "1", require=["title"], k_core=1)
    assert (zero.item_ids, one.item_ids) == (["a", "b", "c"], ["a", "b"])


def test_titles_are_unescaped_and_other_columns_kept(tmp_path: Path) -> None:
    assert clean_title(" Tom &amp;amp; Jerry&#39;s\n  bed &lt;2&gt; ") == "Tom & Jerry's bed <2>"
    items = shelf("a", "b").with_columns(price=pl.Series([1.5, None]), tags=pl.Series([["x"], []]))
    table = events([("u", "a", 1), ("u", "b", 2), ("u", "a", 3)]).with_columns(stars=pl.lit(5))
    dataset = prepare(raw(items, table), tmp_path / "out", require=["title"], k_core=0)
    assert dataset.items.columns == ["item_id", "title", "image", "price", "tags"]
    assert dataset.interactions.columns == ["user_id", "item_id", "timestamp", "stars"]


def test_times_may_be_text_fractions_or_dates(tmp_path: Path) -> None:
    for number, times in enumerate((["3", "1", " 2 "], ["2.5", "1", "2"], [2.5, 1.0, 2.0], [3, 1, 2])):
        table = pl.DataFrame({"user_id": ["u"] * 3, "item_id": ["c", "a", "b"], "timestamp": times})
        if number == 3:
            table = table.with_columns(pl.from_epoch("timestamp", "d"))
        dataset = prepare(raw(shelf("a", "b", "c"), table), tmp_path / str(number), require=["title"], k_core=0)
        assert dataset.sequences[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("items", "table", "message"),
    [
        (shelf("a").drop("title"), events([("u", "a", 1)]), "items: has no column title"),
        (shelf("a"), events([("u", "a", 1)]).drop("timestamp"), "interactions: has no column timestamp"),
        (
            shelf("a"),
            events([("u", "a", 1), ("u", "x", 2), ("u", "y", 3)]),
            "nothing is left: 2 of 3 items .* 'x', here like 'a'",
        ),
        (shelf("a", "a"), events([("u", "a", 1)]), "item_id 'a' is there more than once"),
        (shelf("a"), events([("u", "a", 1), ("", "a", 2)]), "1 of 2 lines .* line 2: user_id is empty: ''"),
        (shelf("a"), events([("u", "a", 1.0), ("u", "a", float("nan"))]), "line 2: timestamp is no time: 'NaN'"),
        (shelf("a"), events([("u", "a", "1"), ("u", "a", "May")]), "line 2: timestamp is no time: 'May'"),
        (shelf("a"), events([("u", "a", None), ("u", "a", 2)]), "line 1: timestamp is no time: ''"),
        (shelf("a"), events([("u", "a", True)]), "timestamp holds Boolean"),
        (shelf("a"), events([(1.5, "a", 1)]), "user_id holds Float64"),
        (shelf("a"), events([("u", "a", 1)]), "nothing is left: no user keeps 3 events"),
        (
            shelf("a", title=""),
            events([("u", "a", i) for i in range(9)]),
            r"nothing is left: 1 of 1 items .*\(no title\)",
        ),
        (shelf("a"), events([]), "interactions: has no rows"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(items, table, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        prepare(raw(items, table), tmp_path / "out", require=["title"])
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options", [{"require": ["price"]}, {"require": []}, {"k_core": -1}, {"picture_size": 0}, {"picture_fit": "crop"}]
)
def test_bad_options_are_refused(options, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        prepare(Local(tiny_folder), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_preparing_again_does_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    out, said, drawn = tmp_path / "out", [], []
    first = prepare(Local(tiny_folder), out)
    stamp = (out / "manifest.json").stat().st_mtime_ns
    prepare(Local(tiny_folder), out, notice=said.append, progress=lambda *done: drawn.append(done))
    assert len(said) == 1
    assert drawn == []
    # A copy has the same content but other times of change: it is made, found equal, and thrown away.
    os.utime(tiny_folder / "images" / "i00.png", (1, 1))
    again = prepare(Local(tiny_folder), out, notice=said.append, progress=lambda *done: drawn.append(done))
    assert len(said) == 2
    assert ("pictures", 24, 24) in drawn
    assert again.fingerprint == first.fingerprint
    assert (out / "manifest.json").stat().st_mtime_ns == stamp
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


def test_a_place_that_is_taken_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(Local(tiny_folder), out)
    content = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(InputError, match="other options"):
        prepare(Local(tiny_folder), out, k_core=2)
    Image.new("RGB", (9, 9)).save(tiny_folder / "images" / "i00.png")
    with pytest.raises(InputError, match="other data"):
        prepare(Local(tiny_folder), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == content
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="no prepared data set"):
        prepare(Local(tiny_folder), tmp_path / "notes")
    (tmp_path / "empty").mkdir()
    assert prepare(Local(tiny_folder), tmp_path / "empty").fingerprint
    with pytest.raises(InputError, match="cannot be written"):
        prepare(Local(tiny_folder), tmp_path / "notes" / "mine.txt" / "out")


def test_a_mistake_in_drawing_is_passed_on_and_leaves_nothing(tmp_path: Path) -> None:
    items, interactions = tiny_tables()

    def draw(name: str) -> Image.Image:
        if name == "i20.png":
            raise RuntimeError("bad brush")
        return Image.new("RGB", (10, 10), (int(name[1:3]), 0, 0))

    with pytest.raises(RuntimeError, match="bad brush"):
        prepare(raw(items, interactions, draw), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    drawn = prepare(
        raw(items, interactions, lambda name: Image.new("RGB", (9, 9), (int(name[1:3]), 0, 0))), tmp_path / "o"
    )
    assert [int(drawn.pictures[i][0, 0, 0]) for i in range(24)] == list(range(24))
    assert len(set(drawn.pictures.digests)) == 24


def test_killed_at_any_time_leaves_no_half_data_set(tiny_folder: Path, tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from vlm2rec.data.prepare import prepare\n"
        "from vlm2rec.data.sources.local import Local\n"
        "def tell(stage, done, total):\n"
        "    print(stage, done, flush=True); time.sleep(0.05)\n"
        "prepare(Local(Path(sys.argv[1])), Path(sys.argv[2]), progress=tell)"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", program, str(tiny_folder), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "pictures 12\n" in iter(process.stdout.readline, "")
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    assert prepare(Local(tiny_folder), out).fingerprint == prepare(Local(tiny_folder), tmp_path / "b").fingerprint


@pytest.mark.parametrize("damage", ["no manifest", "other format", "no items", "short pictures", "fewer rows"])
def test_damage_is_noticed(damage: str, tiny_folder: Path, tmp_path: Path) -> None:
    out = prepare(Local(tiny_folder), tmp_path / "out").path
    if damage == "no manifest":
        (out / "manifest.json").unlink()
    elif damage == "other format":
        manifest = json.loads((out / "manifest.json").read_text())
        (out / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    elif damage == "no items":
        (out / "items.parquet").write_bytes(b"PAR1")
    elif damage == "short pictures":
        with (out / "pictures.bin").open("r+b") as file:
            file.truncate(100)
    else:
        pl.read_parquet(out / "interactions.parquet").head(50).write_parquet(out / "interactions.parquet")
    with pytest.raises(InputError, match="prepare"):
        Dataset.load(out)


def test_describe_counts_by_hand(tmp_path: Path) -> None:
    items = pl.DataFrame(
        {
            "item_id": list("abcde"),
            "title": ["Same", "Same", "C", "D", "E"],
            "image": ["1.png", "2.png", "1.png", "", "x"],
        }
    )
    write_pictures(tmp_path / "images", ["1.png", "2.png"])
    rows = [("u", "a", 1), ("u", "a", 2), ("u", "b", 2), ("v", "a", 1), ("v", "c", 2), ("v", "b", 3), ("v", "b", 3)]
    source = raw(items, events(rows), tmp_path / "images")
    dataset = prepare(source, tmp_path / "out", require=["title"], k_core=0, duplicates="keep")
    found = describe(dataset)
    assert (found["users"], found["items"], found["interactions"]) == (2, 5, 7)
    assert found["density"] == pytest.approx(0.7)
    assert found["events_per_user"]["50%"] == 3.5
    assert found["ties"]["share_of_interactions"] == pytest.approx(4 / 7)
    assert found["ties"]["users_whose_last_is_tied"] == 2
    assert found["repeats"]["share_of_interactions"] == pytest.approx(2 / 7)
    assert found["repeats"]["share_of_test_targets"] == 0.5
    assert found["repeats"]["share_of_test_targets_just_before"] == 0.5
    assert found["titles"] == {"missing": 0, "duplicate": 2}
    assert found["pictures"]["duplicate"] == 2
    assert found["pictures"]["missing"] == 2
    # Training events: a twice, c once; so two thirds on one of five items.
    counts = np.array([0, 0, 0, 1, 2])
    pairs = np.abs(counts[:, None] - counts[None]).sum()
    assert found["popularity"]["gini"] == pytest.approx(pairs / (2 * 5 * 3))
    assert found["popularity"]["share_of_top_1%"] == pytest.approx(2 / 3)
    assert found["popularity"]["items_without_training_events"] == 3
    json.dumps(found)


def test_reading_data_needs_no_torch() -> None:
    modules = (
        "vlm2rec.data.prepare, vlm2rec.data.describe, vlm2rec.data.candidates, vlm2rec.metrics, vlm2rec.embeddings"
    )
    program = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_movietweetings_has_the_stated_counts(shared_data: Path, tmp_path: Path) -> None:
    dataset = prepare(Local(shared_data / "movietweetings100k"), tmp_path / "mt", picture_size=16)
    assert dataset.manifest["counts"] == {"users": 3885, "items": 1788, "interactions": 55492}
    assert all(len(own) >= 5 for own in dataset.sequences)
    assert np.bincount(np.concatenate(dataset.sequences)).min() >= 5
    # The sequences, made once more the plain way from the raw table.
    table = pl.read_parquet(shared_data / "movietweetings100k" / "interactions.parquet")
    table = table.filter(pl.col("item_id").is_in(dataset.item_ids)).sort("timestamp", maintain_order=True)
    expected = dict(table.group_by("user_id", maintain_order=True).agg("item_id").iter_rows())
    for user, own in zip(dataset.user_ids, dataset.sequences, strict=True):
        assert [dataset.item_ids[item] for item in own] == expected[user]


def test_tags_that_dress_a_text_are_taken_out_of_titles() -> None:
    assert clean_title("<b>Soap</b>,<br/>5 &lt;i&gt;bars&lt;/i&gt; <font color='red'>NEW</font>") == "Soap , 5 bars NEW"
    for title in ("I <3 you", "a < b and c > d", "<Untitled>", "bed <2>"):
        assert clean_title(title) == title
    rng = np.random.default_rng(0)
    parts = [
        "<b>",
        "</p>",
        "&amp;",
        "&lt;br&gt;",
        "\x1c",
        "\u2003",
        "\x85",
        " ",
        "a",
        "<",
        ">",
        "3",
        "&nbsp;",
        "\n",
        "é",
    ]
    titles = ["".join(parts[k] for k in rng.integers(0, len(parts), 8)) for _ in range(2000)] + [None]
    expected = [clean_title(title or "") for title in titles]
    assert clean_titles(pl.Series(titles)).to_list() == expected


def test_a_path_is_a_path_whatever_is_in_it(tiny_folder: Path, tmp_path: Path) -> None:
    """Brackets are no patterns: the folder beside it must not be read in its place."""
    other = tmp_path / "raw1"
    write_pictures(other / "images", [])
    for name, table in zip(("items", "interactions"), tiny_tables(), strict=True):
        table.with_columns(pl.col("item_id").str.to_uppercase()).write_parquet(other / f"{name}.parquet")
    odd = tiny_folder.rename(tmp_path / "raw[1]")
    made = prepare(Local(odd), tmp_path / "data[1] *", picture_size=16)
    assert Dataset.load(made.path).item_ids == [f"i{n:02d}" for n in range(24)]
    assert describe(made)["titles"] == {"missing": 0, "duplicate": 0}


def test_another_reading_of_the_same_files_is_other_data(tiny_folder: Path, tmp_path: Path) -> None:
    items = pl.read_parquet(tiny_folder / "items.parquet")
    items.with_columns(name=pl.col("title").str.to_uppercase()).write_parquet(tiny_folder / "items.parquet")
    out = tmp_path / "out"
    prepare(Local(tiny_folder), out, picture_size=16)
    for reading in (Local(tiny_folder, {"title": "name"}), Local(tiny_folder, time_unit="ms")):
        with pytest.raises(InputError, match="other data"):
            prepare(reading, out, picture_size=16)
    table = pl.read_parquet(tiny_folder / "interactions.parquet")
    table.with_columns(pl.col("timestamp") * 2).write_parquet(tiny_folder / "interactions.parquet")
    with pytest.raises(InputError, match="other data"):  # though the order is the same
        prepare(Local(tiny_folder), out, picture_size=16)


def test_where_nothing_can_be_put_is_said_before_the_work(tiny_folder: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path / "real")
    for out in (tmp_path / "link", Path(), tmp_path / "real"):
        with pytest.raises(InputError, match="cannot be replaced"):
            prepare(Local(tiny_folder / "none"), out)
    with pytest.raises(InputError, match="--images"):
        prepare(Local(tiny_folder), tmp_path / "out", require=["title"], pictures=tmp_path / "typo")


def test_titles_are_as_clean_the_second_time() -> None:
    for title in ("<b<b>> x", "&amp;lt;i&amp;gt; y", "Rules&regulations", "Salt&notes", "a&#8482 b", "&<b></b>amp;lt;"):
        once = clean_title(title)
        assert clean_title(once) == once
    assert clean_title("Rules&regulations, Salt&notes") == "Rules&regulations, Salt&notes"
    assert clean_title("a&#8482 b &eacute;") == "a\u2122 b \u00e9"


def test_pictures_may_be_named_by_numbers(tmp_path: Path) -> None:
    items = shelf("a", "b", "c").with_columns(image=pl.Series([1, 2, None]))
    rows = [("u", "a", 1), ("u", "b", 2), ("u", "a", 3)]
    source = raw(items, events(rows), tmp_path / "images")
    with pytest.raises(InputError, match="images: no such folder"):
        prepare(source, tmp_path / "out", k_core=0)
    write_pictures(tmp_path / "images", ["1.png", "2.png"])
    assert prepare(source, tmp_path / "out", k_core=0).item_ids == ["a", "b"]
