import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_run import fake_dataset, fake_run
from families import build
from scipy.stats import ttest_rel
from test_compare import per_user
from test_seqrec import SMALL
from tiny_job import raw_config, write_config
from typer.testing import CliRunner

from vlm2rec.cli.verbs import app
from vlm2rec.compare import holm
from vlm2rec.config import parse_config, read_toml
from vlm2rec.data.dataset import Dataset
from vlm2rec.errors import InputError
from vlm2rec.experiments.paper import ALL, EXPERIMENTS
from vlm2rec.experiments.plan import make_plan
from vlm2rec.experiments.runner import merged_tasks, run_experiment, show_experiment
from vlm2rec.experiments.shop import packaged
from vlm2rec.experiments.tables import Results, write_tables

TABLE2, TABLE4 = EXPERIMENTS["table2"], EXPERIMENTS["table4"]
PAPER = {
    "gru4rec", "sasrec", "bert", "clip", "llm_vanilla", "vlm_vanilla_int", "vlm_vanilla_ext", "llm_sft", "vlm_sft_int",
    "vlm_sft_ext", "llmemb", "llm2rec", "slim", "slim_plus", "vlm_prompt", "notellm2", "vlm2rec",
}  # fmt: skip
RAW = {"data": {"path": "data/any"}, "preset": "small"}
PAIR = {"rows": {"pair": {"method": {"text": "t", "image": "i"}}}}


def plan(raw: dict[str, Any], table: str = "table2", seeds: tuple[int, ...] = (0, 1), **more: Any) -> Any:
    return make_plan(EXPERIMENTS[table], raw, seeds, Path("out"), **more)


OTHER = {"source": {"path": "data/other"}, "families": {"a": {"label": "A"}, "b": {"backbone": {"path": "b"}}}}
RUNNING = [name for name, experiment in EXPERIMENTS.items() if experiment.rows]


@pytest.mark.parametrize("table", ["table2", "table4"])
def test_every_row_of_the_paper_is_there_and_its_configuration_valid(table: str) -> None:
    made = plan({**RAW, **PAIR}, table)
    rows = {cell.row.name for cell in made.cells}
    assert rows >= PAPER | {"random", "poprec", "itemknn", "pair"} and not made.left_out
    assert len({cell.folder for cell in made.cells}) == len(made.cells)
    by_name = {cell.row.name: cell.config for cell in made.cells}
    assert by_name["llm_sft"].prompt.modalities == "text"
    assert by_name["vlm_sft_int"].prompt.fusion == "internal"
    assert by_name["slim_plus"].method.encoder == "student"
    assert all(config.seqrec.backbones == ("sasrec", "gru4rec") for config in by_name.values())


def test_tables_share_their_runs() -> None:
    one, other = ({c.folder: c.config for c in plan({**RAW, **PAIR}, table).cells} for table in ("table2", "table4"))
    assert set(one) - set(other) == {Path("out/runs/hybrid-seed0"), Path("out/runs/hybrid-seed1")}
    assert all(other[folder] == config for folder, config in one.items() if folder in other)


def test_a_folder_holds_one_configuration_whichever_experiment_asks_for_it() -> None:
    found: dict[Path, Any] = {}
    for name in RUNNING:
        made = plan({**RAW, **PAIR, **OTHER}, name)
        assert not made.left_out
        for cell in made.cells:
            assert found.setdefault(cell.folder, cell.config) == cell.config, cell
            assert set(cell.needs) <= {other.folder for other in made.cells}
    assert {"vlm_vanilla_ext-seed0", "vlm_sft_ext-seed1", "vlm2rec-seed1"} <= {folder.name for folder in found}
    probes = {config.monitor.probes for config in found.values()}
    assert len(probes) == 1 and probes != {0}  # or runs could not serve figure 1b too


