"""SLIM: the loss sees rationales alone, no phase borrows another's rationale, nothing held out is ever in one."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
import transformers as hf
from tiny_job import without_clock

from vlm2rec.backbones import generate
from vlm2rec.backbones.load import load_backbone
from vlm2rec.backbones.packing import Prompt
from vlm2rec.backbones.small import TextEncoder
from vlm2rec.config import BackboneConfig, Config, PromptConfig, parse_config
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.job import run
from vlm2rec.methods.slim import answers
from vlm2rec.methods.slim import distillation as distilling
from vlm2rec.methods.slim.distillation import Example, distillation, distillation_step, label, rationale_logits
from vlm2rec.methods.slim.fusion import FusedItems
from vlm2rec.methods.slim.method import SLIM
from vlm2rec.methods.slim.prompts import history_at, steps, student_question, teacher_question
from vlm2rec.methods.slim.teachers import TemplateTeacher
from vlm2rec.runs import Run, metrics_lines
from vlm2rec.seqrec.items import Phase, normalised

PHASES: tuple[Phase, ...] = ("train", "validation", "test")
FEW: dict[str, Any] = {"users": 10, "validation_users": 9}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    words = families.tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    hf.BertModel(hf.BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def family(name: str, folder: Path) -> Path:
    """With room for ten items and an answer."""
    families.build(name, folder)
    config = json.loads((folder / "config.json").read_text())
    config.get("text_config", config)["max_position_embeddings"] = 2048
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family("qwen2", tmp_path_factory.mktemp("qwen2") / "model")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family("llava", tmp_path_factory.mktemp("llava") / "model")


def config(dataset: Dataset, backbone: Path, method: Mapping[str, Any], **sections: Any) -> Config:
    small = {
        "kind": "slim", "teacher": "template", "teacher_users": 8, "max_new_tokens": 8, "epochs": 2, "batch_size": 4,
        "lr": 3e-4, "lora": {"rank": 4, "dropout": 0.1},
    }  # fmt: skip
    seqrec = {"dim": 8, "inner": 8, "epochs": 2, "batch_size": 16, "norm": "l2", **sections.pop("seqrec", {})}
    raw = {
        "data": {"path": str(dataset.path), "max_history": 4},
        "backbone": {"path": str(backbone)},
        "method": {**small, **method},
        "evaluation": FEW,
        "training": {"checkpoint_every": 1},
        "seqrec": seqrec,
        **sections,
    }
    return parse_config(raw)


@pytest.fixture(scope="module")
def plain(tiny_dataset: Dataset, qwen2: Path, bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """SLIM with both sequential models; not to be written to."""
    raw = config(
        tiny_dataset, qwen2, {"text_encoder": str(bert)}, seqrec={"backbones": ["sasrec", "gru4rec"], "epochs": 1}
    )
    return run(raw, tmp_path_factory.mktemp("plain") / "run")


def rationales(folder: Path, phase: str) -> dict[str, str]:
    lines = [json.loads(line) for line in (folder / "rationales" / f"{phase}.jsonl").read_text().splitlines()]
    return {line["user_id"]: line["answer"] for line in lines}


def losses(done: Run) -> list[dict[str, Any]]:
    return [without_clock(line) for line in metrics_lines(done.path / "metrics.jsonl")]


def poison(file: Path) -> None:
    """Another text under every key."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({**line, "answer": "blue mug " + line["user_id"]}) + "\n" for line in lines))


# The loss


def examples_of(encoder: Encoder) -> list[Example]:
    words = ["a red lamp", "a blue mug and a red lamp", "these products"]
    said = ["a mug", "1. Tastes: red", "a shopper bought"]
    return [
        Example(Prompt(encoder.backbone.tokens(prompt), []), label(encoder.backbone, answer, 12))
        for prompt, answer in zip(words, said, strict=True)
    ]


def student(path: Path) -> Encoder:
    settings = BackboneConfig(path=str(path))
    return Encoder(load_backbone(settings, head=True), settings, PromptConfig(modalities="text"), 8192)


