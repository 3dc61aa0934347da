"""From Python as from the command line: wrong indices are one line, text is a path, and a changed catalogue is seen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from tiny_job import make_config, write_config

from vlm2rec.compare import compare
from vlm2rec.config import BackboneConfig, PromptConfig, load_config
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.export import export
from vlm2rec.data.pairs import pair
from vlm2rec.data.pictures.lookalikes import look_alike
from vlm2rec.data.pictures.sheet import write_sheet
from vlm2rec.data.pictures.store import PictureFiles, PictureStore
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources.amazon import Amazon
from vlm2rec.data.sources.local import Local, read_table
from vlm2rec.data.sources.movielens import MovieLens
from vlm2rec.data.sources.recbole import RecBole
from vlm2rec.data.splits import Split
from vlm2rec.diagnostics import diagnose
from vlm2rec.diagnostics.files import diagnose_files
from vlm2rec.diagnostics.vectors import read_vectors
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.encode import encode
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.job import continue_run, diagnose_run, run, sweep
from vlm2rec.objectives import InfoNCE, Views
from vlm2rec.report.html import write_report
from vlm2rec.runs import Run, find_runs, read_json, write_json, write_text
from vlm2rec.sessions import Sessions
from vlm2rec.tasks import Cosine, Table, rank_users


def shelf() -> families.Shelf:
    rng = np.random.default_rng(0)
    pictures: list[np.ndarray | None] = [rng.integers(0, 255, (56, 56, 3), dtype=np.uint8) for _ in range(4)]
    return families.Shelf(["a red lamp", "a blue mug", "tea", "", "no picture"], [*pictures, None])


def build(folders: dict[str, Path], cache: bool = True, **prompt: object) -> Encoder:
    settings = BackboneConfig(path=str(folders["llava"]), cache_vision=cache)
    return Encoder.build(settings, PromptConfig.model_validate(prompt)).eval()


def check_one_line(call: Callable[[], object], *says: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said
    for part in says:
        assert part in said, said


# Indices


WRONG_INDICES: dict[str, tuple[Any, str]] = {
    "negative": (-1, "items 0 to 4"),
    "one beyond the end": (5, "items 0 to 4"),
    "a NumPy number beyond the end": (np.int64(9), "items 0 to 4"),
    "a float": (1.0, "float"),
    "a truth value": (True, "bool"),
    "a NumPy truth value": (np.True_, "bool"),
    "text": ("1", "str"),
    "None": (None, "NoneType"),
    "a list": ([1], "list"),
}


@pytest.fixture(scope="module")
def encoder(folders: dict[str, Path]) -> Encoder:
    return build(folders)


@pytest.mark.parametrize("wrong", list(WRONG_INDICES))
def test_a_wrong_index_is_named_with_its_place(encoder: Encoder, wrong: str) -> None:
    index, says = WRONG_INDICES[wrong]
    sessions = Sessions(encoder, shelf())
    for call, place in (
        (lambda: encoder.histories(shelf(), [[0], [1, index]]), "histories[1][1]"),
        (lambda: encoder.prompts(shelf(), [[0], [1, index]]), "histories[1][1]"),
        (lambda: encoder.check(shelf(), [[0], [1, index]]), "histories[1][1]"),
        (lambda: encoder.items(shelf(), [0, 1, index]), "indices[2]"),
        (lambda: sessions.append("u", index), "events[0]"),
        (lambda: sessions.append_many([("u", 0), ("v", index)]), "events[1]"),
        (lambda: sessions.history("u", [0, index]), "[1]"),
    ):
        check_one_line(call, place, says)


@pytest.mark.parametrize(
    ("histories", "says"),
    [
        ([[0], []], "histories[1] is empty"),
        ([0, 1], "histories[0] is 0, one item; give a list of histories"),
        (np.array([0, 1]), "one item; give a list of histories"),
        ("01", "give a list of histories"),
        (3, "give a list of histories"),
        (["01"], "histories[0]"),
        ([None], "histories[0]"),
    ],
)
def test_histories_that_are_no_lists_of_lists(encoder: Encoder, histories: Any, says: str) -> None:
    check_one_line(lambda: encoder.histories(shelf(), histories), says)


def test_numbers_of_numpy_are_numbers(encoder: Encoder) -> None:
    expected = encoder.histories(shelf(), [[0, 2], [1]]).fused
    arrays = [np.array([0, 2]), np.array([1], np.int32)]
    assert torch.equal(encoder.histories(shelf(), arrays).fused, expected)
    assert torch.equal(encoder.histories(shelf(), [[np.int64(0), np.uint8(2)], [1]]).fused, expected)
    assert encoder.histories(shelf(), []).fused.shape == (0, 32)
    assert encoder.items(shelf(), range(2)).fused.shape == (2, 32)


def test_titles_and_pictures_must_be_as_many(encoder: Encoder) -> None:
    catalogue = shelf()
    catalogue.titles.append("a sixth")
    check_one_line(lambda: encoder.histories(catalogue, [[0]]), "6 titles and 5 pictures")


@pytest.mark.parametrize("users", [[-1], [40], [0, 1.0], [True], "0"])
def test_users_that_are_none(tiny_dataset: Dataset, users: Any) -> None:
    split = Split(tiny_dataset)
    given = np.array(users) if isinstance(users, list) else users
    scorer = Table(np.zeros((len(users), split.n_items)))
    check_one_line(lambda: rank_users(scorer, split, given, "test", 0), "users")
    table = EmbeddingTable(tiny_dataset.item_ids, {"fused": np.ones((split.n_items, 2), np.float32)})
    check_one_line(lambda: diagnose(table, table, split, given, 0), "users")


def test_a_scorer_of_others_is_refused(tiny_dataset: Dataset) -> None:
    split, users = Split(tiny_dataset), np.arange(5)
    ones = np.ones((24, 4), np.float32)
    for scorer in (Table(np.zeros((5, 23))), Table(np.zeros((6, 24))), Cosine(ones[:5], ones[:23])):
        check_one_line(lambda: rank_users(scorer, split, users, "test", 0), "24 items", "5 users")  # noqa: B023
    assert rank_users(Cosine(ones[:5], ones), split, users, "test", 0, ("sampled",)).height == 5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda ids: ids[:-1], ("23 rows", "24 items")),
        (lambda ids: [*ids, "new"], ("25 rows", "24 items")),
        (lambda ids: ids[::-1], ("24 rows for 24 items", "row 0 is 'i23' where 'i00' is wanted")),
    ],
)
def test_vectors_of_another_catalogue(
    tiny_dataset: Dataset, tmp_path: Path, change: Callable[[list[str]], list[str]], says: tuple[str, ...]
) -> None:
    ids = change(tiny_dataset.item_ids)
    table = EmbeddingTable(ids, {"fused": np.ones((len(ids), 2), np.float32)})
    table.save(tmp_path / "items")
    check_one_line(lambda: EmbeddingTable.load(tmp_path / "items", tiny_dataset.item_ids), *says)
    split, users = Split(tiny_dataset), np.arange(3)
    histories = EmbeddingTable(tiny_dataset.user_ids[:3], {"fused": np.ones((3, 2), np.float32)})
    check_one_line(lambda: diagnose(histories, table, split, users, 0), *says)
    check_one_line(lambda: table.rows([*tiny_dataset.item_ids[:2], "nobody"]), "1 ids have no embedding", "'nobody'")


def test_a_run_whose_vectors_are_of_others(tiny_dataset: Dataset, folders: dict[str, Path], tmp_path: Path) -> None:
    config = make_config(tiny_dataset, folders["llava"], "vanilla")
    done = run(config, tmp_path / "run", until="encode").path
    table = EmbeddingTable.load(done / "items")
    EmbeddingTable(table.ids[::-1], {view: np.array(table[view]) for view in table.views}).save(done / "items")
    check_one_line(lambda: run(config, done, until="evaluate"), str(done / "items"), "row 0 is 'i23'")


@pytest.mark.parametrize(
    "arguments",
    [
        {"negatives": torch.ones(1, 3, dtype=torch.bool)},
        {"negatives": torch.ones(2, 3)},
        {"positive": torch.tensor([0])},
        {"positive": torch.tensor([0.0, 1.0])},
        {"target": 1, "negatives": torch.ones(2, 1, dtype=torch.bool)},
    ],
)
def test_objectives_do_not_stretch_what_does_not_fit(arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    query, target = torch.randn(2, 4), torch.randn(arguments.get("target", 3), 4)
    negatives = arguments.get("negatives", torch.ones(2, 3, dtype=torch.bool))
    check_one_line(lambda: InfoNCE(0.1)(Views(query), Views(target), negatives, arguments.get("positive")), "give")


# A catalogue that changes


def retitle(catalogue: families.Shelf) -> None:
    catalogue.titles[0] = "a green hat"


def renew_titles(catalogue: families.Shelf) -> None:
    catalogue.titles = ["new " + title for title in catalogue.titles]


def repaint(catalogue: families.Shelf) -> None:
    assert catalogue.pictures[1] is not None
    catalogue.pictures[1][:28] = 0


def swap(catalogue: families.Shelf) -> None:
    catalogue.pictures[0], catalogue.pictures[2] = catalogue.pictures[2], catalogue.pictures[0]


def take_away(catalogue: families.Shelf) -> None:
    catalogue.pictures[2] = None


def bring(catalogue: families.Shelf) -> None:
    catalogue.pictures[4] = np.full((56, 56, 3), 7, np.uint8)


def append(catalogue: families.Shelf) -> None:
    catalogue.titles.append("a sixth")
    catalogue.pictures.append(np.full((56, 56, 3), 99, np.uint8))


def renew_pictures(catalogue: families.Shelf) -> None:
    catalogue.pictures = catalogue.pictures[::-1]


CHANGES = [retitle, renew_titles, repaint, swap, take_away, bring, append, renew_pictures]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("cache", [True, False], ids=["kept", "not kept"])
def test_a_catalogue_that_has_changed_has_new_vectors(
    folders: dict[str, Path], change: Callable[[families.Shelf], None], cache: bool
) -> None:
    encoder, catalogue = build(folders, cache), shelf()
    before = encoder.items(catalogue, range(5))
    change(catalogue)
    found = encoder.items(catalogue, range(len(catalogue.titles)))
    fresh = build(folders, cache).items(catalogue, range(len(catalogue.titles)))
    for one, other in zip(found, fresh, strict=True):
        assert one is not None and other is not None
        torch.testing.assert_close(one, other, atol=2e-5, rtol=0)
    assert not torch.allclose(found.fused[:5], before.fused, atol=1e-3) or change is append
    again = encoder.items(catalogue, range(len(catalogue.titles)))
    assert torch.equal(again.fused, found.fused)


def test_what_was_read_ahead_before_it_changed_is_read_anew(folders: dict[str, Path]) -> None:
    encoder, catalogue = build(folders), shelf()
    encoder.expect([[2], [3]])
    encoder.items(catalogue, [0])  # which leaves threads reading items 2 and 3
    gallery = encoder.gallery
    assert gallery is not None and gallery._coming is not None
    for chunk in list(gallery._coming[1]):  # they are done
        assert chunk.seen
    encoder.expect([[2], [3]])
    encoder.items(catalogue, [0])
    repainted = catalogue.pictures[2]
    assert repainted is not None
    repainted[:] = 0
    found = encoder.items(catalogue, [2, 3])
    torch.testing.assert_close(found.fused, build(folders).items(catalogue, [2, 3]).fused, atol=2e-5, rtol=0)


def test_the_pictures_of_a_data_set_are_not_looked_through(
    tiny_dataset: Dataset, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie in a file that is never written to again, so they are read once and no more."""
    encoder, read = build(folders), []
    picture = PictureStore._picture
    monkeypatch.setattr(PictureStore, "_picture", lambda self, index: read.append(index) or picture(self, index))
    first = encoder.items(tiny_dataset, range(4)).fused
    assert sorted(set(read)) == [0, 1, 2, 3]
    read.clear()
    assert torch.equal(encoder.items(tiny_dataset, range(4)).fused, first) and read == []


