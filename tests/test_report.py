import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from fake_run import fake_dataset, fake_run

from vlm2rec.compare import compare
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.errors import InputError
from vlm2rec.report import figures, write_report
from vlm2rec.report.examples import shoppers, thumbnail
from vlm2rec.report.figures import Bar, Group, Series
from vlm2rec.report.words import findings


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
        if tag not in ("meta", "img", "i", "line", "rect", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in ("i",):
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
    assert links and all(link.startswith("data:image/jpeg;base64,") for link in links)
    assert not re.search(r"url\(|@import|<script|<link|https?://", text)
    assert "A <b> title" in words and "A <b> title" not in text  # escaped
    assert "Thing <" in words and len(text) < 2_000_000
    for _, label in (k for k in page.attributes if k[0] == "style"):
        assert "url" not in label


def test_says_what_the_numbers_say(runs, tmp_path):
    comparison = compare(runs)
    found = {finding.heading: finding.text for finding in findings(comparison)}
    sft = next(text for heading, text in found.items() if heading.startswith("SFT"))
    heading = next(heading for heading in found if heading.startswith("SFT"))
    assert "got worse while text learned" in heading
    method = next(m for m in comparison.methods if m.kind == "sft")
    assert figures.number(method.mean("dropout.v2f")) in sft
    ours = next(heading for heading in found if heading.startswith("VLM2Rec:"))
    assert "picture modality learned" in ours
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
    (run / "results.json").write_text(json.dumps(results))
    assert words in findings(compare([run]))[0].heading


def test_shoppers_are_ranked_without_their_history(runs, shop):
    people = shoppers(compare(runs), shop)
    assert len(people) == 6 and len({p.name for p in people}) == 6
    for person in people:
        events = shop.sequences[shop.user_ids.index(person.name)]
        past = {shop.titles[i] for i in events[:-1]}
        assert person.bought.title == shop.titles[events[-1]]
        assert [c.title for c in person.history] == [shop.titles[i] for i in events[:-1]][-10:]
        assert person.earlier == max(0, len(events) - 1 - 10)
        assert [shelf.label for shelf in person.shelves] == ["Vanilla", "SFT", "VLM2Rec"]
        for shelf in person.shelves:
            titles = [c.title for c in shelf.cards]
            assert not past & set(titles)
            assert [c.hit for c in shelf.cards] == [t == person.bought.title for t in titles]
            if shelf.rank <= len(titles):
                assert shelf.cards[shelf.rank - 1].hit
            else:
                assert not any(c.hit for c in shelf.cards)
    # The order is that of the cosines, the items' table being in another order than the data set.
    table = EmbeddingTable.load(runs[0] / "items")
    order = np.random.default_rng(0).permutation(len(table))
    EmbeddingTable(table.ids[order], {v: np.asarray(x)[order] for v, x in table.views.items()}).save(runs[0] / "items")
    assert shoppers(compare(runs), shop) == people


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
    root = ElementTree.fromstring(figures.bars("bars & more", groups, chance=0.07))
    low, high = (float(bar.get("height")) for bar in root.iter("rect"))
    assert high == pytest.approx(2 * low, abs=0.2)
    words = [t.text for t in root.iter("text")]
    assert {"A <b>", "x.y=1", ".200", ".400", "chance"} <= set(words)
    curve = figures.lines("loss", [Series("m0", "a", [1, 2, 3], [1.0, float("nan"), 3.0])])
    path = next(p for p in ElementTree.fromstring(curve).iter("path"))
    assert path.get("d").count("L") == 1 and "nan" not in curve
    ElementTree.fromstring(figures.lines("flat", [Series("m0", "a", [1, 2], [0.5, 0.5])]))
    assert figures.lines("x", [Series("m0", "a", [1], [2])]) == "" and figures.bars("x", []) == ""


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
        "What the vectors start" in words and "SASRec sampled matched full full_unseen SFT .321 .321 .321 .321" in words
    )
