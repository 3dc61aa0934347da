import csv
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from fake_run import FakeSource, counted, fake_dataset, fake_run, older
from PIL import Image
from typer.testing import CliRunner

from vlm2rec.cli.verbs import app
from vlm2rec.compare import compare
from vlm2rec.config import load_config
from vlm2rec.data.prepare import prepare
from vlm2rec.data.splits import Split
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.errors import InputError
from vlm2rec.grid import Grid
from vlm2rec.report import figures, palette, plots, svg, write_report
from vlm2rec.report.confused import confusions, first_rival
from vlm2rec.report.examples import Cards, shoppers, thumbnail
from vlm2rec.report.figures import Bar, Group, Series
from vlm2rec.report.maps import project
from vlm2rec.report.page import build
from vlm2rec.report.parts import Sheet
from vlm2rec.report.plots import BarChart, LineChart, MapChart
from vlm2rec.report.vectors import chosen, drawn, spaces
from vlm2rec.report.words import findings
from vlm2rec.runs import Run


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return fake_dataset(tmp_path_factory.mktemp("shop") / "data")


@pytest.fixture(scope="module")
def runs(shop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    asked = [("vanilla", 0, 0.3), ("sft", 0, 0.05), ("sft", 1, 0.05), ("vlm2rec", 0, 0.9), ("itemknn", 0, 0.5)]
    return [fake_run(folder / f"{k}-{s}", shop, k, s, 1.0, v, oracle=True) for k, s, v in asked]


class Page(HTMLParser):
    """Every attribute, all text, and the tags left open."""

    def __init__(self, text):
        super().__init__()
        self.attributes, self.words, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(path):
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    return text, page, " ".join(" ".join(page.words).split())


def test_one_file_that_asks_for_nothing(runs, tmp_path):
    out = write_report(runs, tmp_path / "r.html", title="A <b> title")
    assert out == tmp_path / "r.html" and [p.name for p in tmp_path.iterdir()] == ["r.html"]
    text, page, words = read(out)
    links = [v for k, v in page.attributes if k in ("src", "href", "srcset", "data", "xlink:href")]
    ids = {v for k, v in page.attributes if k == "id"}
    assert links and all(link[0] == "#" and link[1:] in ids for link in links)
    urls = re.findall(r"url\((.{30})", text)
    assert urls and all(url.startswith("data:image/jpeg;base64,") for url in urls)
    assert not re.search(r"@import|<script|<link|https?://", text)
    assert "A <b> title" in words and "A <b> title" not in text  # escaped
    assert "Thing <" in words and "Thing <" not in text.replace("Thing &lt;", "") and len(text) < 2_000_000
    assert not any("url" in value for key, value in page.attributes if key == "style")
    classes = {name for key, value in page.attributes if key == "class" for name in value.split()}
    shown = {int(name[1:]) for name in classes if re.fullmatch(r"p\d+", name)}
    assert shown == {int(n) for n in re.findall(r"\.p(\d+) \{", text)} and len(urls) == len(shown)  # each once


def test_says_what_the_numbers_say(runs, tmp_path):
    comparison = compare(runs)
    found = {finding.heading: finding.text for finding in findings(comparison)}
    assert found["SFT: collapsed"].startswith("Seed 0: Pictures have collapsed")
    assert found["VLM2Rec: balanced"].startswith("Texts have gained") and "Vanilla: unbalanced" not in found
    assert "ahead" in found["VLM2Rec against SFT"]
    assert ".750" in found["Against the best possible"]
    _, _, words = read(write_report(runs, tmp_path / "r.html"))
    assert all(heading in words for heading in found)
    for method in comparison.methods:
        assert figures.number(method.mean("retrieval.full.N@20")) in words
    assert "vlm2rec sweep sft.toml --set seed=0,1" in words and "vlm2rec run vlm2rec.toml" in words


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((0.20, 0.10, 0.10, 0.05), "got worse and so did text"),
        ((0.20, 0.20, 0.10, 0.30), "stood still while text learned"),
        ((0.10, 0.15, 0.10, 0.30), "learned, less than half as much as text"),
        ((0.10, 0.25, 0.10, 0.30), "learned, as did text"),
        ((0.10, 0.25, 0.30, 0.30), "learned, text stood still"),
    ],
)
def test_the_same_thresholds_for_good_and_bad(runs, tmp_path, numbers, words):
    run = shutil.copytree(runs[1], tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    before_v, after_v, before_t, after_t = numbers
    results["reference"]["dropout"] = {"f2f": 0.1, "t2f": before_t, "v2f": before_v}
    results["dropout"] = {"f2f": 0.2, "t2f": after_t, "v2f": after_v}
    del results["diagnosis"]
    (run / "results.json").write_text(json.dumps(results))
    assert words in findings(compare([run]))[0].heading


def people_of(runs, shop):
    having = spaces(compare(runs).methods, shop)
    return shoppers(having, Split(shop), Cards(shop))


def test_shoppers_are_ranked_without_their_history(runs, shop):
    people = people_of(runs, shop)
    assert len(people) == 6 and len({p.name for p in people}) == 6
    for person in people:
        events = shop.sequences[shop.user_ids.index(person.name)]
        past = {shop.titles[i] for i in events[:-1]}
        assert person.bought.title == shop.titles[events[-1]]
        assert [c.title for c in person.history] == [shop.titles[i] for i in events[:-1]][-10:]
        assert person.earlier == max(0, len(events) - 1 - 10)
        assert [(shelf.label, shelf.query) for shelf in person.shelves] == [
            ("Vanilla", ""),
            ("SFT", ""),
            ("VLM2Rec", "titles alone"),
            ("VLM2Rec", "pictures alone"),
            ("VLM2Rec", ""),
        ]
        for shelf in person.shelves:
            titles = [c.title for c in shelf.cards]
            assert not past & set(titles)
            assert [c.hit for c in shelf.cards] == [t == person.bought.title for t in titles]
            if shelf.rank <= len(titles):
                assert shelf.cards[shelf.rank - 1].hit
            else:
                assert not any(c.hit for c in shelf.cards)
    # What each side of the history alone finds, from the tables themselves.
    items, histories = (EmbeddingTable.load(runs[3] / name) for name in ("items", "histories"))
    for place, view in ((2, "text"), (3, "image"), (4, "fused")):
        scores = histories.unit(view)[histories.rows([people[0].name])[0]] @ items.unit("fused").T
        events = shop.sequences[shop.user_ids.index(people[0].name)]
        best = [i for i in np.argsort(-scores) if i not in events[:-1]][:8]
        assert [c.title for c in people[0].shelves[place].cards] == [shop.titles[i] for i in best]


def test_the_order_of_an_item_table_does_not_matter(runs, shop, tmp_path):
    before = people_of(runs[:1], shop), confusions(spaces(compare(runs[:1]).methods, shop), Split(shop), Cards(shop))
    run = shutil.copytree(runs[0], tmp_path / "run")
    table = EmbeddingTable.load(run / "items")
    order = np.random.default_rng(0).permutation(len(table))
    EmbeddingTable(table.ids[order], {v: np.asarray(x)[order] for v, x in table.views.items()}).save(run / "items")
    assert people_of([run], shop) == before[0]
    assert confusions(spaces(compare([run]).methods, shop), Split(shop), Cards(shop)) == before[1]


def test_confusions_are_counted_over_users(runs, shop):
    having = spaces(compare(runs).methods, shop)
    found = confusions(having, Split(shop), Cards(shop))
    assert [one.label for one in found] == ["Vanilla", "SFT", "VLM2Rec"]
    items, histories = (EmbeddingTable.load(runs[1] / name) for name in ("items", "histories"))
    cosines, counts, wanted = histories.unit("fused") @ items.unit("fused").T, {}, {}
    for user, events in enumerate(shop.sequences):
        target, open_to_rank = events[-1], np.setdiff1d(np.arange(len(shop.item_ids)), events[:-1])
        first = open_to_rank[cosines[histories.rows([shop.user_ids[user]])[0], open_to_rank].argmax()]
        wanted[target] = wanted.get(target, 0) + 1
        if first != target:
            counts[shop.titles[target], shop.titles[first]] = (
                counts.get((shop.titles[target], shop.titles[first]), 0) + 1
            )
    sft = found[1]
    assert sft.users == len(shop.user_ids) and sft.missed == sum(counts.values()) > 8
    assert [pair.count for pair in sft.pairs] == sorted(counts.values(), reverse=True)[:8]
    for pair in sft.pairs:
        assert counts[pair.bought.title, pair.shown.title] == pair.count
        a, b = (shop.titles.index(card.title) for card in (pair.bought, pair.shown))
        assert pair.of == wanted[a]
        assert dict(pair.cosines) == {
            name: figures.number(float(items.unit(view)[a] @ items.unit(view)[b]), 2)
            for name, view in (("text", "text"), ("pictures", "image"), ("fused", "fused"))
        }
    past, scores = np.array([0, 1]), np.array([9.0, 8.0, 7.0, 1.0, 3.0], np.float32)
    assert first_rival(scores, past, target=2) == 4 and scores[0] == 9


def test_who_is_shown(runs, shop):
    having = spaces(compare(runs).methods, shop)
    assert [space.kind for space in having] == ["vanilla", "sft", "vlm2rec"]  # counting has no vectors
    assert [space.kind for space in chosen(having[::-1], 2)] == ["sft", "vanilla"]  # in the order given
    assert chosen(having[2:], 2) == having[2:] and chosen([], 2) == []
    users = drawn(having, shop)
    assert sorted(users) == sorted(shop.user_ids) and users == drawn(having, shop) != sorted(users)


def test_a_map_shows_what_varies_most():
    rng = np.random.default_rng(0)
    apart = rng.standard_normal((40, 6)).astype(np.float32) * 0.05
    text, image = apart + np.eye(6, dtype=np.float32)[0], apart + np.eye(6, dtype=np.float32)[1]
    plane = project(text, image)
    both = np.concatenate([text, image]).astype(np.float64)
    variances = np.linalg.svd(both - both.mean(0), compute_uv=False) ** 2
    assert plane.share == pytest.approx(variances[:2].sum() / variances.sum())
    assert max(x for x, _ in plane.text) < min(x for x, _ in plane.image)  # text to the left of the gap
    assert np.linalg.norm(np.subtract(plane.text, plane.image), axis=1) == pytest.approx(2**0.5, abs=0.01)
    same = project(text[:1].repeat(4, 0), text[:1].repeat(4, 0))
    assert same.share == 1 and set(same.text) == {(0.0, 0.0)}


def test_counting_alone(runs, tmp_path):
    _, _, words = read(write_report([runs[4]], tmp_path / "r.html"))
    assert "keeps embeddings" in words and "What each modality can do alone" not in words
    assert "How training went" not in words


def test_without_pictures(tmp_path):
    texts = fake_dataset(tmp_path / "data", pictures=False)
    text, _, words = read(write_report([fake_run(tmp_path / "run", texts)], tmp_path / "r.html"))
    assert "no picture" in words and "<img" not in text


def test_data_set_gone_or_changed_and_curves_missing(tmp_path):
    data = fake_dataset(tmp_path / "data")
    run = fake_run(tmp_path / "run", data)
    (run / "metrics.jsonl").unlink()
    shutil.rmtree(tmp_path / "data")
    _, _, words = read(write_report([run], tmp_path / "r.html"))
    assert "no longer at" in words and "How training went" not in words
    fake_dataset(tmp_path / "data", seed=1)
    _, _, words = read(write_report([run], tmp_path / "r.html"))
    assert "other data" in words


def test_refuses_and_leaves_nothing(runs, tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "manifest.json").write_text('{"kind": "else"}')
    half = shutil.copytree(runs[1], tmp_path / "half")
    (half / "results.json").unlink()
    for wrong in (tmp_path / "nowhere", tmp_path / "foreign", half):
        with pytest.raises(InputError) as caught:
            write_report([wrong], tmp_path / "r.html")
        assert "\n" not in str(caught.value) and not (tmp_path / "r.html").exists()
    with pytest.raises(InputError, match="folder"):
        write_report(runs, tmp_path)


def test_svg_is_well_formed_and_true_to_scale():
    groups = [Group("A <b> (x.y=1)", (Bar("text", "t2f", 0.2, 0.02, 0.1), Bar("image", "v2f", 0.4))), Group("none", ())]
    root = ElementTree.fromstring(svg.bars("bars & more", groups, chance=0.07))
    low, high = (float(bar.get("height")) for bar in root.iter("rect"))
    assert high == pytest.approx(2 * low, abs=0.2)
    words = [t.text for t in root.iter("text")]
    assert {"A <b>", "x.y=1", ".200", ".400", "chance", "t2f"} <= set(words)
    curve = svg.lines("loss", [Series("m0", "a", [1, 2, 3], [1.0, float("nan"), 3.0])])
    path = next(p for p in ElementTree.fromstring(curve).iter("path"))
    assert path.get("d").count("L") == 1 and "nan" not in curve
    ElementTree.fromstring(svg.lines("flat", [Series("m0", "a", [1, 2], [0.5, 0.5])]))
    assert svg.lines("x", [Series("m0", "a", [1], [2])]) == "" and svg.bars("x", []) == ""


def test_figures_of_few_users_and_nothing_are_pale():
    bars = (Bar("text", "t2f", 0.2), Bar("image", "v2f", 0.4, unsure=True), Bar("fused", "f2f", 0.0001))
    root = ElementTree.fromstring(svg.bars("bars", [Group("A", bars)]))
    assert [bar.get("class") for bar in root.iter("rect")] == ["text", "image unsure", "fused"]
    bold = {text.text: text.get("class") for text in root.iter("text")}
    assert (bold[".200"], bold[".400"], bold[".000"]) == ("value", "tick", "tick")


def test_many_bars_go_on_in_rows_to_one_scale():
    many = [Group(f"method {n}", tuple(Bar("text", name, n / 20) for name in ("t2f", "f2f"))) for n in range(1, 20)]
    root = ElementTree.fromstring(svg.bars("many", many, wide=500))
    width, height = map(float, root.get("viewBox").split()[2:])
    assert width < 600 and height > 800
    heights = [float(bar.get("height")) for bar in root.iter("rect")]
    assert len(heights) == 38 and heights[-1] == pytest.approx(19 * heights[0], rel=0.02)
    named = ElementTree.fromstring(svg.bars("x", [Group("1-5", (Bar("m0", "a long name", 1), Bar("m1", "b", 1)))]))
    assert [t.text for t in named.iter("text")].count("a long name") == 1  # in the legend


def test_steps_of_equal_ratio_are_equally_far_apart_and_0_is_there():
    chart = svg.lines("x", [Series("text", "g", [0, 1, 10, 100], [0, 1, 2, 3])], "step", log_x=True)
    root = ElementTree.fromstring(chart)
    x = [float(dot.get("cx")) for dot in root.iter("circle")]
    assert x[2] - x[1] == pytest.approx(x[3] - x[2], abs=0.2) and x[1] - x[0] == pytest.approx(
        (x[2] - x[1]) / 2, abs=0.2
    )
    assert [t.text for t in root.iter("text") if t.text in ("0", "1", "10", "100")][-4:] == ["0", "1", "10", "100"]
    assert "step 10: 2.000" in chart


@pytest.mark.parametrize(("low", "high"), [(0, 0.31), (-0.05, 0.3), (0, 12), (99.5, 100.1), (0, 1e-7)])
def test_ticks_cover(low, high):
    marks = figures.ticks(low, high)
    assert marks[0] <= low + 1e-12 and marks[-1] >= high - 1e-12 and 2 <= len(marks) <= 7
    assert np.allclose(np.diff(marks), marks[1] - marks[0])


def test_numbers_and_thinning():
    assert [figures.number(x) for x in (0.2184, -0.031, 1.04, -0.0001, 0)] == [".218", "−.031", "1.040", ".000", ".000"]
    x, y = figures.thin(list(range(1000)), [float(i) for i in range(1000)], points=10)
    assert len(x) == 10 and y[0] == pytest.approx(49.5) and np.mean(y) == pytest.approx(499.5)


def test_thumbnail_is_small():
    assert thumbnail(None) is None
    assert len(thumbnail(np.random.default_rng(0).integers(0, 255, (500, 300, 3), dtype=np.uint8))) < 8000


def test_task_2_where_there_is_some(shop, runs, tmp_path):
    assert "What the vectors start" not in read(write_report(runs[:1], tmp_path / "without.html"))[2]
    run = fake_run(tmp_path / "run", shop, "sft", 7)
    results = json.loads((run / "results.json").read_text())
    results["seqrec"] = {
        "sasrec": {name: dict.fromkeys(("H@10", "N@10", "H@20", "N@20"), 0.321) for name in results["retrieval"]}
    }
    (run / "results.json").write_text(json.dumps(results))
    words = read(write_report([run, runs[0]], tmp_path / "with.html"))[2]
    assert (
        "What the vectors start" in words
        and "SASRec started from sampled matched full full_unseen SFT .321 .321 .321 .321" in words
    )


def test_the_diagnosis_and_how_it_came_about(runs, tmp_path):
    comparison = compare(runs)
    page = build(comparison, None)
    vanilla, sft, ours = page.blocks
    assert (vanilla.status, sft.status, ours.status) == ("unbalanced", "collapsed", "balanced")
    diagnosis = json.loads((runs[1] / "results.json").read_text())["diagnosis"]
    assert list(sft.verdict) == diagnosis["verdict"] and "significantly less than it did before training" in sft.meaning
    assert sft.warnings == (
        "step 100: pictures had fallen below their start by .051 of N@20 (95% −.070 to −.030), seed 0",
        "step 100: pictures had fallen below their start by .051 of N@20 (95% −.070 to −.030), seed 1",
    )
    sampled, matched = sft.bars[0].chart.groups
    assert [bar.label for bar in sampled.bars] == ["f2f", "t2f", "v2f", "t2t", "v2v"]
    assert [bar.label for bar in matched.bars] == ["f2f", "t2f", "v2f"]
    method = next(m for m in comparison.methods if m.kind == "vlm2rec")
    own = method.runs[0].results()["diagnosis"]["dropout"]
    for bar in ours.bars[0].chart.groups[0].bars:
        assert (bar.value, bar.reference) == (
            pytest.approx(own[bar.label]["N@20"]),
            pytest.approx(method.mean(f"reference.dropout.{bar.label}")),
        )
        assert bar.sd == pytest.approx((own[bar.label]["high"] - own[bar.label]["low"]) / 2)
    assert [panel.name for panel in sft.curves] == ["gradients-sft", "monitor-sft", "separability-sft"]
    gradients = sft.curves[0].chart
    assert gradients.log_x and [(s.label, s.faint) for s in gradients.series] == [
        ("g_T", False), ("g_T", True), ("g_V", False), ("g_V", True)
    ]  # fmt: skip
    assert list(gradients.series[0].x) == [0, 1, 3, 10, 30, 100, 300] and not vanilla.curves
    _, _, words = read(write_report(runs, tmp_path / "r.html"))
    assert "Does it look at both modalities" in words and all(line in words for line in (*sft.verdict, *sft.warnings))
    ratio = method.mean("diagnosis.norms.histories.ratio")
    assert f"norm ratio, histories 1.33 1.42 ± 0.03 {ratio:.2f}" in words.replace("\xa0", " ")


def test_seeds_that_differ_are_told(runs, tmp_path):
    other = shutil.copytree(runs[2], tmp_path / "run")
    results = json.loads((other / "results.json").read_text())
    del results["diagnosis"]["change"]  # the evidence counts, not what an older version wrote above it
    results["diagnosis"]["fusion"] |= {"difference": -0.1, "low": -0.2, "high": -0.05}
    for own in results["diagnosis"]["dropout"].values():
        own |= {"N@20": 0.4, "low": 0.3, "high": 0.5}
    (other / "results.json").write_text(json.dumps(results))
    page = build(compare([runs[1], other]), None)
    assert page.blocks[0].status == "collapsed (1 of 2 seeds), harmful (1)"


def test_a_model_that_cannot_read_pictures_is_told_of_untrained_too(runs, tmp_path):
    """An older run says "collapsed" of it; a vanilla one has no finding but that."""
    run = shutil.copytree(runs[0], tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    results["diagnosis"].pop("change", None)
    results["diagnosis"]["status"] = "collapsed"
    chance = results["diagnosis"]["chance"]
    results["diagnosis"]["dropout"]["v2f"] = {"N@20": chance, "low": chance - 0.01, "high": chance + 0.01}
    (run / "results.json").write_text(json.dumps(results))
    comparison = compare([run])
    (block,) = build(comparison, None).blocks
    assert (block.status, block.css) == ("at chance", "at-chance") and "cannot read a modality" in block.meaning
    assert "Vanilla: at chance" in [finding.heading for finding in findings(comparison)]
    assert not any("ollapsed" in finding.text for finding in findings(comparison))


def test_a_single_run_has_popularity_item_knn_and_chance_beside_it(shop, tmp_path):
    run = counted(fake_run(tmp_path / "run", shop, "sft"), shop)
    _, _, words = read(write_report([run], tmp_path / "r.html", export=tmp_path / "files"))
    assert all(
        name in words for name in ("Chance (exact)", "PopRec (counted)", "item-kNN (counted)", "Against counting")
    )
    assert "Counted : from the same histories and candidates" in words and "older runs" not in words
    assert "PopRec (counted)" in (tmp_path / "files" / "retrieval.csv").read_text()
    assert "itemknn (counted)" in (tmp_path / "files" / "figures.csv").read_text()
    old = fake_run(tmp_path / "old", shop, "sft")
    _, _, words = read(write_report([old], tmp_path / "r.html"))
    assert "Chance (exact)" in words and "Not counted in these older runs: poprec and itemknn" in words


def test_a_finding_on_one_seed_says_so(runs):
    said = {finding.heading: finding.text for finding in findings(compare([runs[1], runs[3]]))}
    assert said["VLM2Rec against SFT"].startswith("On one seed, fused on sampled candidates")
    page = build(compare([runs[1], runs[3]]), None)
    assert page.on_seeds == "on one seed: how far another would move this is not known"


def test_findings_say_on_how_many_users(runs):
    for finding in findings(compare(runs)):
        assert "60 users" in finding.text, finding


def test_two_pools_are_not_called_by_one_name(runs, tmp_path):
    """The monitor looks at some validation users among each other's targets; test at all users, on 100 candidates."""
    run = shutil.copytree(runs[3], tmp_path / "run")
    titles = [panel.chart.title for panel in build(compare([run]), None).blocks[0].curves]
    assert titles[1:] == ["VLM2Rec: N@20, validation users", "VLM2Rec: separability S, validation users"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()[:-1]]
    seen = [line | {"users": 48} if line["kind"] == "probe" else line for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in seen))
    monitor = build(compare([run]), None).blocks[0].curves[1].chart
    assert monitor.title == "VLM2Rec: N@20, 48 validation users" and monitor.y_label == "N@20, 48 validation users"


def test_a_warning_says_its_level_and_users(runs, tmp_path):
    run = shutil.copytree(runs[1], tmp_path / "run")
    warned = {"kind": "warning", "step": 9, "modality": "text", "difference": -0.1, "low": -0.2, "high": -0.05}
    (run / "metrics.jsonl").write_text(json.dumps(warned | {"level": 0.98889, "users": 48}) + "\n")
    (block,) = build(compare([run]), None).blocks
    assert block.warnings == (
        "step 9: texts had fallen below their start by .100 of N@20 (98.89% interval, corrected for all probes, −.200"
        " to −.050, 48 validation users)",
    )


def test_quick_runs_say_so_on_the_page_and_in_every_file(shop, tmp_path):
    run = counted(fake_run(tmp_path / "run", shop, "vlm2rec"), shop)
    Run.open(run).record(quick=True)
    text, _, words = read(write_report([run], tmp_path / "r.html", title="a title", export=tmp_path / "files"))
    assert "<title>a title (quick)</title>" in text and "a title (quick)" in words and "A look, not a result" in words
    for path in (tmp_path / "files").iterdir():
        if path.suffix in (".md", ".tex", ".csv", ".svg"):
            assert "quick" in path.read_text(), path


def test_rare_items(runs, tmp_path):
    comparison = compare(runs)
    page = build(comparison, None)
    groups = page.cold[0].chart.groups
    buckets = json.loads((runs[0] / "results.json").read_text())["cold"]["retrieval"]
    assert [group.label for group in groups] == [f"{name} ({buckets[name]['users']} users)" for name in buckets]
    assert sum(bucket["users"] for bucket in buckets.values()) == comparison.evaluated_users
    grid = page.cold_sheets[0].grid
    rows = {row[:2]: row[2:] for row in grid.rows}
    users = [buckets[name]["users"] if name in buckets else None for name in ("0", "1-5", "6-10", "11-20", "21+")]
    assert rows["users", ""] == tuple("–" if count is None else str(count) for count in users)
    few = [count is not None and count < 30 for count in users]
    assert any(few) and not all(few)
    for cells, marks in zip(grid.rows[1:], grid.marks[1:], strict=True):
        assert [mark == 3 for mark in marks[2:]] == few, cells
    assert any(1 in marks for marks in grid.marks)
    for group, bucket in zip(groups, buckets.values(), strict=True):
        assert all(bar.unsure == (bucket["users"] < 30) for bar in group.bars)
    assert rows["Vanilla", "full"] == tuple(
        figures.number(buckets[name]["full"]) if name in buckets else "–"
        for name in ("0", "1-5", "6-10", "11-20", "21+")
    )
    assert "Items that training has seldom seen" in read(write_report(runs, tmp_path / "r.html"))[2]


def lose_parts(run, out):
    run = shutil.copytree(run, out)
    results = json.loads((run / "results.json").read_text())
    cases = {"item_text": 0.4321, "mixed": 0.25, "another": 0.125}
    results["missing"] = {case: {"sampled": {"N@20": value, "H@20": 1.0}} for case, value in cases.items()}
    (run / "results.json").write_text(json.dumps(results))


def test_missing_modalities_where_there_are_some(runs, tmp_path):
    lose_parts(runs[3], tmp_path / "run")
    words = read(write_report([tmp_path / "run", runs[0]], tmp_path / "r.html"))[2]
    assert "target: title alone a third of each another VLM2Rec sampled .853 .432 .250 .125" in words
    assert "When a modality is missing" not in read(write_report(runs, tmp_path / "without.html"))[2]


def test_cost(runs):
    rows = {row[0]: row[1:] for row in build(compare(runs), None).cost.grid.rows}
    assert rows["seconds, probes"] == ("1.5",) * 4
    assert rows["peak memory, GiB"] == ("–", "–", "2.5", "2.5") and float(rows["samples a second"][2]) == pytest.approx(
        40, abs=1
    )


def test_older_runs_still_open(shop, tmp_path):
    asked = [("vanilla", 0.3), ("sft", 0.05), ("itemknn", 0.5)]
    runs = [older(fake_run(tmp_path / kind, shop, kind, 0, 1.0, v)) for kind, v in asked]
    _, _, words = read(write_report(runs, tmp_path / "r.html"))
    assert "picture modality got worse while text learned" in words and "No diagnosis here" in words
    assert f"vlm2rec diagnose {runs[1]}" in words and "how to read it" not in words
    assert "seldom seen" not in words and "separability S of the monitored" not in words
    sampled = build(compare(runs), None).blocks[1].bars[0].chart.groups[0].bars
    assert [bar.label for bar in sampled] == ["f2f", "t2f", "v2f"] and all(bar.sd > 0 for bar in sampled)


@pytest.mark.parametrize(
    "gone", ["verdict", "status", "dropout", "norms", "neighbour_overlap", "strong", "change", "*"]
)
def test_a_diagnosis_may_lack_parts(runs, tmp_path, gone):
    run = shutil.copytree(runs[3], tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    results["diagnosis"] = {} if gone == "*" else {k: v for k, v in results["diagnosis"].items() if k != gone}
    (run / "results.json").write_text(json.dumps(results))
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()[:-1]]
    kept = [{k: v for k, v in line.items() if not k.startswith("grad")} for line in log] + [
        {"kind": "warning", "step": 9}
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    _, _, words = read(write_report([run], tmp_path / "r.html"))
    assert "step 9: a modality had fallen below their start" in words and "gradients against" not in words


def test_twice_the_same(runs, tmp_path):
    for name in ("a", "b"):
        write_report(runs[:4], tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_figure_and_table_has_its_files(runs, tmp_path):
    for name in ("a", "b"):
        write_report(runs[:1], tmp_path / f"{name}.html", title="t", export=tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    page = build(compare(runs[:1]), None)
    listed = [f"{panel.name}.{kind}" for panel in page.panels() for kind in ("svg", "png", "pdf")]
    listed += [f"{sheet.name}.{kind}" for sheet in page.sheets() for kind in ("md", "tex", "csv")]
    assert files == sorted([*listed, "figures.csv", "figures-tests.csv"])
    assert {"modalities-vanilla.svg", "map-vanilla.png", "retrieval.tex", "measures.md"} <= set(files)
    everything = build(compare(runs), None)
    names = [part.name for part in (*everything.panels(), *everything.sheets())]
    assert {"gradients-sft", "dropout-sampled", "training-loss", "tests", "cost"} <= set(names)
    charts = [panel.name for panel in everything.panels()]
    assert len(charts) == len(set(charts))
    for path in (tmp_path / "a").iterdir():
        content = path.read_bytes()
        match path.suffix:
            case ".svg":
                ElementTree.fromstring(content)
            case ".png":
                assert min(Image.open(path).size) > 300
            case ".pdf":
                assert content.startswith(b"%PDF") and content.rstrip().endswith(b"%%EOF")
            case ".csv":
                rows = list(csv.reader(content.decode().splitlines()))
                assert len({len(row) for row in rows}) == 1
            case ".tex":
                assert content.count(b"\\begin{tabular}") == content.count(b"\\end{tabular}") == 1
            case ".md":
                lines = [line for line in content.decode().splitlines() if line.startswith("|")]
                assert len({line.count("|") for line in lines}) == 1
            case _:
                raise AssertionError(path)
    assert Sheet("x", Grid("x", ("a", "b"), (("−.5 ± .1", "1\N{THIN SPACE}234"), ("–", "n")))).csv() == (
        "a,a sd,b\n-.5,.1,1234\n,,n\n"
    )
    table = list(csv.DictReader(everything.retrieval.csv().splitlines()))
    sft = next(method for method in compare(runs).methods if method.kind == "sft")
    row = next(row for row in table if row["method"] == "SFT")
    assert float(row["full"]) == pytest.approx(sft.mean("retrieval.full.N@20"), abs=5e-4)
    assert float(row["full sd"]) == pytest.approx(sft.sd("retrieval.full.N@20"), abs=5e-4)


def test_files_do_not_go_where_a_file_is(runs, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="is a file"):
        write_report(runs, tmp_path / "r.html", export=tmp_path / "taken")
    assert not (tmp_path / "r.html").exists()


def test_what_is_printed_can_be_run(runs, tmp_path):
    for recipe in build(compare(runs), None).recipes:
        (tmp_path / recipe.file).write_text(f"# {recipe.file} (here: {recipe.folders})\n{recipe.config}")
        made = load_config(tmp_path / recipe.file, [])
        kept = json.loads(
            (runs[[r.name for r in runs].index(recipe.folders.split(", ")[0])] / "manifest.json").read_text()
        )
        assert made.model_dump(mode="json", exclude_none=True) == kept["config"]


class Hostile(FakeSource):
    def read(self):
        raw = super().read()
        title = "</title></style><script>alert('x')</script>"
        return type(raw)(raw.name, raw.items.with_columns(title=pl.lit(title)), raw.interactions, raw.pictures)


def test_titles_are_text(tmp_path):
    shop = prepare(Hostile(), tmp_path / "data", require=("title", "image"), k_core=0, picture_size=48)
    runs = [fake_run(tmp_path / kind, shop, kind) for kind in ("vanilla", "sft")]
    text, page, words = read(write_report(runs, tmp_path / "r.html"))
    assert "<script" not in text and "</title></style><script>" in words
    assert any(key == "title" and "<script>" in value for key, value in page.attributes)


def bars_and_lines():
    groups = [Group("SFT (a=1)", (Bar("fused", "f2f", 0.3, 0.01, 0.2), Bar("text_own", "t2t", 0.2)))]
    curve = Series("m0", "SFT", [0, 1, 10], [0.1, 0.2, 0.3], sd=[0.01, 0.0, 0.02])
    dots = MapChart("map", [(0, 0), (1, 1)], [(0, 1), (1, 0)], ["a", "b"])
    return [
        BarChart("bars", groups, chance=0.07),
        LineChart("curve", [curve, Series("m0", "SFT", [0, 1], [0, 1], faint=True)], "step", "cos", log_x=True),
        LineChart("weights", [Series("m1", "VLM2Rec", [0.1, 0.5], [0.3, 0.2])], "weight", "N@20", log_x=True),
        dots,
    ]


def test_figures_for_papers_are_the_same_each_time(tmp_path):
    charts = bars_and_lines()
    for name in ("a", "b"):
        made = plots.save(charts, tmp_path / name / "figure.1")
        assert [path.name for path in made] == ["figure.1.svg", "figure.1.png", "figure.1.pdf"]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    drawn = (tmp_path / "a" / "figure.1.svg").read_text()
    ElementTree.fromstring(drawn)
    for css in ("fused", "text_own", "m0", "m1", "text", "image", "bad"):  # each that was asked for, and step 0
        assert palette.LIGHT[css] in drawn
    assert palette.LIGHT["m5"] not in drawn
    with pytest.raises(ValueError, match="no chart"):
        plots.save([], tmp_path / "none")


def test_colours_are_there_in_every_light():
    assert palette.LIGHT.keys() == palette.DARK.keys() == palette.PRINT.keys() >= set(palette.DRAWN)


def test_the_verb_prints_what_it_wrote(runs, tmp_path):
    page, folder = tmp_path / "r.html", tmp_path / "files"
    done = CliRunner().invoke(app, ["report", str(runs[4]), "--out", str(page), "--export", str(folder)])
    assert (done.exit_code, done.output.split()) == (0, [str(page), str(folder)])
    assert page.exists() and (folder / "retrieval.tex").exists()