def test_the_loss_is_that_of_the_rationales_tokens_alone(qwen2: Path) -> None:
    encoder = student(qwen2)
    examples = examples_of(encoder)
    assert encoder.backbone.generator is not None
    wanted = 0.0
    for example in examples:  # the stock loss, one row at a time, with the prompt masked
        ids = torch.tensor([[*example.prompt.ids, *example.answer]])
        labels = ids.clone()
        labels[:, : len(example.prompt.ids)] = -100
        with torch.no_grad():
            wanted += float(encoder.backbone.generator(input_ids=ids, labels=labels).loss) * len(example.answer)
    logits, tokens = rationale_logits(encoder.backbone, examples)
    assert tokens.tolist() == [token for example in examples for token in example.answer]
    assert float(distillation(logits, tokens)) == pytest.approx(wanted, rel=1e-5)
    assert wanted > 0


def test_a_label_ends_where_the_rationale_does_or_is_cut(qwen2: Path) -> None:
    backbone = student(qwen2).backbone
    ids = backbone.tokens("a red lamp")
    assert label(backbone, "a red lamp", 99) == [*ids, 2]
    assert label(backbone, "a red lamp", len(ids)) == ids
    assert label(backbone, "a red lamp", 2) == ids[:2]
    assert 2 not in label(backbone, "</s> a red lamp", 4)


@pytest.mark.parametrize("micro", [1, 2])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(tiny_dataset: Dataset, qwen2: Path, micro: int) -> None:
    found = []
    for part in (None, micro):
        encoder = student(qwen2)
        encoder.backbone.model.requires_grad_(True)
        settings = config(tiny_dataset, qwen2, {"batch_size": 3}, training={"micro_batch": part})
        step = distillation_step(encoder.backbone, examples_of(encoder), settings)
        figures = step(0, lambda loss: loss.backward())  # type: ignore[no-untyped-call]
        gradient = encoder.backbone.model.layers[0].mlp.up_proj.weight.grad
        assert gradient is not None and gradient.abs().max() > 0
        found.append((figures["loss"], gradient))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-6, rtol=1e-4)


# Whole runs


def test_slim_end_to_end(plain: Run, tiny_dataset: Dataset, bert: Path) -> None:
    results, done = plain.results(), plain.manifest["done"]
    assert set(results["seqrec"]) == {"sasrec", "gru4rec"} and set(results["dropout"]) == {"f2f"}
    assert done["train"]["teacher"] == {"name": "template", "asked": 8, "rejected": 0}
    assert (done["train"]["steps"], done["encode"]["rationales"]) == (4, 10)
    assert losses(plain)[-1]["loss"] < losses(plain)[0]["loss"]
    # A user is what the student says of the test history, an item its text, both read by the text encoder.
    items, histories = (EmbeddingTable.load(plain.path / name) for name in ("items", "histories"))
    encoder, said = TextEncoder(str(bert), "cls"), rationales(plain.path, "test")
    assert sorted(said) == sorted(histories.ids)
    np.testing.assert_allclose(histories["fused"], encoder([said[str(name)] for name in histories.ids]), atol=1e-5)
    np.testing.assert_allclose(items["fused"], encoder(tiny_dataset.titles), atol=1e-5)
    # Who has a rationale when: who is tested, who validates, and everyone that a sequential model trains on.
    split = Split(tiny_dataset, 4)
    assert len(rationales(plain.path, "validation")) == 9
    assert len(rationales(plain.path, "train")) == sum(len(items) >= 2 for items in split.train) == 40


