"""Teachers: what is asked, what counts as an answer, that nothing is asked twice, and files that can be filled."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import families
import polars as pl
import pytest
from conftest import Given

from vlm2rec.backbones.generate import greedy
from vlm2rec.backbones.load import load_backbone
from vlm2rec.config import BackboneConfig, PromptConfig
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources import RawData
from vlm2rec.data.splits import Split
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.methods.slim.answers import Writer, append_lines, key_of, read_lines
from vlm2rec.methods.slim.prompts import (
    Question,
    Shelf,
    history_at,
    rationale,
    steps,
    student_question,
    teacher_question,
)
from vlm2rec.methods.slim.teachers import FileTeacher, ModelTeacher, TemplateTeacher, ask

TITLES = [
    "Acme Lamp with red shade", "Acme Lamp with blue shade", "Bolt Kettle with red lid", "Bolt Mug with gold rim",
    "Corvo Lamp with red foot", "Dune Scarf with fringe", "Dune Hat with <image> print", "Ember Torch with strap",
]  # fmt: skip
CATEGORIES = [
    [["Home", "Lighting"]], [["Home", "Lighting"]], [["Home", "Kitchen"]], [["Home", "Kitchen"]],
    [["Home", "Lighting"]], [["Clothing"]], [["Clothing"]], None,
]  # fmt: skip
BRANDS = ["Acme", "Acme", "Bolt", "Bolt &amp; Sons", "Corvo", "Dune", "Dune", None]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(named(tmp_path_factory.mktemp("named")))


def named(folder: Path) -> Dataset:
    """Eight items with titles, category paths and brands."""
    ids = [f"p{k}" for k in range(8)]
    items = pl.DataFrame({"item_id": ids, "title": TITLES, "categories": CATEGORIES, "brand": BRANDS})
    rows = [(f"u{user}", ids[(user + step) % 8], step) for user in range(8) for step in range(6)]
    interactions = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return prepare(Given(RawData("named", items, interactions)), folder / "data", require=["title"], k_core=0)


def whole(number: int) -> str:
    return rationale(f"Likes {number}.", "Lamps by Acme.", "A lamp.")


class Parrot:
    """A teacher that says what it was given, two answers a part, and remembers what it was asked."""

    name = "parrot"

    def __init__(self, says: Mapping[str, str], dies_after: int = 99) -> None:
        self.says = says
        self.asked: list[str] = []
        self.dies_after = dies_after

    def check(self, questions: Sequence[Question]) -> None:
        pass

    def generate(self, questions: Sequence[Question], wanted: Collection[int]) -> Iterator[Mapping[int, str]]:
        rows = sorted(wanted)
        for start in range(0, len(rows), 2):
            if start >= self.dies_after:
                raise KeyboardInterrupt
            some = rows[start : start + 2]
            self.asked += [questions[row].text for row in some]
            yield {row: self.says[questions[row].text] for row in some}


def questions(shelf: Shelf, count: int = 5) -> list[Question]:
    return [teacher_question(shelf, [number, number + 1], False) for number in range(count)]


# What is asked, and what counts as an answer


def test_a_prompt_has_the_history_in_order_with_categories_and_brands(shelf: Shelf) -> None:
    for make in (teacher_question, student_question):
        lines = make(shelf, [3, 7, 0], False).text.splitlines()
        assert lines[1:4] == [
            "1. Bolt Mug with gold rim (Home, Kitchen; Bolt & Sons)",
            "2. Ember Torch with strap",
            "3. Acme Lamp with red shade (Home, Lighting; Acme)",
        ]
    asked = teacher_question(shelf, [3], False).text
    assert all(f"\n{number}. {name}:" in asked for number, name in ((1, "Tastes"), (3, "Products")))
    assert len(student_question(shelf, [3], False).text) < len(asked) / 2
    assert "(picture of item p3)" in teacher_question(shelf, [3], True).text
    assert shelf.text(0) == "Acme Lamp with red shade; Home, Lighting; Acme"
    assert shelf.text(7) == "Ember Torch with strap"


def test_a_title_is_no_special_token_and_each_part_is_cut_by_itself(shelf: Shelf, tmp_path: Path) -> None:
    path = families.build("qwen2", tmp_path / "qwen2")
    prompt = PromptConfig(modalities="text", max_title_tokens=9, chat=False)
    encoder = Encoder.build(BackboneConfig(path=str(path)), prompt)
    encoder.look_at(shelf, [])
    tokens = encoder.backbone.tokenizer
    ids = encoder.read(shelf.segments(6, False)).ids
    said = [tokens.decode(encoder.backbone.title_tokens(text)[:9]) for text in (TITLES[6], "Clothing", "Dune")]
    assert tokens.decode(ids) == f"{said[0]} ({said[1]}; {said[2]})"
    assert tokens.get_vocab()["<image>"] not in ids


def test_history_of_a_phase(from_sequences: object) -> None:
    split = Split(from_sequences([[0, 1, 2, 3, 4, 5], [3, 4, 5]], 6), max_history=2)  # type: ignore[operator]
    assert [history_at(split, 0, phase) for phase in ("train", "validation", "test")] == [[1, 2], [2, 3], [3, 4]]
    assert [history_at(split, 1, phase) for phase in ("train", "validation", "test")] == [[], [3], [3, 4]]


@pytest.mark.parametrize(
    "answer",
    [
        "1. Tastes: red things\n2. Categories and brands: lamps, Acme\n3. Products: a lamp",
        "Sure!\n\n**1. Tastes:** red things\n**2. Categories and Brands:** lamps, Acme\n\n**3. Products**: a lamp",
        "## Tastes\nred things\n## Categories & brands\nlamps, Acme\n## Products\na lamp",
        "Step 1: Taste - red things\nStep 2: Category: lamps, Acme\nSTEP 3. PRODUCTS\na lamp",
    ],
)
def test_three_steps_in_any_dress(answer: str) -> None:
    found = steps(answer)
    assert found is not None
    assert [words.strip("* \n") for words in found] == ["red things", "lamps, Acme", "a lamp"]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "red things, lamps, Acme, a lamp",
        "1. Tastes: red things\n2. Categories and brands: lamps, Acme",
        "1. Tastes: red things\n3. Products: a lamp",
        "1. Tastes:\n2. Categories and brands: lamps\n3. Products: a lamp",
        "1. Tastes: red things\n2. Categories and brands: lamps\n3. Products: …",
        "1. Products: a lamp\n2. Categories and brands: lamps\n3. Tastes: red things",
        "1. red things with tastes: 2. categories: lamps 3. products: a lamp",
    ],
)
def test_an_answer_without_its_steps(answer: str) -> None:
    assert steps(answer) is None


# The template


def test_the_template_names_what_recurs_in_the_history_and_not_in_the_catalogue(shelf: Shelf) -> None:
    template = TemplateTeacher(shelf)
    found = steps(template.answer([2, 0, 1, 4]))
    assert found is not None
    tastes, names, products = found
    assert tastes.startswith("The shopper likes red, lamp, ")  # three of four, and no more in the catalogue
    assert "with" not in tastes  # stands in every title
    assert names.startswith("Lighting, ") and "Acme" in names
    assert names.index("Lighting") < names.index("Home")  # a category of nearly everything
    assert products == "Products like Corvo Lamp with red foot; Acme Lamp with blue shade; Acme Lamp with red shade."
    assert "Dune" not in template.answer([2, 0, 1, 4])


def test_a_template_answer_is_whole_and_always_the_same(shelf: Shelf, tiny_dataset: Dataset) -> None:
    bare = Shelf(tiny_dataset)  # no categories, no brands, and no word that says anything
    for place in (shelf, bare):
        for history in ([0], [5, 6, 7], [1, 1, 1], list(range(8))):
            answer = TemplateTeacher(place).answer(history)
            assert steps(answer) is not None and answer == TemplateTeacher(place).answer(history)
    assert "Thing i05" in TemplateTeacher(bare).answer([5])


# Nothing is asked twice


def test_every_answer_is_kept_and_asked_for_once(shelf: Shelf, tmp_path: Path) -> None:
    asked = [*questions(shelf), questions(shelf)[1]]  # two users with one history
    says = {question.text: whole(number) for number, question in enumerate(asked[:5])}
    path = tmp_path / "teacher.jsonl"
    first = Parrot(says, dies_after=2)
    with pytest.raises(KeyboardInterrupt):
        ask(first, asked, shelf, path)
    with path.open("ab") as file:
        file.write(b'{"key": "cut sho')
    second = Parrot(says)
    answered = ask(second, asked, shelf, path)
    assert answered.rationales == [*(whole(number) for number in range(5)), whole(1)]
    assert answered.rejected == 0
    assert first.asked == [question.text for question in asked[:2]]
    assert second.asked == [question.text for question in asked[2:5]]
    third = Parrot({})
    assert ask(third, asked, shelf, path) == answered and third.asked == []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [question.text for question in asked[:5]]
    assert lines[0]["key"] == hashlib.sha256(f"parrot\n{asked[0].text}".encode()).hexdigest()


def test_an_answer_without_its_steps_becomes_the_templates(shelf: Shelf, tmp_path: Path) -> None:
    asked = questions(shelf)
    says = {question.text: whole(number) for number, question in enumerate(asked)}
    says[asked[2].text] = "1. Tastes: lamps"
    says[asked[4].text] = ""
    answered = ask(Parrot(says), asked, shelf, tmp_path / "teacher.jsonl")
    template = TemplateTeacher(shelf)
    assert answered.rejected == 2
    assert [answered.rationales[k] for k in (2, 4)] == [template.answer(asked[k].history) for k in (2, 4)]
    assert answered.rationales[3] == whole(3)
    again = Parrot(says)  # what was rejected is not asked again either
    assert ask(again, asked, shelf, tmp_path / "teacher.jsonl") == answered and again.asked == []


def test_lines_are_appended_over_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_lines(path, [{"a": "één\nline\u2028"}])
    with path.open("ab") as file:
        file.write(b'{"b": ')
    assert read_lines(path) == [{"a": "één\nline\u2028"}]
    append_lines(path, [{"c": 1}, {"d": 2}])
    assert read_lines(path) == [{"a": "één\nline\u2028"}, {"c": 1}, {"d": 2}]
    path.write_bytes(b'{"torn')
    assert read_lines(path) == []
    append_lines(path, [{"e": 3}])
    assert path.read_text() == '{"e": 3}\n'


# A file of answers


def test_a_file_of_answers_from_nothing_to_whole(shelf: Shelf, tmp_path: Path) -> None:
    asked = questions(shelf)
    path, missing = tmp_path / "given.jsonl", tmp_path / "given.missing.jsonl"
    with pytest.raises(InputError, match=r"5 of 5 prompts have no answer .*given\.missing\.jsonl") as error:
        FileTeacher(path, "gpt").check(asked)
    assert "\n" not in str(error.value)
    lines = [json.loads(line) for line in missing.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [question.text for question in asked]
    assert {(line["model"], line["answer"]) for line in lines} == {("gpt", "")}

    # Two filled in there, one given in the file by its key alone: two are left, and nothing that was filled in is lost.
    for number in (0, 3):
        lines[number]["answer"] = whole(number)
    missing.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path.write_text(json.dumps({"key": key_of("gpt", asked[1].text), "answer": whole(1)}) + "\n\n")
    with pytest.raises(InputError, match="2 of 5"):
        FileTeacher(path, "gpt").check(asked)
    left = [json.loads(line) for line in missing.read_text().splitlines()]
    assert left == [lines[0], lines[3], lines[2], lines[4]]
    with pytest.raises(InputError, match="5 of 5"):  # another model's answers are no answers of this one
        FileTeacher(path, "llama").check(asked)

    missing.write_text("".join(json.dumps({**line, "answer": whole(k)}) + "\n" for k, line in enumerate(lines)))
    teacher = FileTeacher(path, "gpt")
    teacher.check(asked)
    assert ask(teacher, asked, shelf, tmp_path / "run" / "teacher.jsonl").rationales == [whole(k) for k in range(5)]
    # What that run kept is itself a file that another run can take.
    other = FileTeacher(tmp_path / "run" / "teacher.jsonl", "gpt")
    other.check(asked)


def test_what_a_file_must_not_say_is_one_line(shelf: Shelf, tmp_path: Path) -> None:
    asked = questions(shelf, 2)
    keys = [key_of("file", question.text) for question in asked]
    lacking = [{"key": keys[0], "answer": whole(0)}, {"key": keys[1], "answer": "1. Tastes: red"}]
    unneeded = {"key": "0" * 64, "answer": "nothing anybody asked for"}
    path = tmp_path / "given.jsonl"
    for text, said in (
        ("".join(json.dumps(line) + "\n" for line in [unneeded, *lacking]), f"the answer with key {keys[1]} lacks"),
        ('{"key": "a", "answer": "b"}\n{"key"', "given.jsonl, line 2: not an answer"),
        ('["key", "answer"]\n', "line 1: not an answer"),
        ('{"key": "a", "answer": null}\n', "line 1: not an answer"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=said) as error:
            FileTeacher(path, "file").check(asked)
        assert "\n" not in str(error.value)
        assert sorted(tmp_path.iterdir()) == [path]
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match="cannot be read"):
        FileTeacher(path, "file")
    with pytest.raises(InputError, match="no such file"):
        FileTeacher(tmp_path / "nowhere" / "given.jsonl", "file")


# A local model


def writer(shelf: Shelf, folder: Path, context: int, answer: int = 4) -> Writer:
    families.build("qwen2", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": context}))
    backbone = BackboneConfig(path=str(folder))
    return Writer(
        Encoder(load_backbone(backbone, head=True), backbone, PromptConfig(modalities="text"), 8192), shelf, answer
    )


def test_a_model_says_what_greedy_decoding_says_whatever_is_wanted(shelf: Shelf, tmp_path: Path) -> None:
    write = writer(shelf, tmp_path / "qwen2", 2048)
    teacher, asked = ModelTeacher("tiny", write), questions(shelf, 7)
    teacher.check(asked)
    prompts = write.read(asked)
    backbone = write.encoder.backbone
    wanted = [greedy(backbone, [(prompt.ids, [])], 4, {2})[0] for prompt in prompts]
    found = {k: text for part in teacher.generate(asked, range(7)) for k, text in part.items()}
    assert [found[k] for k in range(7)] == [
        backbone.tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in wanted
    ]
    assert len(set(found.values())) > 1
    some = {k: text for part in teacher.generate(asked, [2]) for k, text in part.items()}
    assert 2 in some and all(found[k] == text for k, text in some.items())
    assert list(teacher.generate(asked, [])) == []


def test_a_prompt_without_room_for_its_answer_is_one_line(shelf: Shelf, tmp_path: Path) -> None:
    write = writer(shelf, tmp_path / "qwen2", 256)
    with pytest.raises(InputError, match="reads 256; lower data"):
        ModelTeacher("tiny", write).check(questions(shelf))