def test_rows_of_the_papers_experiments() -> None:
    rows = {name: {cell.row.name for cell in plan({**RAW, **OTHER}, name).shown} for name in RUNNING}
    assert rows["figure1a"] == rows["table1"] == {"vlm_vanilla_ext", "vlm_sft_ext", "vlm2rec"}
    assert rows["figure1b"] == {"vlm_sft_ext", "vlm2rec"}
    assert rows["table5"] >= {"vlm2rec", "no_wpcl", "no_penalty", "no_stop_gradient", "no_crtr", "vlm_sft_ext"}
    assert rows["table7"] >= {f"vlm2rec_k{users}" for users in (128, 256, 512, 1024)} | {"llmemb", "notellm2"}
    assert rows["figure4"] == {"vanilla_a", "vlm2rec_a", "vanilla_b", "vlm2rec_b"}
    assert ALL[0] == "figure1a" and set(ALL) <= set(EXPERIMENTS) - {"table6", "figure4"}  # those need further files


def test_what_sets_a_row_apart() -> None:
    configs = {cell.row.name: cell.config for name in ("table5", "table7") for cell in plan(RAW, name).cells}
    assert not configs["no_wpcl"].objective.contrast and configs["vlm2rec"].objective.contrast
    assert (configs["no_penalty"].objective.beta, configs["no_crtr"].objective.weight) == (0, 0)
    assert not configs["no_stop_gradient"].objective.stop_gradient
    assert configs["detached_penalty"].objective.penalty == "detached"
    assert configs["sft_modal"].objective.modality_weight == 1 and configs["sft_modal"].method.kind == "sft"
    assert configs["vlm2rec_gated"].prompt.combine == "gated" and configs["sft_unit_sum"].prompt.combine == "unit_sum"
    assert configs["vlm2rec_k128"].training.users == 128


def test_a_grid_shares_the_configurations_own_point() -> None:
    made = plan({**RAW, "objective": {"temperature": 0.5, "weight": 0.3}}, "figure5", seeds=(0,))
    homes = {cell.row.name: cell.folder.name for cell in made.cells}
    assert homes["tau_wpcl_0p5"] == homes["tau_crtr_1"] == homes["vlm2rec"] == "vlm2rec-seed0"
    assert homes["tau_wpcl_0p1"] == "tau_wpcl_0p1-seed0"
    values = {cell.row.name: cell.config.objective for cell in made.cells}
    assert values["tau_crtr_0p001"].crtr_temperature == 0.001 and values["tau_crtr_0p001"].temperature == 0.5
    assert "lambda_0p3" not in values and values["lambda_1"].weight == 1
    few = {cell.row.name: cell.folder for cell in plan({**RAW, "training": {"users": 512}}, "table7").cells}
    assert few["vlm2rec_k512"] == few["vlm2rec"] != few["vlm2rec_k256"]
    alone = plan({**RAW, "objective": {"temperature": 0.5}}, "figure5", seeds=(0,), only=["tau_wpcl_0p5"])
    assert [cell.folder.name for cell in alone.cells] == ["vlm2rec-seed0"]


def test_families_come_from_the_file() -> None:
    made = plan({**RAW, **OTHER}, "figure4", seeds=(0,))
    configs = {cell.row.name: cell for cell in made.cells}
    assert configs["vlm2rec_b"].config.backbone.path == "b" and configs["vlm2rec_b"].row.label == "b, VLM2Rec"
    assert configs["vlm2rec_a"].folder.name == "vlm2rec-seed0"  # it is the file's own backbone
    assert {cell.row.name for cell in plan(RAW, "figure4").cells} == {"vanilla_own", "vlm2rec_own"}
    for wrong in ({"a": 3}, {"a": {"backbone": "b"}}):
        with pytest.raises(InputError, match=r"families\.a: give sections"):
            plan({**RAW, "families": wrong}, "figure4")


