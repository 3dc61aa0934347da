"""Whether titles come through a tokenizer: measured, whatever the model is called."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import Given, write_pictures
from program import Call
from tiny_job import make_config, raw_config, write_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from vlm2rec.alternatives import alternatives
from vlm2rec.backbones.load import BUILT_IN
from vlm2rec.backbones.reading import read_titles
from vlm2rec.compare import compare
from vlm2rec.config import load_config, parse_config
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources import RawData
from vlm2rec.data.sources.shop import ShopWorld
from vlm2rec.data.splits import Split
from vlm2rec.doctor import examine
from vlm2rec.errors import InputError
from vlm2rec.job import run
from vlm2rec.methods import reading
from vlm2rec.methods.reading import english, readers

ENGLISH = ("Harry Potter and the Goblet of Fire (2005)", "Pure Moroccan Argan Oil", "Everything You Always Wanted")
OTHERS = {
    "russian": ("Гарри Поттер и Кубок огня", "Преступление и наказание"),
    "chinese": ("哈利波特与火焰杯", "无线蓝牙耳机 降噪"),
    "korean": ("해리 포터와 불의 잔", "무선 이어폰 블루투스"),
    "hindi": ("हैरी पॉटर और आग का प्याला", "ब्लूटूथ हेडफ़ोन"),
}


def words(*known: str) -> PreTrainedTokenizerFast:
    """A vocabulary of whole words, all else unknown."""
    vocabulary = {"[UNK]": 0, **{word: place for place, word in enumerate(known, start=1)}}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")


def characters(texts: tuple[str, ...]) -> PreTrainedTokenizerFast:
    letters = sorted({letter for text in texts for letter in text})
    made = Tokenizer(models.BPE({letter: place for place, letter in enumerate(letters)}, []))
    return PreTrainedTokenizerFast(tokenizer_object=made)


def in_bytes() -> PreTrainedTokenizerFast:
    """A byte-level fallback: every character is its bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({sign: place for place, sign in enumerate(alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process says each warning once; here each test is one."""
    monkeypatch.setattr(reading, "_SAID", set())


@pytest.fixture(scope="module")
def nano() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(str(BUILT_IN))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare(ShopWorld(seed=0, shoppers=60), tmp_path_factory.mktemp("shop") / "data", picture_size=32, k_core=0)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Real titles with pictures: forty films, and who watched them."""
    folder = tmp_path_factory.mktemp("films")
    names = [f"{place}.png" for place in range(40)]
    write_pictures(folder / "images", names)
    items = pl.DataFrame(
        {
            "item_id": [f"i{place}" for place in range(40)],
            "title": [f"{ENGLISH[place % 3]} {'again ' * (place // 3)}" for place in range(40)],
            "image": names,
        }
    )
    rows = [(f"u{user}", f"i{(3 * user + 7 * step) % 40}", step) for user in range(40) for step in range(6)]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    from PIL import Image

    return prepare(
        Given(RawData("films", items, log, lambda name: Image.open(folder / "images" / name))),
        folder / "data", picture_size=32, k_core=0,
    )  # fmt: skip


def test_the_words_of_the_drawn_shop_stay_whole(nano: PreTrainedTokenizerFast, shop: Dataset) -> None:
    found = read_titles(nano, shop.titles)
    assert found is not None and found.apart == 0 and found.readable and found.letters_a_token > 3


@pytest.mark.parametrize("titles", [ENGLISH, *OTHERS.values()])
def test_real_titles_fall_apart_for_nano(nano: PreTrainedTokenizerFast, titles: tuple[str, ...]) -> None:
    found = read_titles(nano, titles)
    assert found is not None and not found.readable and found.apart == 1 and found.letters_a_token < 2


@pytest.mark.parametrize("language", list(OTHERS))
def test_bytes_and_unknown_words_fall_apart_in_any_script(language: str) -> None:
    """By measurement, not by name: a byte-level fallback, and a vocabulary that does not have the words."""
    for tokenizer in (in_bytes(), words("the", "of")):
        found = read_titles(tokenizer, OTHERS[language])
        assert found is not None and not found.readable and found.apart == 1


def test_whole_words_are_read_in_any_script() -> None:
    for titles in (ENGLISH, *OTHERS.values()):
        tokenizer = words(*sorted({word for title in titles for word in title.split(" ")}))
        found = read_titles(tokenizer, titles)
        assert found is not None and found.readable and found.apart == 0, titles


def test_a_letter_alone_is_a_word_in_some_scripts_only() -> None:
    for titles, readable in ((OTHERS["chinese"], True), (OTHERS["korean"], True), (OTHERS["russian"], False)):
        found = read_titles(characters(titles), titles)
        assert found is not None and found.readable == readable, titles


def test_words_of_one_letter_and_numbers_are_no_fault() -> None:
    titles = ("I a U", "A 1 2 3")
    found = read_titles(characters(titles), titles)
    assert found is not None and found.apart == 0
    assert read_titles(characters(("1",)), ("1", "", "2005")) is None, "no letter, nothing to say"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"method": {"kind": "sft"}}, ["nano"]),
        ({"method": {"kind": "sft"}, "prompt": {"modalities": "image"}}, []),
        ({"method": {"kind": "sasrec"}}, []),
        ({"method": {"kind": "itemknn"}}, []),
        ({"method": {"kind": "bert", "path": "some"}}, ["some"]),
        ({"method": {"kind": "pair", "text": "a", "image": "b"}}, ["a"]),
        ({"method": {"kind": "slim", "text_encoder": "small"}}, ["nano", "small"]),
        ({"method": {"kind": "vlm_prompt", "with_title": False}}, []),
        ({"method": {"kind": "transfer", "source": "absent"}}, []),
    ],
)
def test_who_reads_titles(settings: dict[str, Any], expected: list[str]) -> None:
    assert readers(parse_config({"data": {"path": "x"}, "backbone": {"path": "nano"}, **settings})) == expected