@pytest.mark.parametrize("change", [retitle, repaint, take_away], ids=lambda change: change.__name__)
def test_sessions_do_not_go_on_from_what_has_changed(
    folders: dict[str, Path], change: Callable[[families.Shelf], None]
) -> None:
    encoder, catalogue = build(folders), shelf()
    sessions = Sessions(encoder, catalogue)
    for item in (0, 1, 2):
        sessions.append("someone", item)
    change(catalogue)
    with torch.no_grad():
        found = sessions.append("someone", 3).fused
        expected = build(folders).histories(catalogue, [[0, 1, 2, 3]]).fused
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        unchanged = build(folders).histories(shelf(), [[0, 1, 2, 3]]).fused
    assert not torch.allclose(found, unchanged, atol=1e-3)


# Text for a path


@pytest.fixture(scope="module")
def places(tiny_dataset: Dataset, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a config, a table and a page to read."""
    root = tmp_path_factory.mktemp("places")
    config = make_config(tiny_dataset, folders["llava"], "vanilla")
    write_config(root / "config.toml", config)
    run(config, root / "run")
    return root


def test_text_is_a_path(places: Path, tiny_dataset: Dataset, folders: dict[str, Path], tmp_path: Path) -> None:
    """Every public function that takes one."""
    here, out = str(places), str(tmp_path)
    assert load_config(f"{here}/config.toml") == Run.open(f"{here}/run").config
    assert find_runs([f"{here}/run"]) == [places / "run"] == find_runs([here])
    assert Run.create(f"{out}/new", load_config(f"{here}/config.toml")).path == tmp_path / "new"
    assert run(load_config(f"{here}/config.toml"), f"{here}/run", shared=f"{out}/shared").path == places / "run"
    assert continue_run(f"{here}/run", until="report").path == places / "run"
    assert "dropout" in diagnose_run(f"{here}/run")
    assert sweep(f"{here}/config.toml", ["method.kind=poprec"], f"{out}/sweep", say=lambda line: None)
    assert compare([f"{here}/run"]).write(f"{out}/table.md") == tmp_path / "table.md"
    assert write_report([f"{here}/run"], f"{out}/page.html", export=f"{out}/files") == tmp_path / "page.html"
    assert read_json(f"{here}/run/results.json", "results")
    write_json(f"{out}/a.json", {})
    write_text(f"{out}/a.txt", "a")

    table = EmbeddingTable.load(f"{here}/run/items", tiny_dataset.item_ids)
    table.save(f"{out}/table")
    assert read_vectors(f"{out}/table", "text").ids == tiny_dataset.item_ids
    diagnose_files(f"{out}/table", f"{out}/table", str(tiny_dataset.path))

    encoder = Encoder.load(f"{here}/run/model")
    encoder.save(f"{out}/model")
    assert len(encode(encoder, tiny_dataset, [[0]], ["i00"], f"{out}/encoded")) == 1

    assert Dataset.load(str(tiny_dataset.path)).fingerprint == tiny_dataset.fingerprint
    raw = str(tiny_dataset.path.parent / "raw")
    made = prepare(Local(raw), f"{out}/data", picture_size=32, pictures=f"{raw}/images")  # type: ignore[arg-type]
    assert made.path == tmp_path / "data"
    assert len(PictureStore(f"{out}/data")) == 24 and PictureFiles(f"{raw}/images", ["i01.png"])[0] is not None
    export(made, "parquet", f"{out}/exported")
    assert read_table(f"{out}/exported/items.parquet").height == 24
    assert write_sheet(look_alike(made), made, f"{out}/sheet.html") == tmp_path / "sheet.html"
    check_one_line(lambda: pair(made, made, f"{out}/pair"))
    for source in (RecBole, MovieLens, Amazon):
        given = {"release": "2018"} if source is Amazon else {}
        check_one_line(source(f"{out}/nowhere", **given).read, f"{out}/nowhere")  # type: ignore[arg-type,call-arg]


READERS: dict[str, Callable[[Any], object]] = {
    "Encoder": Encoder.load,
    "Dataset": Dataset.load,
    "EmbeddingTable": EmbeddingTable.load,
    "Run": Run.open,
    "diagnose_run": diagnose_run,
    "continue_run": lambda path: continue_run(path, until="report"),
    "find_runs": lambda path: find_runs([path]),
    "compare": lambda path: compare([path]),
    "write_report": lambda path: write_report([path], Path(path).parent / "page.html"),
    "Local": lambda path: Local(path).read(),
    "diagnose_files": lambda path: diagnose_files(f"{path}/a.npy", f"{path}/b.npy", path),
    "backbone": lambda path: Encoder.build(BackboneConfig(path=str(path)), PromptConfig()),
}


@pytest.mark.parametrize("reader", list(READERS))
def test_a_typo_in_a_path_costs_no_hours(reader: str, tmp_path: Path) -> None:
    for path in (tmp_path / "typo" / "x", str(tmp_path / "typo" / "x")):
        with pytest.raises(InputError) as caught:
            READERS[reader](path)
        said = str(caught.value)
        assert "no such" in said or "give a prepared data set" in said, said
        assert "again" not in said and "\n" not in said