def test_rows_trained_on_another_data_set() -> None:
    made = plan({**RAW, **OTHER}, "table6")
    cells = {(cell.row.name, cell.seed): cell for cell in made.cells}
    source, target = cells["vlm2rec_source", 1], cells["vlm2rec_transfer", 1]
    assert source.config.data.path == Path("data/other") and source.until == "evaluate"
    assert target.config.data.path == Path("data/any") and target.config.method.source == source.folder
    assert made.cells.index(source) < made.cells.index(target) and source not in made.shown
    only = plan({**RAW, **OTHER}, "table6", only=["vlm_sft_ext_transfer"], seeds=(0,))
    assert [cell.row.name for cell in only.cells] == ["vlm_sft_ext_source", "vlm_sft_ext_transfer"]
    left_out = plan(RAW, "table6").left_out
    assert left_out["vlm2rec_transfer"] == "needs source.path, another data set"
    assert {cell.row.name for cell in plan(RAW, "table6").cells} == {"llm_vanilla", "vlm_vanilla_ext"}


def test_missing_parts_are_looked_at_by_the_encoders_that_stand_already() -> None:
    cells = {(cell.row.name, cell.seed): cell for cell in plan(RAW, "missing").cells}
    assert cells["vlm2rec_missing", 0].config.method.source == cells["vlm2rec", 0].folder
    assert cells["vlm2rec", 0].config == next(c.config for c in plan(RAW, "table1").cells if c.row.name == "vlm2rec")
    assert cells["vlm2rec_missing", 0].config.evaluation.missing
    assert cells["vlm_vanilla_ext_missing", 0].config.method.kind == "vanilla"


def test_the_runs_of_several_experiments_are_each_done_once_and_have_names_of_their_own() -> None:
    plans = [plan({**RAW, **OTHER}, name, seeds=(0,)) for name in ("table1", "missing", "table4", "table6")]
    tasks = merged_tasks(plans)
    assert len({task.folder for task in tasks}) == len({task.name for task in tasks}) == len(tasks)
    names = {task.folder.name: task for task in tasks}
    assert names["vlm2rec-seed0"].until == "report"  # table 1 would stop before
    assert names["vlm2rec_missing-seed0"].name == "VLM2Rec (vlm2rec_missing), seed 0"
    for task in tasks:
        assert all(tasks.index(names[folder.name]) < tasks.index(task) for folder in task.needs)


def test_what_no_seed_changes_runs_once_for_task_1() -> None:
    for table, runs in (("table2", 1), ("table4", 2)):
        cells = plan(RAW, table).cells
        assert len([cell for cell in cells if cell.row.name == "vlm_vanilla_ext"]) == runs
        assert len([cell for cell in cells if cell.row.name == "vlm_sft_ext"]) == 2


def test_settings_of_rows() -> None:
    rows = {"llm*": {"backbone": {"path": "some/llm"}}, "llmemb": {"method": {"steps": 7}, "training": {"lr": 3e-3}}}
    cells = {cell.row.name: cell.config for cell in plan({**RAW, "rows": rows, "training": {"lr": 1e-3}}).cells}
    assert {name for name, config in cells.items() if config.backbone.path == "some/llm"} == {
        "llm_vanilla", "llm_sft", "llmemb", "llm2rec",
    }  # fmt: skip
    assert cells["llmemb"].method.steps == 7 and cells["llmemb"].training.lr == 3e-3
    assert cells["llm2rec"].training.lr == 1e-3
    assert cells["hybrid"].method.sequential == Path("out/runs/sasrec-seed1")


def test_rows_left_out_say_why() -> None:
    assert plan(RAW).left_out == {"pair": "needs rows.pair.method.text and rows.pair.method.image"}
    found = plan({**RAW, "without": {"clip": "none here"}}, without=["sasrec"]).left_out
    assert found["clip"] == "none here"
    assert (found["sasrec"], found["hybrid"]) == ("not asked for", "needs the row sasrec")
    assert {cell.row.name for cell in plan(RAW, only=["bert", "clip"]).cells} == {"bert", "clip"}