TINY = {"training": {"users": 8, "epochs": 1, "batch_size": 4}, "evaluation": {"users": 8}, "monitor": {"probes": 0}}


def test_a_run_says_so_first_and_its_results_carry_it(
    films: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = run(make_config(films, Path("nano"), "vanilla", **TINY), tmp_path / "run").path
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: nano cannot read")]
    assert len(said) == 1 and "40 fall apart into single letters" in said[0] and "sasrec" in said[0]
    (kept,) = json.loads((folder / "results.json").read_text())["warnings"]
    assert said[0] == f"warning: {kept}" and "nano" not in kept.partition("take")[2]
    page = (folder / "report.html").read_text()
    assert "cannot read these titles" in page
    assert f"warning: {kept}" in compare([folder]).text() and kept in compare([folder]).table("markdown")


def test_the_drawn_shop_is_left_alone(shop: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = run(make_config(shop, Path("nano"), "vanilla", **TINY), tmp_path / "run").path
    assert "warning" not in capfd.readouterr().err
    assert "warnings" not in json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("verb", ["run", "train", "sweep", "experiment"])
def test_it_is_said_before_anything_is_computed(
    verb: str, films: Dataset, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a sweep before its first run, whichever that is."""

    def refuse(*_: object, **__: object) -> None:
        raise InputError("nothing is to be computed")

    raw = {**raw_config(films, Path("nano"), "random", **TINY)}
    config = write_config(tmp_path / "c.toml", parse_config(raw))
    asked: list[object] = [verb, config, "--out", tmp_path / "out", "--set", "method.kind=random,vanilla"]
    if verb == "sweep":
        monkeypatch.setattr("vlm2rec.job.run", refuse)
    elif verb == "experiment":
        monkeypatch.setattr("vlm2rec.experiments.runner.run_all", refuse)
        asked = [verb, "run", "table1", config, "--out", tmp_path / "out", "--seeds", "0"]
    else:
        monkeypatch.setattr("vlm2rec.methods.vlm.VLM.reference", refuse)
        asked[-1] = "method.kind=sft"
    said = call(*asked)
    assert said.status == 2 and "nothing is to be computed" in said.err
    assert [line for line in said.err.splitlines() if "warning: nano cannot read these titles: " in line]


def test_doctor_measures_titles_and_a_sample_of_items(films: Dataset, shop: Dataset) -> None:
    said = examine(make_config(films, Path("nano")))
    (line,) = [line for line in said.splitlines() if line.startswith("titles        nano: 100% of 40 fall apart")]
    assert "tokens)" in line
    assert "items spread over" in said and "(effective rank), mean cosine" in said
    assert "warning       nano cannot read these titles" in said and "doctor CONFIG" not in said
    for row in ("item-kNN", "SASRec", "MiniLM + EfficientNet", "smol"):
        assert row in said
    assert "Without a GPU, hours from rates measured on two CPU cores" in said
    said = examine(make_config(shop, Path("nano")))
    assert "titles        nano: 0% of" in said and "warning" not in said and "Without a GPU" not in said


def test_doctor_without_the_data_says_so(tmp_path: Path) -> None:
    said = examine(make_config(tmp_path / "absent", Path("nano")))
    assert f"no data set at {tmp_path / 'absent'}" in said and "backbone      nano" in said


def test_init_writes_a_file_that_fits_the_data(films: Dataset, call: Call, tmp_path: Path) -> None:
    said = call("init", tmp_path / "c.toml", "--data", films.path)
    assert said.status == 0 and said.out.strip() == str(tmp_path / "c.toml")
    assert load_config(tmp_path / "c.toml", []).data.path == films.path
    assert f"`vlm2rec doctor {tmp_path / 'c.toml'}` tells whether the backbone can read these titles" in said.err
    import torch

    assert ("SASRec" in said.err and "MiniLM" in said.err) != torch.cuda.is_available()
    assert call("init", tmp_path / "d.toml", "--data", tmp_path / "absent").status == 2
    assert not (tmp_path / "d.toml").exists()


def test_init_for_data_without_pictures(from_sequences: Any, call: Call, tmp_path: Path) -> None:
    data = from_sequences([[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 0]], 5)
    said = call("init", tmp_path / "c.toml", "--data", data.path)
    config = load_config(tmp_path / "c.toml", [])
    assert said.status == 0 and (config.prompt.modalities, config.method.kind) == ("text", "sft")
    assert "has no pictures" in said.err


def test_no_message_sends_anybody_to_nano(call: Call, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    call("init", config)
    assert "nano" not in config.read_text()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    broken = raw_config(tmp_path, tmp_path / "broken")
    with pytest.raises(Exception, match="no model could be loaded") as caught:
        examine(parse_config(broken))
    assert "nano" not in str(caught.value) and "vlm2rec backbone smol" in str(caught.value)


def test_alternatives_grow_with_the_data(films: Dataset, shop: Dataset) -> None:
    small, large = ({each.name: each.hours for each in alternatives(Split(data))} for data in (films, shop))
    assert list(small) == ["item-kNN", "SASRec, item ids", "MiniLM + EfficientNet", "smol"]
    assert all(0 < small[name] < large[name] for name in small)
    assert small["item-kNN"] < small["SASRec, item ids"] < small["smol"]


def test_what_language_titles_are_in() -> None:
    assert english(ENGLISH) and not english(OTHERS["russian"]) and not english(OTHERS["chinese"])
