"""Pages and figures of experiments from runs whose figures are known."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_run import counted, fake_dataset, fake_run

from vlm2rec.comparison import Method
from vlm2rec.data.dataset import Dataset
from vlm2rec.diagnostics.cold import BUCKETS
from vlm2rec.diagnostics.missing import CASES
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.errors import InputError
from vlm2rec.experiments.charts import Bars, Sweep
from vlm2rec.experiments.datasets import write_statistics
from vlm2rec.experiments.lines import line_of
from vlm2rec.experiments.ordering import order_notes
from vlm2rec.experiments.paper import EXPERIMENTS
from vlm2rec.experiments.runner import run_experiment, show_experiment
from vlm2rec.experiments.spec import Column, Line, Row
from vlm2rec.experiments.tables import Results, write_tables
from vlm2rec.runs import Run

STRENGTHS = {"vlm_vanilla_ext": ("vanilla", 0.3, 0.3), "vlm_sft_ext": ("sft", 1.0, 0.0), "vlm2rec": ("vlm2rec", 1.5, 1)}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return fake_dataset(tmp_path_factory.mktemp("shop") / "data")


@pytest.fixture
def fakes(shop: Dataset, tmp_path: Path) -> dict[str, list[Path]]:
    return {
        row: [fake_run(tmp_path / f"{row}-{seed}", shop, kind, seed, text, image) for seed in (0, 1)]
        for row, (kind, text, image) in STRENGTHS.items()
    }


def page(name: str, runs: dict[str, list[Path]], out: Path, **left_out: str) -> tuple[str, list[dict[str, str]]]:
    write_tables(EXPERIMENTS[name], Results(runs, left_out), out)
    return (out / f"{name}.md").read_text(), list(csv.DictReader((out / f"{name}.csv").open()))


def change(run: Path, **figures: Any) -> None:
    path = run / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **figures}))


def test_figure_1a(fakes: dict[str, list[Path]], tmp_path: Path) -> None:
    text, rows = page("figure1a", fakes, tmp_path)
    assert text.startswith("# What histories") and "![What histories of one modality can find](figure1a.svg)" in text
    assert all((tmp_path / f"figure1a.{ending}").stat().st_size > 0 for ending in ("svg", "png", "pdf", "tex"))
    found = {(row["row"], row["figure"]): float(row["mean"]) for row in rows}
    values = [json.loads((run / "results.json").read_text()) for run in fakes["vlm_sft_ext"]]
    assert found["vlm_sft_ext", "dropout.v2f"] == pytest.approx(np.mean([v["dropout"]["v2f"] for v in values]))
    start = np.mean([v["reference"]["dropout"]["t2f"] for v in values])
    assert found["vlm_sft_ext", "reference.dropout.t2f"] == pytest.approx(start)
    tests = list(csv.DictReader((tmp_path / "figure1a-tests.csv").open()))
    assert {test["measure"] for test in tests} == {"sampled.f2f", "sampled.t2f", "sampled.v2f"}
    assert {test["second"] for test in tests} == {"VLM vanilla (Ext.)", "VLM SFT (Ext.)"}


def test_table_1_marks_what_is_better(fakes: dict[str, list[Path]], tmp_path: Path) -> None:
    text, rows = page("table1", fakes, tmp_path)
    assert [text.count(f"{view} vectors**") for view in ("text", "image", "fused")] == [1, 1, 1]
    assert not (tmp_path / "table1-tests.csv").exists() and "svg" not in text
    near = {row["row"]: float(row["mean"]) for row in rows if row["figure"] == "geometry.image.A_pos"}
    best = min(near, key=lambda row: near[row])
    assert best == "vlm2rec"  # its pictures know most of what comes next, so they lie nearest
    line = next(line for line in text.partition("image vectors")[2].splitlines() if line.startswith("| VLM2Rec"))
    assert line.split("|")[3].strip().startswith("**")  # A_pos: the least is the best


def probe(run: Path, lines: Sequence[tuple[int, float, float]]) -> None:
    with (run / "metrics.jsonl").open("w") as file:
        for step, text, image in lines:
            line = {"kind": "probe", "step": step, "epoch": 1, "grad_cos_text": text, "grad_cos_image": image}
            file.write(json.dumps(line) + "\n")


def test_figure_1b(fakes: dict[str, list[Path]], tmp_path: Path) -> None:
    runs = {row: fakes[row] for row in ("vlm_sft_ext", "vlm2rec")}
    for row, image in (("vlm_sft_ext", 0.1), ("vlm2rec", 0.7)):
        for seed, run in enumerate(runs[row]):
            lines = [(0, 0.8, 0.6), (2, 0.9, 0.5), (20, 0.95, image + 0.2), (200, 0.99, image + 0.1 * seed)]
            probe(run, [*lines, (200, 0.99, image + 0.1 * seed)])  # a killed run may have written one twice
    text, rows = page("figure1b", runs, tmp_path)
    assert "figure1b.svg" in text and (tmp_path / "figure1b.png").stat().st_size > 0
    found = {(r["row"], r["figure"]): r for r in rows}
    assert len(rows) == 2 * 2 * 4  # rows, modalities, steps
    end = found["vlm_sft_ext", "probe.200.grad_cos_image"]
    assert float(end["mean"]) == pytest.approx(0.15) and float(end["sd"]) == pytest.approx(np.std([0.1, 0.2], ddof=1))
    line = next(line for line in text.splitlines() if line.startswith("| VLM SFT"))
    cells = [cell.strip() for cell in line.split("|")[3:-1]]
    assert cells[0] == "0.800 ± 0.000" and cells[3] == "0.990 ± 0.000"  # text: start, 1%, 10%, end
    assert cells[4:] == ["0.600 ± 0.000", "0.500 ± 0.000", "0.300 ± 0.000", "0.150 ± 0.071"]


def test_runs_without_probes_have_no_curves(fakes: dict[str, list[Path]], tmp_path: Path) -> None:
    for run in (*fakes["vlm_sft_ext"], *fakes["vlm2rec"]):
        (run / "metrics.jsonl").unlink()
    text, rows = page("figure1b", fakes, tmp_path)
    assert not rows and "svg" not in text and not (tmp_path / "figure1b.svg").exists()


def test_figure_3_counts_users_and_leaves_out_empty_buckets(fakes: dict[str, list[Path]], tmp_path: Path) -> None:
    for row, runs in fakes.items():
        for run in runs:
            best = 0.5 if row == "vlm2rec" else 0.2
            few = {"users": 12, "sampled": best + 0.4, "full": 0.1}
            bucket = {
                "1-5": few,
                "6-10": {"users": 40, "sampled": best, "full": 0},
                "21+": {"users": 3, "sampled": 0.4},
            }
            change(run, cold={"sasrec": bucket, "retrieval": bucket})
    text, rows = page("figure3", {row: fakes[row] for row in ("vlm_sft_ext", "vlm2rec")}, tmp_path)
    headers = [line.split("|")[3:-1] for line in text.splitlines() if line.startswith("| method") and "1-5" in line]
    assert len(headers) == 2 and all([cell.strip() for cell in header] == ["1-5", "6-10", "21+"] for header in headers)
    assert [line.split() for line in text.splitlines() if line.startswith("| all")] == [
        ["|", "all", "|", "12", "|", "40", "|", "3", "|"]
    ]
    users = {row["figure"]: float(row["mean"]) for row in rows if row["figure"].endswith("users")}
    assert users == {
        "cold.retrieval.1-5.users": 12, "cold.retrieval.6-10.users": 40, "cold.retrieval.21+.users": 3,
    }  # fmt: skip
    # Only what enough users say is the best; what few do stands in brackets.
    assert "figure3.svg" in text and "**0.5000 ± 0.0000**" in text
    assert "(0.9000 ± 0.0000)" in text and "**0.9" not in text and "in brackets: fewer than 30 users" in text
    assert "(12 users)" in (tmp_path / "figure3.svg").read_text()


def test_the_buckets_are_those_that_are_measured() -> None:
    sheet = EXPERIMENTS["figure3"].sheets[0]
    assert [column.heading for column in sheet.columns] == list(BUCKETS)


def test_table_7_tells_what_training_and_encoding_took(fakes: dict[str, list[Path]], tmp_path: Path) -> None:
    for seed, run in enumerate(fakes["vlm2rec"]):
        opened = Run.open(run)
        opened.finish("train", steps=30, seconds=60.0 * (seed + 1) * 3, users=77)  # three epochs
        items = EmbeddingTable.load(run / "items")
        EmbeddingTable(items.ids, items.views, {"seconds": 5.0}).save(run / "items")
    text, rows = page("table7", {"vlm2rec": fakes["vlm2rec"], "vlm_sft_ext": fakes["vlm_sft_ext"]}, tmp_path)
    found = {row["figure"]: float(row["mean"]) for row in rows if row["row"] == "vlm2rec"}
    assert found["derived.minutes"] == pytest.approx(4.5) and found["derived.epoch_minutes"] == pytest.approx(1.5)
    assert found["derived.users"] == 77 and found["derived.item_seconds"] == 5
    assert "min an epoch" in text
    assert not any(row["figure"].startswith("derived") for row in rows if row["row"] == "vlm_sft_ext")


def test_table_3_needs_no_runs(shop: Dataset, tmp_path: Path) -> None:
    other = fake_dataset(tmp_path / "bare", pictures=False, seed=3)
    config = tmp_path / "two.toml"
    config.write_text(f"datasets = ['{other.path}']\n[data]\npath = '{shop.path}'\n")
    said: list[str] = []
    path = run_experiment("table3", config, tmp_path / "out", say=said.append)
    rows = list(csv.DictReader((tmp_path / "out" / "table3.csv").open()))
    found = {(row["row"], row["figure"]): float(row["mean"]) for row in rows}
    assert found[str(shop.path), "users"] == len(shop.user_ids) and found[str(other.path), "pictures.missing"] == 130
    density = shop.interactions.height / len(shop.user_ids) / len(shop.item_ids)
    assert found[str(shop.path), "density"] == pytest.approx(density)
    assert "| method" not in path.read_text() and "seeds" not in path.read_text()
    assert show_experiment("table3", tmp_path / "out") in said[-1]
    with pytest.raises(InputError, match=r"datasets = 3: give a list"):
        run_experiment("table3", config, tmp_path / "o", overrides=["datasets=3"])
    assert not (tmp_path / "o").exists()


def test_missing_parts_have_a_column_each(fakes: dict[str, list[Path]], tmp_path: Path) -> None:
    for run in fakes["vlm2rec"]:
        found = {"sampled": {"N@20": 0.25}, "matched": {"N@20": 0.125}}
        change(run, missing=dict.fromkeys(CASES, found))
    text, rows = page("missing", {"vlm2rec_missing": fakes["vlm2rec"]}, tmp_path)
    found = {row["figure"]: float(row["mean"]) for row in rows if row["figure"].startswith("missing")}
    assert found == {
        f"missing.{case}.{kind}.N@20": value
        for case in CASES
        for kind, value in (("sampled", 0.25), ("matched", 0.125))
    }
    assert "history: pictures alone" in text and "nothing missing" in text


def line(name: str, label: str, values: dict[str, tuple[float, ...]], group: str = "") -> Line:
    """A line with figures of two seeds."""
    return Line(Row(name, label, group, {}), Method(label, "", (0, 1), (), values, {}))


def test_the_papers_order_is_judged_in_the_means_and_by_seed() -> None:
    def judged(**scores: tuple[float, float]) -> list[str]:
        lines = [
            line(name, name.upper(), {"retrieval.sampled.N@20": own, "dropout.t2f": own})
            for name, own in scores.items()
        ]
        return list(order_notes(EXPERIMENTS["table5"], lines))

    middle = {"no_crtr": (0.4, 0.4), "no_stop_gradient": (0.4, 0.4), "no_penalty": (0.4, 0.4)}
    (said,) = judged(vlm2rec=(0.5, 0.5), no_wpcl=(0.1, 0.3), **middle)
    assert "holds in the means and in 2 of 2 seeds" in said and said.startswith("Task 1: ")
    (said,) = judged(vlm2rec=(0.9, 0.3), no_wpcl=(0.1, 0.3), **middle)
    assert "holds in the means and in 1 of 2 seeds" in said
    (said,) = judged(vlm2rec=(0.5, 0.5), no_wpcl=(0.4, 0.4), **middle)  # level is not ahead
    assert "does not hold in the means (NO_WPCL 0.4000 against NO_CRTR 0.4000; " in said and "0 of 2 seeds" in said
    assert judged(vlm2rec=(0.5, 0.5), **middle) == []  # a row is not there


def test_a_run_that_is_the_reference_is_not_tested_against_it(fakes: dict[str, list[Path]], tmp_path: Path) -> None:
    runs = {**fakes, "vlm2rec_k512": fakes["vlm2rec"]}
    write_tables(EXPERIMENTS["table7"], Results(runs, {}), tmp_path)
    tests = list(csv.DictReader((tmp_path / "table7-tests.csv").open()))
    assert {test["second"] for test in tests} == {"VLM SFT (Ext.)"}  # vanilla is no row of this table


def test_bars_of_backbones_stand_by_size() -> None:
    column = Column("Task 1", "retrieval.sampled.N@20")
    scores = {column.figure: (0.3, 0.5)}
    large = line("vlm2rec_l", "L", {"derived.parameters": (7e9, 7e9), **scores}, "large")
    frozen = line("vanilla_l", "V", scores, "large")  # what is not trained does not count its parameters
    small = line("vlm2rec_s", "S", {"derived.parameters": (2.5e6, 2.5e6), **scores})
    chart = Bars("sizes", (column,), by_size=True).drawn([frozen, large, small, line("none", "nothing", {})])
    assert chart is not None and [group.label for group in chart.groups] == ["S (2.5M)", "V (7B)", "L (7B)"]
    (bar,) = chart.groups[0].bars
    assert bar.value == pytest.approx(0.4) and bar.sd == pytest.approx(np.std([0.3, 0.5], ddof=1))
    assert Bars("sizes", (column,)).drawn([line("none", "nothing", {})]) is None


def test_a_sweep_takes_its_values_from_the_runs(shop: Dataset, tmp_path: Path) -> None:
    def at(name: str, weight: float, kind: str = "vlm2rec") -> Line:
        folder = fake_run(tmp_path / name, shop, kind, settings={"objective": {"weight": weight}})
        return line_of(Row(name, name, "λ", {}), [folder])

    panel = Sweep("λ", "objective.weight", ("high", "low"), "vlm2rec", ("sft",), Column("", "retrieval.sampled.N@20"))
    lines = [at("vlm2rec", 0.3), at("high", 1.0), at("low", 0.1), at("sft", 0.3, "sft"), at("other", 0.9)]
    chart = panel.drawn(lines)
    assert chart is not None and chart.log_x
    ours, level = chart.series
    assert list(ours.x) == [0.1, 0.3, 1.0] and ours.label == "vlm2rec"
    expected = [lines[place].method.mean("retrieval.sampled.N@20") for place in (2, 0, 1)]
    assert list(ours.y) == expected
    assert list(level.x) == [0.1, 1.0] and level.y[0] == level.y[1] and level.label == "sft"
    assert panel.drawn(lines[:1]) is None


def claim(text: str) -> str:
    """The sentence about being ahead of every row."""
    (line,) = [line for line in text.splitlines() if line.startswith("* ") and "ahead of every row" in line]
    return line


def test_a_claim_that_rests_on_one_seed_says_so_in_its_sentence(fakes: dict[str, list[Path]], tmp_path: Path) -> None:
    for name in ("table2", "table5"):
        text, _ = page(name, fakes, tmp_path)
        assert "one seed" not in claim(text) and "averaged over seeds" in text
        text, _ = page(name, {row: runs[:1] for row, runs in fakes.items()}, tmp_path)
        assert "VLM2Rec ahead of every row in N@20 on one seed (how far another would move it is not known)" in claim(
            text
        )
        assert "users, on one seed: how far another would move this is not known**" in text
        text, _ = page(name, {**fakes, "vlm_sft_ext": fakes["vlm_sft_ext"][:1]}, tmp_path)
        assert "(on one seed of VLM SFT (Ext.))" in claim(text)
    text, _ = page("table2", {**fakes, "vlm_vanilla_ext": fakes["vlm_vanilla_ext"][:1]}, tmp_path)
    assert "one seed" not in claim(text), "a seed changes nothing of what is not trained"


def test_quick_stands_in_every_file_and_heading(fakes: dict[str, list[Path]], tmp_path: Path) -> None:
    """Said by the runs themselves, so that a page made later of them says it too."""
    for runs in fakes.values():
        for run in runs:
            Run.open(run).record(quick=True)
    for name in ("figure1a", "table5"):
        page(name, fakes, tmp_path / name)
        made = {path.suffix: path for path in (tmp_path / name).iterdir() if "tests" not in path.name}
        for ending in (".md", ".tex"):
            text = made[ending].read_text()
            headings = [line for line in text.splitlines() if line.startswith(("# ", "**")) or "caption" in line]
            assert headings and all("(quick)" in heading for heading in headings), headings
            assert "quick: one seed, few users and few steps; a look, not a result." in text
        for path in (tmp_path / name).glob("*.csv"):
            assert {row["made"] for row in csv.DictReader(path.open())} == {"quick"}
    assert "(quick)" in (tmp_path / "figure1a" / "figure1a.svg").read_text()
    page("figure1a", {row: fakes[row] for row in ("vlm2rec",)}, tmp_path / "again")
    assert "(quick)" in (tmp_path / "again" / "figure1a.md").read_text()


def test_what_is_not_quick_does_not_say_it(fakes: dict[str, list[Path]], tmp_path: Path) -> None:
    text, rows = page("figure1a", fakes, tmp_path)
    assert "quick" not in text and "made" not in rows[0] and "quick" not in (tmp_path / "figure1a.svg").read_text()


def test_statistics_of_a_quick_shop_say_so(shop: Dataset, tmp_path: Path) -> None:
    raw = {"data": {"path": str(shop.path)}}
    write_statistics(EXPERIMENTS["table3"], raw, tmp_path, quick=True)
    assert (tmp_path / "table3.md").read_text().splitlines()[0].endswith("(quick)")
    assert "(quick)" in show_experiment("table3", tmp_path)
    write_statistics(EXPERIMENTS["table3"], raw, tmp_path)
    assert "quick" not in show_experiment("table3", tmp_path)


def test_what_counting_reaches_stands_below_a_table_without_it(
    fakes: dict[str, list[Path]], shop: Dataset, tmp_path: Path
) -> None:
    text, _ = page("table5", fakes, tmp_path / "old")
    assert "Counted on the same users" not in text
    for runs in fakes.values():
        counted(runs[0], shop)
    text, _ = page("table5", fakes, tmp_path / "new")
    found = Run.open(fakes["vlm2rec"][0]).results()["baselines"]
    shown = " / ".join(f"{found['itemknn'][view]['N@20']:.4f}" for view in ("sampled", "matched", "full"))
    (line,) = [line for line in text.splitlines() if line.startswith("Counted on the same users and candidates")]
    assert f"item-kNN {shown}" in line and "chance" in line and "PopRec" in line
    text, _ = page("table2", {**fakes, "itemknn": [fake_run(tmp_path / "knn", shop, "itemknn")]}, tmp_path / "row")
    (line,) = [line for line in text.splitlines() if line.startswith("Counted on the same users and candidates")]
    assert "item-kNN" not in line and "PopRec" in line