def test_what_is_wrong_is_one_line() -> None:
    def refused(message: str, raw: dict[str, Any], **more: Any) -> None:
        with pytest.raises(InputError, match=message) as caught:
            plan({**RAW, **raw}, **more)
        assert "\n" not in str(caught.value)

    refused(r"rows\.slimm: .*did you mean slim", {"rows": {"slimm": {}}})
    refused("no row vlmrec; did you mean vlm2rec", {}, only=["vlmrec"])
    refused(
        r"row llmemb: unknown key method\.step; did you mean method\.steps",
        {"rows": {"llmemb": {"method": {"step": 1}}}},
    )
    refused(r"rows\.bert\.evaluation: is the same for all rows", {"rows": {"bert": {"evaluation": {"users": 5}}}})
    refused(r"rows\.bert = 3: give sections", {"rows": {"bert": 3}})
    refused("no row is left to run .pair needs rows.pair.method.text", {}, only=["pair"])
    refused("seeds 0, 0: one is there twice", {}, seeds=(0, 0))
    refused(r"rows\.bert\.method\.kind: a row is its method", {"rows": {"bert": {"method": {"kind": "clip"}}}})
    refused(r"rows\.bert\.seed: .*use --seeds", {"rows": {"bert": {"seed": 3}}})
    refused(r"rows\.bert\.method = 'mean': give a setting", {"rows": {"bert": {"method": "mean"}}})
    refused("without = 'clip': give a table", {"without": "clip"})
    plan({**RAW, "rows": {"hybrid": {"training": {"lr": 1e-3}}}, "without": {"hybrid": "no time"}}, "table4")
    with pytest.raises(InputError, match=r"no experiment table9; there are figure1a, .*table2, .*missing"):
        run_experiment("table9", None, Path("out"))


