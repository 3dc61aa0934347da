"""`vlm2rec data …` as a new user types it."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import raw_amazon
from conftest import tiny_tables, write_pictures
from program import Call, check_refused

from vlm2rec.data.dataset import Dataset


@pytest.fixture
def beauty(tmp_path: Path) -> Path:
    """A raw folder of 2014 with pictures for all items but one."""
    folder = tmp_path / "beauty"
    items, log = raw_amazon.tables()
    raw_amazon.write_raw(folder, "2014", items, log)
    write_pictures(folder / "images", [f"{name}.jpg" for name in items["item_id"][1:]])
    return folder


@pytest.mark.parametrize("release", ["2014", "2018", "2023"])
def test_an_amazon_folder_is_one_command(release: str, call: Call, tmp_path: Path) -> None:
    folder, out = tmp_path / "raw", tmp_path / "data"
    items, log = raw_amazon.tables()
    raw_amazon.write_raw(folder, release, items, log)
    write_pictures(folder / "images", [f"{name}.jpg" for name in items["item_id"][1:]])
    said = call("data", "prepare", f"amazon-{release}", folder, "--out", out)
    assert said.status == 0 and said.out.splitlines() == ["8 users, 5 items, 40 interactions", str(out)]
    assert ("warning: 5-core of the log alone: 8 users, 6 items" in said.err) == (release == "2014")
    dropped = pl.read_parquet(out / "dropped.parquet").rows()
    assert dropped == [(items["item_id"][0], "item", "picture missing")]
    assert {"brand", "category", "price", "url"} < set(Dataset.load(out).items.columns)
    assert {file["name"].partition(".")[0] for file in Dataset.load(out).manifest["made_from"]["files"]} >= {
        "meta_Beauty"
    }


def test_options_come_from_a_file_and_the_command_line_goes_before_it(call: Call, tmp_path: Path) -> None:
    items, log = tiny_tables()
    folder = tmp_path / "raw"
    folder.mkdir()
    items.rename({"item_id": "sku", "title": "name"}).drop("image").write_csv(folder / "items.csv")
    day = pl.from_epoch(pl.col("timestamp") * 86_400).dt.strftime("%d.%m.%Y")
    log.select(uid="user_id", sku="item_id", at=day, stars=pl.lit(4)).write_csv(folder / "interactions.csv")
    config = tmp_path / "mine.toml"
    config.write_text(
        'require = ["title"]\nk_core = 2\ntime_format = "%d.%m.%Y"\nmin_rating = 5\n\n'
        '[columns]\nuser_id = "uid"\nitem_id = "sku"\ntitle = "name"\ntimestamp = "at"\nrating = "stars"\n'
    )
    out = tmp_path / "data"
    asked = ("data", "prepare", "local", folder, "--out", out, "--config", config)
    check_refused(call(*asked), "nothing")
    said = call(*asked, "--min-rating", 4, "--k-core", 0)
    assert said.status == 0, said.err
    made = Dataset.load(out)
    assert (made.manifest["options"]["k_core"], made.manifest["time_unit"]) == (0, "us")
    rest = call("data", "describe", out, "--json")
    assert json.loads(rest.out)["users"] == 40
    for line, message in (
        ("k_cor = 3", "unknown key k_cor; did you mean k_core?"),
        ("bad_lines = 2", "bad_lines = 2"),
        ("picture_fit = 'crop'", "picture_fit = 'crop'"),
        ("k_core = = 3", "not valid TOML"),
    ):
        config.write_text(line + "\n")
        check_refused(call(*asked), message)
    config.write_text("[fetching]\nper_hots = 3\n")
    check_refused(call(*asked, "--download-images"), "unknown key fetching.per_hots; did you mean per_host?")
    check_refused(call(*asked[:-2], "--columns", "user_id"), "write it as ours=theirs")
    check_refused(call(*asked[:-2], "--domain", "Toys"), "has no use for domain")


def test_export_and_prepare_go_round(call: Call, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    call("data", "prepare", "local", tiny_folder, "--out", out, "--picture-size", 32)
    said = call("data", "export", out, "--to", "recbole", "--out", tmp_path / "shop")
    assert said.status == 0 and said.out.strip() == str(tmp_path / "shop")
    shutil.copytree(tiny_folder / "images", tmp_path / "shop" / "images")
    again = tmp_path / "again"
    assert call("data", "prepare", "recbole", tmp_path / "shop", "--out", again, "--picture-size", 32).status == 0
    same = call("data", "check", out, again)
    assert same.status == 0 and "the same data" in same.out
    assert "made otherwise:" in same.out  # of other files
    check_refused(call("data", "export", out, "--to", "recbole", "--out", tmp_path / "shop"), "shop")


def test_check_tells_what_differs(call: Call, tiny_folder: Path, tmp_path: Path) -> None:
    for name, core in (("a", 5), ("b", 6)):
        call("data", "prepare", "local", tiny_folder, "--out", tmp_path / name, "--k-core", core, "--picture-size", 32)
    assert call("data", "check", tmp_path / "a").out.startswith(f"{tmp_path / 'a'}: as it was written, fingerprint")
    said = call("data", "check", tmp_path / "a", tmp_path / "b")
    assert said.status == 1
    assert "other data" in said.out and "k_core: 5 and 6" in said.out and "users: " in said.out


def test_pictures_are_looked_through(call: Call, tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_folder / "images" / "i03.png", tiny_folder / "images" / "i07.png")
    call("data", "prepare", "local", tiny_folder, "--out", tmp_path / "data")
    said = call("data", "pictures", tmp_path / "data", "--out", tmp_path / "looked")
    assert said.status == 0 and "the same file: groups 1, items 2" in said.out
    assert pl.read_parquet(tmp_path / "looked" / "groups.parquet")["item_id"].to_list() == ["i03", "i07"]
    assert "i07" in (tmp_path / "looked" / "pictures.html").read_text() or "Thing i07" in said.out
    assert json.loads(call("data", "pictures", tmp_path / "data", "--json").out)["exact_items"] == 2


def test_two_domains_become_one_data_set(call: Call, tmp_path: Path) -> None:
    items, log = tiny_tables()
    for name in ("toys", "books"):
        folder = tmp_path / "raw" / name
        write_pictures(folder / "images", items["image"].to_list())
        items.write_parquet(folder / "items.parquet")
        log.with_columns(timestamp=1_600_000_000 + pl.col("timestamp") * (1 if name == "toys" else 2)).write_parquet(
            folder / "interactions.parquet"
        )
        assert call("data", "prepare", "local", folder, "--out", tmp_path / name, "--picture-size", 32).status == 0
    said = call("data", "pair", tmp_path / "toys", tmp_path / "books", "--out", tmp_path / "pair")
    assert said.status == 0, said.err
    both = Dataset.load(tmp_path / "pair")
    assert both.n_items == 48 and set(both.items["domain"]) == {"toys", "books"}
    assert call("data", "check", tmp_path / "pair").status == 0


def test_broken_lines_are_said_and_too_many_are_refused(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "ml"
    folder.mkdir()
    ratings = [f"{u}::{m}::5::{978300000 + u * 100 + m}" for u in range(1, 31) for m in range(1, 11)]
    (folder / "movies.dat").write_text("".join(f"{m}::Film {m} (2000)::Drama\n" for m in range(1, 11)))
    (folder / "ratings.dat").write_text("\n".join([*ratings[:150], "7::8", *ratings[150:], "x::1::5::soon"]) + "\n")
    asked = ("data", "prepare", "movielens", folder, "--out", tmp_path / "data", "--require", "title")
    said = call(*asked)
    assert said.status == 0, said.err
    assert "2 of 302 lines cannot be read" in " ".join(said.err.split())
    assert pl.read_parquet(tmp_path / "data" / "broken.parquet")["line"].to_list() == [151, 302]
    shutil.rmtree(tmp_path / "data")
    check_refused(call(*asked, "--bad-lines", 0.001), "2 of 302 lines cannot be read; the first is line 151")


def test_one_table_is_mapped_by_the_option_or_by_a_file(call: Call, tmp_path: Path) -> None:
    items, log = tiny_tables()
    folder = tmp_path / "raw"
    folder.mkdir()
    items.select(id="item_id", name="title").write_csv(folder / "items.csv")
    log.with_row_index("id").write_csv(folder / "interactions.csv")
    asked = ("data", "prepare", "local", folder, "--require", "title", "--k-core", 0, "--out")
    check_refused(
        call(*asked, tmp_path / "a", "--columns", "item_id=id,title=name"),
        "interactions.csv has a column item_id already",
        "--columns items.item_id=id",
    )
    said = call(*asked, tmp_path / "a", "--columns", "items.item_id=id,title=name")
    assert said.status == 0 and said.out.splitlines()[0] == f"40 users, 24 items, {log.height} interactions", said
    config = tmp_path / "mine.toml"
    for number, written in enumerate(('items.item_id = "id"', '"items.item_id" = "id"')):
        config.write_text(f'[columns]\n{written}\ntitle = "name"\n')
        assert call(*asked, tmp_path / f"{number}", "--config", config).status == 0
        manifest = Dataset.load(tmp_path / f"{number}").manifest
        assert manifest["made_from"]["columns"] == {"items.item_id": "id", "title": "name"}
        assert manifest["fingerprint"] == Dataset.load(tmp_path / "a").fingerprint
    config.write_text("[columns]\nitems.item_id = 3\n")
    check_refused(call(*asked, tmp_path / "b", "--config", config), "columns.items.item_id = 3")


def test_copies_are_kept_where_that_is_asked_and_what_follows_is_said(call: Call, tmp_path: Path) -> None:
    items, log = tiny_tables()
    folder = tmp_path / "raw"
    folder.mkdir()
    items.drop("image").write_csv(folder / "items.csv")
    pl.concat([log, log]).write_csv(folder / "interactions.csv")
    asked = ("data", "prepare", "local", folder, "--require", "title", "--out")
    said = call(*asked, tmp_path / "dropped")
    assert said.status == 0
    assert f"dropped {log.height} of {2 * log.height} events (50.0%): copy of an earlier event" in said.err
    assert "test targets" not in said.err + call("data", "describe", tmp_path / "dropped").err
    config = tmp_path / "mine.toml"
    config.write_text('duplicates = "keep"\n')
    said = call(*asked, tmp_path / "kept", "--config", config)
    described = call("data", "describe", tmp_path / "kept")
    for told in (said, described):
        assert "40 of 40 test targets (users u0, u1) are the item of the event just" in told.err
        assert "40 of 40 test targets (users u0, u1) have the same time as the event" in told.err
    assert call(*asked, tmp_path / "again", "--config", config, "--duplicates", "drop").status == 0
    assert Dataset.load(tmp_path / "again").fingerprint == Dataset.load(tmp_path / "dropped").fingerprint
    config.write_text('duplicates = "first"\n')
    check_refused(call(*asked, tmp_path / "none", "--config", config), "duplicates = 'first'")