def test_nothing_held_out_is_in_what_the_student_learns(plain: Run, tiny_dataset: Dataset) -> None:
    split = Split(tiny_dataset, 4)
    method = SLIM(plain.config, split)
    users = method.labelled()
    kept = [json.loads(line) for line in (plain.path / "teacher.jsonl").read_text().splitlines()]
    assert len(kept) == len(users) == 8
    for user, line in zip(users, kept, strict=True):
        sequence = [tiny_dataset.titles[item] for item in tiny_dataset.sequences[user]]
        (question,) = method.questions(np.array([user]), "train")
        in_prompts = re.findall(r"Thing i\d\d", line["prompt"])
        assert in_prompts == re.findall(r"Thing i\d\d", question.text) == sequence[:-3][-4:]
        in_label = set(re.findall(r"Thing i\d\d", line["answer"]))
        assert in_label and in_label <= set(sequence[:-3])
    # The same users whatever the seed: a service's answers cost money.
    other = SLIM(plain.config.model_copy(update={"seed": 1}), split)
    np.testing.assert_array_equal(other.labelled(), users)
    few = plain.config.model_copy(update={"training": plain.config.training.model_copy(update={"users": 3})})
    assert len(SLIM(few, split).labelled()) == 3


def test_a_rationale_is_what_the_tuned_student_says(plain: Run, tiny_dataset: Dataset) -> None:
    method = SLIM(plain.config, Split(tiny_dataset, 4))
    tuned = method.student(plain)
    user = 7
    for phase in PHASES:
        asked = student_question(method.shelf, history_at(method.split, user, phase), False)
        (part,) = answers.Writer(tuned, method.shelf, 8)([asked], [0])
        known = rationales(plain.path, phase)
        if tiny_dataset.user_ids[user] in known:
            assert known[tiny_dataset.user_ids[user]] == part[0]
    assert len(set(rationales(plain.path, "test").values())) > 1