def test_packaged_files_are_valid() -> None:
    shop = {**packaged("shop.toml"), "data": {"path": "x"}}
    assert {cell.row.name for cell in plan(shop).cells} >= PAPER - {"clip"}
    quick = packaged("quick.toml")
    assert {cell.config.evaluation.users for cell in plan({**RAW, **quick}).cells} == {500}


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Two seeds of three rows whose order of merit is known, and a counting row."""
    folder = tmp_path_factory.mktemp("fakes")
    shop = fake_dataset(folder / "data")
    kinds = {"poprec": ("poprec", 0.1), "vlm_vanilla_ext": ("vanilla", 0.3), "vlm_sft_ext": ("sft", 0.8)}
    kinds["vlm2rec"] = ("vlm2rec", 2.5)
    return {
        row: [fake_run(folder / f"{row}-{seed}", shop, kind, seed, strength, strength) for seed in (0, 1)]
        for row, (kind, strength) in kinds.items()
    }


def test_a_table_of_known_figures(fakes: dict[str, list[Path]], tmp_path: Path) -> None:
    text = write_tables(TABLE2, Results(fakes, {"clip": "none here", "bert": "not asked for"}), tmp_path)
    page = (tmp_path / "table2.md").read_text()
    values = [json.loads((run / "results.json").read_text())["retrieval"] for run in fakes["vlm2rec"]]
    cell = "{:.4f} ± {:.4f}".format(
        *(f([v["sampled"]["N@20"] for v in values]) for f in (np.mean, lambda v: np.std(v, ddof=1)))
    )
    assert f"{cell}*¹" in text.replace("¹*", "*¹") and f"**{cell}***" in page
    second = next(line for line in text.splitlines() if line.startswith("VLM SFT (Ext.)"))
    assert "²" in second and "¹" not in second
    assert "clip (none here)" in page and "BERT" not in page and "An oracle" not in page
    assert "\\textbf" in (tmp_path / "table2.tex").read_text()
    rows = list(csv.DictReader((tmp_path / "table2.csv").open()))
    assert len(rows) == 4 * 4 * 4  # rows, candidate sets, metrics
    found = next(r for r in rows if (r["row"], r["candidates"], r["metric"]) == ("vlm2rec", "full", "H@10"))
    assert float(found["mean"]) == pytest.approx(np.mean([v["full"]["H@10"] for v in values]))


def test_every_row_is_tested_against_vlm2rec(fakes: dict[str, list[Path]], tmp_path: Path) -> None:
    write_tables(TABLE2, Results(fakes, {}), tmp_path)
    tests = list(csv.DictReader((tmp_path / "table2-tests.csv").open()))
    over = [t for t in tests if not t["seed"]]
    assert {(t["first"], t["second"]) for t in over} == {
        ("VLM2Rec", name) for name in ("PopRec", "VLM vanilla (Ext.)", "VLM SFT (Ext.)")
    }
    assert {t["measure"] for t in over} == {f"{s}.f2f" for s in ("sampled", "matched", "full", "full_unseen")}
    ours, theirs = (np.mean([per_user(run) for run in fakes[row]], axis=0) for row in ("vlm2rec", "vlm_sft_ext"))
    one = next(t for t in over if (t["second"], t["measure"]) == ("VLM SFT (Ext.)", "sampled.f2f"))
    assert float(one["p"]) == pytest.approx(ttest_rel(ours, theirs).pvalue)
    assert [float(t["p_holm"]) for t in over] == pytest.approx(holm([float(t["p"]) for t in over]))
    assert len(tests) == 3 * len(over)  # and two seeds apart


def test_no_star_where_any_row_keeps_up(fakes: dict[str, list[Path]], tmp_path: Path) -> None:
    equal = [Path(shutil.copytree(run, tmp_path / run.name)) for run in fakes["vlm2rec"]]
    rows = {**fakes, "vlm_sft_ext": equal}
    text = write_tables(TABLE2, Results(rows, {}), tmp_path)
    assert "*" not in text.replace("* VLM2Rec ahead", "")


@pytest.fixture(scope="module")
def tiny(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of runs that take a second."""
    folder = tmp_path_factory.mktemp("tiny")
    numbers = {**SMALL.model_dump(mode="json"), "epochs": 2, "norm": "l2"}
    raw = raw_config(tiny_dataset, build("llava", folder / "checkpoint"), "sft", seqrec=numbers)
    raw["training"]["epochs"] = 1
    return write_config(folder / "tiny.toml", parse_config(raw))


ROWS = ["poprec", "sasrec", "bert", "vlm_sft_ext", "vlm2rec", "hybrid"]


def test_rows_that_cannot_run_do_not_stop_the_others(tiny: Path, tmp_path: Path) -> None:
    asked = [
        "experiment",
        "run",
        "table2",
        str(tiny),
        "--seeds",
        "0,1",
        "--only",
        ",".join(ROWS),
        "--out",
        str(tmp_path),
    ]
    nowhere = ["--set", f"rows.bert.method.path={tmp_path / 'nowhere'}", "--set", "seqrec.backbones=['sasrec']"]
    done = CliRunner().invoke(app, [*asked, *nowhere])
    assert isinstance(done.exception, InputError) and "stands without 1 of its runs (bert, seed 0: " in str(
        done.exception
    )
    table = show_experiment("table2", tmp_path)
    assert "SASRec + VLM2Rec" in table and "VLM SFT (Ext.)" in table and "Left out: bert, seed 0 (" in table
    assert not (tmp_path / "runs" / "bert-seed0").exists()

    # Again, without it: nothing is done twice, and table4 goes on from the same runs.
    manifest = tmp_path / "runs" / "vlm2rec-seed1" / "manifest.json"
    before = manifest.read_text()
    rows = [row for row in ROWS if row != "bert"]
    options = {"overrides": ["seqrec.backbones=['sasrec']"], "seeds": (0, 1), "say": lambda line: None}
    page = run_experiment("table2", tiny, tmp_path, only=rows, **options)
    assert manifest.read_text() == before and "BERT" not in page.read_text()
    page = run_experiment("table4", tiny, tmp_path, only=[row for row in rows if row != "hybrid"], **options)
    text = page.read_text()
    assert json.loads(before)["done"].items() <= json.loads(manifest.read_text())["done"].items()
    assert "PopRec: ranked directly" in text
    found = {(r["row"], r["column"]) for r in csv.DictReader((tmp_path / "table4.csv").open())}
    assert found == {("poprec", "GRU4Rec")} | {
        (row, "SASRec") for row in ("poprec", "sasrec", "vlm_sft_ext", "vlm2rec")
    }
    own, direct = (
        next(
            float(r["mean"])
            for r in csv.DictReader((tmp_path / f).open())
            if (r["row"], r["metric"]) == ("sasrec", "N@20")
        )
        for f in ("table4.csv", "table2.csv")
    )
    assert own == direct  # the id row is the same in both tables


