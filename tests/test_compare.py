import csv
import io
import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from fake_run import FakeSource, counted, fake_dataset, fake_run
from scipy.stats import ttest_rel

from vlm2rec.compare import compare, holm, paired_test
from vlm2rec.data.prepare import prepare
from vlm2rec.errors import InputError
from vlm2rec.metrics import ndcg
from vlm2rec.runs import Run


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


def test_what_runs_counted_stands_beside_them(shop, runs, tmp_path):
    """Also of one run alone; with every user's rank, so that it is tested as a run would be."""
    run = counted(fake_run(tmp_path / "run", shop, "sft", 0, 1.0, 0.3), shop)
    found = compare([run])
    assert [m.label for m in found.methods] == ["sft"] and found.uncounted == ()
    assert [m.label for m in found.rows] == ["chance (exact)", "poprec (counted)", "itemknn (counted)", "sft"]
    kept = Run.open(run).results()["baselines"]
    for method, name in zip(found.counted, ("chance", "poprec", "itemknn"), strict=True):
        for view in ("sampled", "matched", "full", "full_unseen"):
            assert {m: method.mean(f"retrieval.{view}.{m}") for m in kept[name][view]} == pytest.approx(
                kept[name][view]
            )
    assert found.counted[0].mean("retrieval.sampled.N@20") == pytest.approx(found.chance["sampled"])
    assert {(t.first, t.second) for t in found.tests} == {("sft", "poprec (counted)"), ("sft", "itemknn (counted)")}
    ranks = pl.read_parquet(run / "baselines.parquet").filter(
        (pl.col("task") == "itemknn") & (pl.col("view") == "full")
    )
    knn = ndcg(*(ranks.sort("user_id")[name].to_numpy() for name in ("above", "ties")), 20)
    (test,) = [t for t in found.tests if (t.second, t.measure) == ("itemknn (counted)", "full.f2f")]
    assert test.p == pytest.approx(ttest_rel(per_user(run, view="full"), knn).pvalue) and test.seeds == 1
    for text in (found.text(), found.table("markdown"), found.table("latex")):
        assert "chance (exact)" in text and "poprec (counted)" in text and "older runs" not in text
    assert "itemknn (counted),retrieval.full.H@10,1," in found.summary_csv()


def test_what_is_given_as_a_run_is_not_counted_twice(shop, runs, tmp_path):
    run = counted(fake_run(tmp_path / "run", shop, "sft", 0, 1.0, 0.3), shop)
    found = compare([run, runs["poprec", 0], runs["random", 0]])
    assert [m.label for m in found.rows] == ["itemknn (counted)", "random", "poprec", "sft"]
    assert "poprec (counted)" not in found.text() and "chance (exact)" not in found.text()


def test_older_runs_say_what_they_did_not_count(runs):
    found = compare([runs["sft", 0]])
    assert [m.label for m in found.rows] == ["chance (exact)", "sft"]  # which follows from the candidates
    note = "Not counted in these older runs: poprec and itemknn (method.kind=poprec,itemknn adds rows)."
    assert note in found.text() and f"% {note}" in found.table("latex")
    assert compare([runs["sft", 0], runs["poprec", 0]]).uncounted == ("itemknn",)


def test_counts_of_other_candidates_are_refused(shop, tmp_path):
    run = counted(fake_run(tmp_path / "run", shop, "sft"), shop)
    path = run / "baselines.parquet"
    pl.read_parquet(path).with_columns(pl.col("candidates") - 1).write_parquet(path)
    with pytest.raises(InputError, match="counted for other users or candidates") as caught:
        compare([run])
    assert str(path) in str(caught.value)


def test_on_how_many_seeds_a_test_rests(shop, runs):
    """The fewest of either side; vanilla and counting are what they are, whatever the seed."""
    found = compare(list(runs.values()))
    seeds = {(t.first, t.second): t.seeds for t in found.tests}
    assert set(seeds.values()) == {2} and "each user averaged over seeds" in found.text()
    single = compare([runs["sft", 0], runs["vlm2rec", 0], runs["vlm2rec", 1]])
    assert {t.seeds for t in single.tests} == {1}
    assert "60 users, on one seed: how far another would move this is not known" in single.text()
    mixed = compare([runs["vanilla", 0], runs["sft", 0], runs["vlm2rec", 0], runs["vlm2rec", 1]])
    assert "each user averaged over seeds (on one seed alone: vlm2rec − sft, sft − vanilla)" in mixed.text()
    assert next(csv.DictReader(io.StringIO(single.tests_csv())))["seeds"] == "1"


def test_quick_runs_say_so(shop, tmp_path):
    run = fake_run(tmp_path / "run", shop, "sft")
    assert "quick" not in compare([run]).table("markdown")
    Run.open(run).record(quick=True)
    found = compare([run])
    assert "**N@20 by candidate set (quick)**" in found.table("markdown")
    assert all("(quick)" in line for line in found.table("latex").splitlines() if "caption" in line)
    assert {row["made"] for row in csv.DictReader(io.StringIO(found.summary_csv()))} == {"quick"}


def test_few_users_stand_in_brackets_and_none_is_best(tmp_path):
    data = prepare(FakeSource(items=40, users=12), tmp_path / "data", k_core=0, picture_size=48)
    found = compare([fake_run(tmp_path / kind, data, kind, 0, 1.0, v) for kind, v in (("sft", 0.1), ("vlm2rec", 0.9))])
    assert found.evaluated_users == 12
    for text in (found.text(), found.table("markdown")):
        figure = f"({found.methods[0].mean('retrieval.sampled.N@20'):.4f})"
        assert figure in text and "in brackets: fewer than 30 users" in text
        assert "¹" not in text and "**0" not in text


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
