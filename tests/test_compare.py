import csv
import io
import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from fake_run import fake_dataset, fake_run
from scipy.stats import ttest_rel

from vlm2rec.compare import compare, holm, paired_test
from vlm2rec.errors import InputError
from vlm2rec.metrics import ndcg


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return fake_dataset(tmp_path_factory.mktemp("shop") / "data")


@pytest.fixture(scope="module")
def runs(shop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    asked = [("vlm2rec", 1, 0.8), ("poprec", 0, 0.4), ("sft", 1, 0.3), ("vanilla", 0, 0.3)]
    asked += [("random", 0, 0.0), ("sft", 0, 0.3), ("vlm2rec", 0, 0.8)]
    return {(kind, seed): fake_run(folder / f"{kind}-{seed}", shop, kind, seed, 1.0, v) for kind, seed, v in asked}


def per_user(run, task="retrieval", view="sampled"):
    frame = pl.read_parquet(run / "users.parquet").filter((pl.col("task") == task) & (pl.col("view") == view))
    frame = frame.sort("user_id")
    return ndcg(frame["above"].to_numpy(), frame["ties"].to_numpy(), 20)


def test_groups_seeds_in_reading_order(runs):
    found = compare(list(runs.values()))
    assert [(m.label, m.seeds) for m in found.methods] == [
        ("random", (0,)),
        ("poprec", (0,)),
        ("vanilla", (0,)),
        ("sft", (0, 1)),
        ("vlm2rec", (0, 1)),
    ]
    sft = found.methods[3]
    values = [json.loads((runs["sft", s] / "results.json").read_text())["dropout"]["v2f"] for s in (0, 1)]
    assert sft.mean("dropout.v2f") == pytest.approx(np.mean(values))
    assert sft.sd("dropout.v2f") == pytest.approx(abs(values[0] - values[1]) / np.sqrt(2))
    assert found.methods[2].sd("dropout.v2f") is None
    assert found.methods[1].mean("dropout.v2f") is None


def test_users_are_averaged_over_seeds_then_paired(runs):
    found = compare(list(runs.values()))
    for measure, task, view in (("sampled.f2f", "retrieval", "sampled"), ("matched.v2f", "dropout:v2f", "matched")):
        test = next(t for t in found.tests if (t.first, t.second, t.measure) == ("vlm2rec", "sft", measure))
        a, b = (np.mean([per_user(runs[kind, s], task, view) for s in (0, 1)], axis=0) for kind in ("vlm2rec", "sft"))
        expected = ttest_rel(a, b)
        assert (test.t, test.p) == pytest.approx((expected.statistic, expected.pvalue))
        interval = expected.confidence_interval()
        assert (test.low, test.high) == pytest.approx((interval.low, interval.high))
        assert test.difference == pytest.approx((a - b).mean())
        assert test.users == 60


def test_f2f_is_what_retrieval_ranked(runs):
    """Figures of results.json and users of users.parquet tell the same."""
    for method in compare(list(runs.values())).methods[2:]:
        assert method.mean("dropout.f2f") == pytest.approx(method.mean("retrieval.sampled.N@20"), abs=1e-9)
        assert method.mean("sampled.v2f") == pytest.approx(method.mean("dropout.v2f"), abs=1e-9)


def test_who_is_tested_and_corrected_together(runs):
    found = compare(list(runs.values()))
    pairs = {(t.first, t.second) for t in found.tests}
    assert pairs == {
        ("vlm2rec", "sft"),
        ("vlm2rec", "vanilla"),
        ("sft", "vanilla"),
        ("vlm2rec", "poprec"),
        ("sft", "poprec"),
        ("vanilla", "poprec"),
    }
    assert [t.p_holm for t in found.tests] == holm([t.p for t in found.tests])
    seeds = {(t.first, t.second, t.seed) for t in found.seed_tests}
    assert {("vlm2rec", "sft", 0), ("vlm2rec", "sft", 1), ("sft", "vanilla", 1)} <= seeds
    single = next(
        t for t in found.seed_tests if (t.first, t.second, t.seed, t.measure) == ("sft", "vanilla", 1, "full.f2f")
    )
    gap = per_user(runs["sft", 1], view="full") - per_user(runs["vanilla", 0], view="full")
    assert single.difference == pytest.approx(gap.mean())


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_no_variance_and_one_user():
    assert paired_test(np.ones(4), np.ones(4))[4] == 1
    assert paired_test(np.full(4, 0.3), np.full(4, 0.1))[4] == 0
    assert paired_test(np.array([0.4]), np.array([0.1]))[4] == 1


def test_chance_is_all_tied(runs):
    found = compare([runs["poprec", 0]])
    listed = pl.read_parquet(runs["poprec", 0] / "users.parquet").filter(pl.col("view") == "sampled")["candidates"]
    assert found.chance["sampled"] == pytest.approx(ndcg(np.zeros(len(listed), int), listed.to_numpy(), 20).mean())
    assert found.tests == ()


def test_settings_tell_groups_apart(shop, runs, tmp_path):
    other = fake_run(tmp_path / "other", shop, "sft", 0, settings={"objective": {"temperature": 0.05}})
    speed = fake_run(tmp_path / "speed", shop, "sft", 2, settings={"training": {"micro_batch": 4}})
    found = compare([runs["sft", 0], other, speed, runs["vlm2rec", 0]])
    assert [(m.label, m.seeds) for m in found.methods] == [
        ("sft (objective.temperature=0.1)", (0, 2)),
        ("sft (objective.temperature=0.05)", (0,)),
        ("vlm2rec", (0,)),
    ]
    assert list(found.differences) == ["objective.temperature"]
    assert found.differences["objective.temperature"]["vlm2rec"] == "0.1"
    assert compare([runs["sft", 0], other]).differences == {}  # the labels say it


def test_refuses_what_cannot_stand_in_one_table(shop, runs, tmp_path):
    reference = runs["sft", 0]

    def refused(message, *others):
        with pytest.raises(InputError, match=message) as caught:
            compare([reference, *others])
        assert "\n" not in str(caught.value)

    elsewhere = fake_dataset(tmp_path / "data", seed=1)
    refused("other data", fake_run(tmp_path / "a", elsewhere, "vlm2rec"))
    refused("candidate_seed is 7, but 0", fake_run(tmp_path / "b", shop, "vlm2rec", candidate_seed=7))
    refused("same method and seed", fake_run(tmp_path / "c", shop, "sft", 0))
    fewer = fake_run(tmp_path / "d", shop, "vlm2rec")
    frame = pl.read_parquet(fewer / "users.parquet")
    frame.filter(pl.col("user_id") != "u3").write_parquet(fewer / "users.parquet")
    refused("other users", fewer)
    frame.with_columns(pl.col("candidates") - 1).write_parquet(fewer / "users.parquet")
    refused("other candidates", fewer)
    frame.drop("ties").write_parquet(fewer / "users.parquet")
    refused("columns", fewer)
    frame.clear().write_parquet(fewer / "users.parquet")
    refused("no user", fewer)
    (fewer / "users.parquet").write_text("not a table")
    refused("columns", fewer)
    (fewer / "users.parquet").unlink()
    refused("not evaluated", fewer)
    refused("no run directory", tmp_path / "nowhere")
    with pytest.raises(InputError, match="nothing to compare"):
        compare([])


def test_tables(runs, tmp_path):
    found = compare(list(runs.values()))
    text, page = found.text(), found.table("markdown")
    sft = found.methods[3]
    cell = f"{sft.mean('dropout.v2f'):.4f} ± {sft.sd('dropout.v2f'):.4f}"
    assert cell in text and cell in page
    assert "vlm2rec − sft" in text and "seed 1" in text and "H@10" not in text and "H@10" in page
    assert max(map(len, text.splitlines())) <= 110
    rows = list(csv.DictReader(io.StringIO(found.summary_csv())))
    row = next(r for r in rows if (r["method"], r["figure"]) == ("sft", "dropout.v2f"))
    assert float(row["mean"]) == sft.mean("dropout.v2f") and row["seeds"] == "2"
    tests = list(csv.DictReader(io.StringIO(found.tests_csv())))
    assert len(tests) == len(found.tests) + len(found.seed_tests)
    assert found.write(tmp_path / "t.md").read_text() == page
    found.write(tmp_path / "t.csv")
    assert (tmp_path / "t-tests.csv").read_text() == found.tests_csv()
    with pytest.raises(InputError, match=r"\.md, \.tex or \.csv"):
        found.write(tmp_path / "t.xlsx")


def test_imports_no_torch():
    code = "import vlm2rec.compare, vlm2rec.report, sys; print({'torch', 'scipy.stats', 'jinja2'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