def test_a_row_that_diverges_does_not_stop_the_others_and_others_stay_in_the_table(tiny: Path, tmp_path: Path) -> None:
    said: list[str] = []
    overrides = [
        "seqrec.backbones=['sasrec']",
        "rows.vlm_sft_ext.training.lr=1e30",
        "rows.vlm_sft_ext.training.clip=1e30",
    ]
    options = {"overrides": overrides, "seeds": (0,), "say": said.append}
    with pytest.raises(InputError, match=r"without 1 of its runs \(vlm_sft_ext, seed 0: .*not finite"):
        run_experiment("table2", tiny, tmp_path, only=["poprec", "vlm_sft_ext", "vlm2rec"], **options)
    assert "VLM2Rec" in said[-1] and "VLM SFT" not in said[-1]
    page = run_experiment("table2", tiny, tmp_path, only=["sasrec"], **options).read_text()
    assert all(label in page for label in ("PopRec", "SASRec", "VLM2Rec"))  # what was made before is still there
    for override in ("method.kind=sft", "seed=3"):
        with pytest.raises(InputError, match="use "):
            run_experiment("table2", tiny, tmp_path / "other", **{**options, "overrides": [override]})
    assert not (tmp_path / "other").exists()


def test_small_encoders_are_named(fakes: dict[str, list[Path]], tmp_path: Path) -> None:
    shop = fake_dataset(tmp_path / "data")
    folder = fake_run(
        tmp_path / "pair", shop, "pair", settings={"method": {"kind": "pair", "text": "a/x", "image": "y"}}
    )
    assert "x + y" in write_tables(TABLE2, Results({"pair": [folder]}, {}), tmp_path)


def test_the_command_line(tmp_path: Path) -> None:
    listed = CliRunner().invoke(app, ["experiment", "list"]).output
    assert "table2" in listed and "vlm_sft_int" in listed and "all  figure1a" in listed
    for asked, message in (
        (["nothing.toml"], "name a table or figure before it"),
        (["table1", "table8"], "no experiment table8"),
        (["table1", "nothing.toml"], "nothing.toml"),
        (["table1", "table3", "--only", "sasrec", "nothing.toml"], "nothing.toml"),
    ):
        wrong = CliRunner().invoke(app, ["experiment", "run", *asked, "--out", str(tmp_path / "o")])
        assert isinstance(wrong.exception, InputError) and message in str(wrong.exception)
    wrong = CliRunner().invoke(app, ["experiment", "run", "table2", "--seeds", "0,x", "--out", str(tmp_path / "o")])
    assert "give whole numbers" in str(wrong.exception) and not (tmp_path / "o").exists()
    nothing = CliRunner().invoke(app, ["experiment", "show", "table2", "--out", str(tmp_path)])
    assert isinstance(nothing.exception, InputError)


def test_a_run_needs_no_rows(tiny: Path) -> None:
    with pytest.raises(InputError, match="unknown key rows"):
        parse_config({**read_toml(tiny), "rows": {}})