@pytest.mark.parametrize("spoiled", PHASES)
def test_a_phase_uses_its_own_rationales_only(
    plain: Run, tiny_dataset: Dataset, tmp_path: Path, spoiled: Phase
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(plain.path, copy)
    poison(copy / "rationales" / f"{spoiled}.jsonl")
    for leftover in (copy / "stages", copy / "histories"):
        shutil.rmtree(leftover)
    opened = Run.open(copy)
    method = SLIM(plain.config, Split(tiny_dataset, 4))
    original = method.sequence_items(plain, "l2")
    tested = np.array(
        [tiny_dataset.user_ids.index(str(name)) for name in EmbeddingTable.load(plain.path / "histories").ids]
    )
    method.encode(opened, tested)
    changed = method.sequence_items(opened, "l2")
    for phase in PHASES:
        one, other = (items.get_buffer(f"rationales_{phase}") for items in (original, changed))
        assert torch.allclose(one, other, atol=1e-4) is (phase != spoiled), phase
    direct = method._embed(
        opened, tested, ["blue mug " + tiny_dataset.user_ids[u] for u in tested], tmp_path / "direct"
    )
    histories = EmbeddingTable.load(copy / "histories")
    assert np.allclose(histories["fused"], direct["fused"], atol=1e-5) is (spoiled == "test")


def test_another_phases_file_is_of_no_use(plain: Run, tiny_dataset: Dataset, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(plain.path, copy)
    users = np.arange(40)
    method = SLIM(plain.config, Split(tiny_dataset, 4))
    wanted = method.rationales(plain_copy := Run.open(copy), users, "validation")
    poison(copy / "rationales" / "test.jsonl")
    (copy / "rationales" / "test.jsonl").replace(copy / "rationales" / "validation.jsonl")
    assert method.rationales(plain_copy, users, "validation") == wanted


def test_validation_scores_are_of_validation_rationales(plain: Run, tiny_dataset: Dataset, bert: Path) -> None:
    method = SLIM(plain.config, Split(tiny_dataset, 4))
    users = np.array([tiny_dataset.user_ids.index(name) for name in rationales(plain.path, "validation")])
    users.sort()
    scores = method.scorer(plain, users, "validation").scores(np.arange(len(users)))
    known = rationales(plain.path, "validation")
    said = TextEncoder(str(bert), "cls")([known[tiny_dataset.user_ids[user]] for user in users])
    items = torch.from_numpy(EmbeddingTable.load(plain.path / "items").unit("fused"))
    wanted = torch.nn.functional.normalize(said, dim=-1) @ items.T
    np.testing.assert_allclose(scores, wanted, atol=1e-5)


@pytest.mark.parametrize("task2", ["fusion", "init_only"])
def test_slim_plus_end_to_end(tiny_dataset: Dataset, qwen2: Path, tmp_path: Path, task2: str) -> None:
    raw = config(
        tiny_dataset, qwen2, {"encoder": "student", "task2": task2}, seqrec={"backbones": ["gru4rec"], "epochs": 1}
    )
    done = run(raw, tmp_path / "run")
    assert set(done.results()["seqrec"]) == {"gru4rec"}
    assert (done.path / "rationales" / "train.jsonl").exists() is (task2 == "fusion")
    assert not (done.path / "rationales" / "validation.jsonl").exists() or task2 == "fusion"
    # Both sides are the student's state at the same closing words.
    method = SLIM(raw, Split(tiny_dataset, 4))
    tuned = method.student(done)
    before, after = tuned.backbone.wrapper(True)
    closing = [*tuned.backbone.tokens("\n" + raw.prompt.closing), *after]
    items, histories = (EmbeddingTable.load(done.path / name) for name in ("items", "histories"))
    for table, row, text, most in (
        (items, 5, tiny_dataset.titles[5], 32),
        (histories, 3, rationales(done.path, "test")[str(histories.ids[3])], 8),
    ):
        with torch.inference_mode():
            state = tuned.backbone.last_states([[*before, *tuned.backbone.title_tokens(text)[:most], *closing]], [])
        np.testing.assert_allclose(table["fused"][row], state[0], atol=1e-4)


def test_multimodal_slim_plus_reads_pictures_on_both_sides(tiny_dataset: Dataset, llava: Path, tmp_path: Path) -> None:
    raw = config(tiny_dataset, llava, {"encoder": "student", "modality": "multimodal", "teacher": "model"})
    done = run(raw, tmp_path / "run")
    teacher = done.manifest["done"]["train"]["teacher"]
    assert teacher == {"name": str(llava), "asked": 8, "rejected": 8}  # random weights reason in no steps
    kept = [json.loads(line) for line in (done.path / "teacher.jsonl").read_text().splitlines()]
    assert all("(picture of item i" in line["prompt"] for line in kept)
    method = SLIM(raw, Split(tiny_dataset, 4))
    items = EmbeddingTable.load(done.path / "items")
    embed = method._items(done)
    with torch.inference_mode():
        np.testing.assert_allclose(items["fused"][:2], embed([0, 1])["fused"], atol=1e-4)
        method.shelf.titles = ["the same"] * len(method.shelf.titles)
        tuned = method.student(done)
        tuned._titles = {}
        one, other = embed([0, 1])["fused"]
    assert not torch.allclose(one, other, atol=1e-3)


def test_a_local_teacher_that_is_rejected_leaves_the_templates_labels(
    tiny_dataset: Dataset, qwen2: Path, bert: Path, tmp_path: Path
) -> None:
    other = family("qwen2", tmp_path / "teacher")
    method = {"text_encoder": str(bert), "teacher": "model"}
    first = run(config(tiny_dataset, qwen2, {**method, "teacher_path": str(other)}), tmp_path / "a", until="train")
    assert first.manifest["done"]["train"]["teacher"] == {"name": str(other), "asked": 8, "rejected": 8}
    template = run(config(tiny_dataset, qwen2, {**method, "teacher": "template"}), tmp_path / "b", until="train")
    losses = [
        [without_clock(line) for line in metrics_lines(done.path / "metrics.jsonl")] for done in (first, template)
    ]
    assert losses[0] == losses[1]


def test_a_file_of_answers_teaches(tiny_dataset: Dataset, qwen2: Path, bert: Path, tmp_path: Path) -> None:
    given = tmp_path / "given.jsonl"
    method = {"text_encoder": str(bert), "teacher": "file", "teacher_path": str(given)}
    raw = config(tiny_dataset, qwen2, method)
    with pytest.raises(InputError, match="8 of 8 prompts have no answer"):
        run(raw, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    slim = SLIM(raw, Split(tiny_dataset, 4))
    template = TemplateTeacher(slim.shelf)
    lines = [json.loads(line) for line in (tmp_path / "given.missing.jsonl").read_text().splitlines()]
    by_prompt = {question.text: question for question in slim.questions(slim.labelled(), "train", teacher_question)}
    with given.open("w") as file:
        for line in lines:
            answer = template.answer(by_prompt[line["prompt"]].history).replace("Thing", "Object")
            assert steps(answer) is not None
            file.write(json.dumps({**line, "answer": answer}) + "\n")
    done = run(raw, tmp_path / "run", until="train")
    assert done.manifest["done"]["train"]["teacher"] == {"name": "file", "asked": 8, "rejected": 0}
    assert "Object i" in (done.path / "teacher.jsonl").read_text()


# Killed and continued


class Counted:
    """Counts the model's answers and the losses of a run, in order, and can kill it at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kill_at: int | None = None) -> None:
        self.events: list[str] = []
        self.kill_at = kill_at
        monkeypatch.setattr(answers, "greedy", self.counting("greedy", answers.greedy))
        monkeypatch.setattr(distilling, "distillation", self.counting("loss", distilling.distillation))

    def counting(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any) -> Any:
            if len(self.events) == self.kill_at:
                self.kill_at = None
                raise KeyboardInterrupt
            self.events.append(name)
            return work(*given)

        return counted


@pytest.fixture(scope="module")
def unkilled(
    tiny_dataset: Dataset, qwen2: Path, bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, list[str]]:
    """A run with a local teacher, in small parts, and what was done in it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(generate, "_ROWS_AT_ONCE", 2)
        counted = Counted(patched)
        raw = config(tiny_dataset, qwen2, {"text_encoder": str(bert), "teacher": "model"})
        return run(raw, tmp_path_factory.mktemp("unkilled") / "run", until="encode"), counted.events


@pytest.mark.parametrize("where", ["teacher", "training", "rationales"])
def test_a_killed_run_goes_on_to_the_same_end_and_does_nothing_twice(
    unkilled: tuple[Run, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    wanted, events = unkilled
    first_loss, last = events.index("loss"), len(events) - 1
    assert first_loss >= 3 and events[last] == "greedy"
    monkeypatch.setattr(generate, "_ROWS_AT_ONCE", 2)
    killed = Counted(monkeypatch, {"teacher": 2, "training": first_loss + 2, "rationales": last}[where])
    spoilt = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        run(wanted.config, spoilt, until="encode")
    torn = {"teacher": "teacher.jsonl", "rationales": "rationales/test.jsonl"}
    if where in torn:
        with (spoilt / torn[where]).open("ab") as file:
            file.write(b'{"key": "to')
    again = run(wanted.config, spoilt, until="encode")
    assert killed.events == events
    for name in ("teacher.jsonl", "rationales/test.jsonl"):
        assert (spoilt / name).read_text() == (wanted.path / name).read_text()
    assert losses(again) == losses(wanted)
    for table in ("items", "histories"):
        first, second = (EmbeddingTable.load(folder / table)["fused"] for folder in (wanted.path, spoilt))
        np.testing.assert_array_equal(first, second)


def test_task_2_goes_on_where_rationales_were_cut_short(plain: Run, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(plain.path, copy)
    shutil.rmtree(copy / "stages")
    kept = (copy / "rationales" / "train.jsonl").read_bytes()
    (copy / "rationales" / "train.jsonl").write_bytes(kept[: len(kept) // 2])
    opened = Run.open(copy)
    del opened.manifest["done"]["seqrec"]
    opened.record()
    assert run(plain.config, copy).results()["seqrec"] == plain.results()["seqrec"]
    assert (copy / "rationales" / "train.jsonl").read_bytes() == kept


# Fusion


def fused(norm: str = "l2") -> tuple[FusedItems, dict[Phase, tuple[np.ndarray, np.ndarray]], np.ndarray]:
    rng = np.random.default_rng(0)
    items = rng.normal(size=(6, 5)).astype(np.float32)
    told: dict[Phase, tuple[np.ndarray, np.ndarray]] = {
        phase: (np.array(users), rng.normal(2, 3, size=(len(users), 5)).astype(np.float32))
        for phase, users in zip(PHASES, ([0, 2, 3], [1, 3], [3, 0]), strict=True)
    }
    torch.manual_seed(0)
    return FusedItems(items, told, 4, 3, norm), told, items  # type: ignore[arg-type]


def test_fusion_by_its_definition() -> None:
    model, told, items = fused()
    assert (model.loss, model.targets) == ("bce", "last")
    text = torch.from_numpy(normalised(items, "l2")) @ model.text.weight.T + model.text.bias
    wanted = torch.cat([text, model.ids.table], 1) @ model.item.weight.T + model.item.bias
    torch.testing.assert_close(model(), wanted)
    states = torch.randn(2, 4, 3)
    for phase in PHASES:
        users, vectors = told[phase]
        asked = torch.tensor([users[1], users[0]])[:, None].expand(2, 4)
        found = model.users(states, asked, phase)
        for row, at in ((0, 1), (1, 0)):
            said = torch.from_numpy(normalised(vectors, "l2"))[at] @ model.text.weight.T + model.text.bias
            for place in range(4):
                joined = torch.cat([said, states[row, place]]) @ model.user.weight.T + model.user.bias
                torch.testing.assert_close(found[row, place], joined)
    model().sum().backward()
    assert model.ids.table.grad is not None and not model.get_buffer("texts").requires_grad


def test_a_user_without_a_rationale_is_an_error_and_never_another_users() -> None:
    model, told, _ = fused()
    for phase in PHASES:
        for user in set(range(4)) - set(told[phase][0].tolist()):
            with pytest.raises(ValueError, match=f"user {user} has no rationale in the phase {phase}"):
                model.users(torch.randn(2, 1, 3), torch.tensor([[3], [user]]), phase)


def test_every_phase_is_standardised_as_training_was() -> None:
    model, told, _ = fused("standardize")
    mean, deviation = told["train"][1].mean(0), told["train"][1].std(0)
    for phase in PHASES:
        wanted = (told[phase][1] - mean) / deviation
        np.testing.assert_allclose(model.get_buffer(f"rationales_{phase}"), wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.get_buffer("texts").mean(0), np.zeros(5), atol=1e-5)


# What cannot be used


def test_what_does_not_fit_is_one_line(
    tiny_dataset: Dataset, from_sequences: Callable[..., Dataset], qwen2: Path, bert: Path, tmp_path: Path
) -> None:
    blind, short = from_sequences([[0, 1, 2, 3]] * 3, 4, "blind"), from_sequences([[0, 1, 2]] * 3, 4, "short")
    nowhere = str(tmp_path / "nowhere")
    good = {"text_encoder": str(bert)}
    fusion = {"backbones": ["sasrec"], "table": "tuned"}
    wrong: list[tuple[Dataset, dict[str, Any], dict[str, Any], str]] = [
        (tiny_dataset, {**good, "modality": "multimodal"}, {}, "reads no pictures, but method.modality"),
        (blind, {**good, "modality": "multimodal"}, {}, "has no pictures"),
        (short, good, {}, "nothing can be trained"),
        (tiny_dataset, {"text_encoder": nowhere}, {}, "no such folder"),
        (tiny_dataset, {**good, "teacher": "file"}, {}, "needs method.teacher_path"),
        (tiny_dataset, {**good, "teacher": "file", "teacher_path": nowhere + "/a.jsonl"}, {}, "no such file"),
        (tiny_dataset, {**good, "teacher": "model", "teacher_path": nowhere}, {}, "method.teacher_path = "),
        (tiny_dataset, {**good, "max_new_tokens": 2000}, {}, "reads 2048; lower data"),
        (tiny_dataset, good, {"seqrec": fusion}, "seqrec.table = 'tuned'"),
    ]
    for dataset, method, sections, said in wrong:
        with pytest.raises(InputError, match=re.escape(said)) as error:
            run(config(dataset, qwen2, method, **sections), tmp_path / "run")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()
