"""LLM2Rec: what each stage asks, its losses against naive ones, what it may not know, stopping and going on."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import numpy as np
import polars as pl
import pytest
import torch
import transformers as hf
from conftest import Given
from safetensors.torch import load_file
from test_bidirectional import build_text_only
from tiny_job import make_config
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from vlm2rec.backbones.load import load_backbone, mean_over
from vlm2rec.backbones.titles import IGNORED, TitleEncoder, TitleReader
from vlm2rec.config import BackboneConfig, Config
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.prepare import prepare
from vlm2rec.data.ragged import Ragged
from vlm2rec.data.sources import RawData
from vlm2rec.data.splits import Split
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.errors import InputError
from vlm2rec.job import run
from vlm2rec.methods.llm2rec import LLM2Rec, Tuning, asked, states_before, token_loss
from vlm2rec.runs import Run, read_metrics

TINY: dict[str, Any] = {
    "csft_steps": 12, "csft_batch": 16, "csft_lr": 3e-3, "csft_validations": 3, "csft_warmup": 0.1,
    "mntp_steps": 12, "mntp_batch": 8, "mntp_lr": 3e-3,
    "contrast_steps": 12, "contrast_batch": 16, "contrast_lr": 1e-3, "contrast_warmup": 0.1,
}  # fmt: skip
STAGES = ("csft", "mntp", "contrast")


def config(dataset: Dataset, backbone: Path, /, **given: Any) -> Config:
    """`backbone`, `training`, … are sections; what remains is the method's."""
    sections = {name: given.pop(name) for name in ("backbone", "training", "data", "seqrec", "seed") if name in given}
    sections["training"] = {"checkpoint_every": 4, **sections.get("training", {})}
    return make_config(dataset, backbone, "llm2rec", method={**TINY, **given}, **sections)


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.build("qwen2", tmp_path_factory.mktemp("backbones") / "qwen2")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.build("llava", tmp_path_factory.mktemp("backbones") / "llava")


@pytest.fixture(scope="module")
def starting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose tokenizer begins every text with a start token."""
    folder = build_text_only("llama", tmp_path_factory.mktemp("backbones") / "llama")
    words = families.tokenizer()
    words._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(tiny_dataset: Dataset, qwen2: Path, llava: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A text-only model tuned whole, the language model of a LLaVA with adapters."""
    folder = tmp_path_factory.mktemp("runs")
    run(config(tiny_dataset, qwen2, seqrec={"backbones": ["gru4rec"], "epochs": 1}), folder / "full")
    run(config(tiny_dataset, llava, tuning="lora"), folder / "lora")
    return {path.name: path for path in folder.iterdir()}


def reader(path: Path, max_tokens: int = 32) -> TitleReader:
    return TitleReader(load_backbone(BackboneConfig(path=str(path))), max_tokens)


def tuning(made: Config, dataset: Dataset) -> Tuning:
    method = LLM2Rec(made, Split(dataset, made.data.max_history))
    method.check(trained=False)
    assert method.tuning is not None
    return method.tuning


def language(path: Path, both_ways: bool) -> tuple[Any, Tensor]:
    """A text-only checkpoint as plain transformers gives it, in float64, and its head."""
    model = hf.AutoModelForCausalLM.from_pretrained(path).double().eval()
    model.config.is_causal = not both_ways
    return model.model, model.lm_head.weight.detach()


# What the model reads


def test_a_history_is_read_and_the_next_title_asked(qwen2: Path) -> None:
    words, sample = families.tokenizer(), reader(qwen2).next_title(["a red lamp", "a blue mug"], "a lamp")
    assert words.decode(sample.ids) == "a red lamp, a blue mug, a lamp\n</s>"
    assert sample.ids == words("a red lamp, a blue mug, a lamp\n</s>")["input_ids"], "as plain text would be read"
    said = [label for label in sample.labels if label != IGNORED]
    assert words.decode(said) == " a lamp\n</s>" and said[-1] == words.eos_token_id
    assert sample.labels[-len(said) :] == sample.ids[-len(said) :] and asked(sample) == len(said)


def test_titles_are_cut_and_never_empty(qwen2: Path, starting: Path) -> None:
    read = reader(qwen2, max_tokens=4)
    words = families.tokenizer()
    assert read("a red lamp and a blue mug") == words("a red lamp and a blue mug")["input_ids"][:4]
    assert words.decode(reader(qwen2)(" ")) == "(no title)"
    sample = read.next_title(["a red lamp and a blue mug"], "a shopper bought these products")
    assert len(sample.ids) == 4 + 1 + 4 + 2
    image = reader(qwen2)("an <image> of a lamp")
    assert words.get_vocab()["<image>"] not in image, "what a title says is words"
    assert reader(starting).start == [1] and reader(qwen2).start == []


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.95])
def test_a_share_of_a_title_is_blanked(qwen2: Path, starting: Path, share: float) -> None:
    blank = families.tokenizer().get_vocab()["_"]
    for path in (qwen2, starting):
        read, places = reader(path), set()
        for draw in range(40):
            title = "a red lamp and a blue mug"
            whole = [*read.start, *read(title)]
            sample = read.masked(title, share, np.random.default_rng(draw))
            hidden = [place for place, label in enumerate(sample.labels) if label != IGNORED]
            assert len(hidden) == min(max(1, round(share * len(read(title)))), len(whole) - 1)
            assert [sample.labels[place] for place in hidden] == [whole[place] for place in hidden]
            wanted = [blank if place in hidden else token for place, token in enumerate(whole)]
            assert sample.ids == wanted and 0 not in hidden
            places |= set(hidden)
        assert places == set(range(1, len(whole))), "every token that has another before it may be blanked"
    assert not reader(qwen2).maskable("a") and reader(starting).maskable("a")


def test_a_batch_is_a_function_of_seed_and_step(tiny_dataset: Dataset, qwen2: Path) -> None:
    one, same = (tuning(config(tiny_dataset, qwen2), tiny_dataset) for _ in range(2))
    other = tuning(config(tiny_dataset, qwen2, seed=1), tiny_dataset)
    for draw in (Tuning.blanked_titles, Tuning.next_titles):
        assert draw(one, 0) != draw(one, 3) and draw(one, 3) == draw(same, 3) != draw(other, 3)
        assert len(draw(one, 5)) == (8 if draw is Tuning.blanked_titles else 16)


# Losses against naive ones


def test_the_token_loss_is_the_left_neighbours(tiny_dataset: Dataset) -> None:
    torch.manual_seed(0)
    states, head = torch.randn(3, 6, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    labels = torch.full((3, 6), IGNORED)
    labels[0, 2], labels[0, 5], labels[2, 1] = 4, 8, 0
    naive = 0.0
    for row, place in ((0, 2), (0, 5), (2, 1)):
        scores = [float(head[token] @ states[row, place - 1]) for token in range(9)]
        naive -= scores[labels[row, place]] - math.log(sum(math.exp(score) for score in scores))
    found = token_loss(states_before(states, labels) @ head.T, labels)
    assert float(found) == pytest.approx(naive, rel=1e-6)


@pytest.mark.parametrize("stage", ["csft", "mntp"])
@pytest.mark.parametrize("part", [None, 5])
def test_what_a_step_minimises(
    tiny_dataset: Dataset, qwen2: Path, starting: Path, stage: str, part: int | None
) -> None:
    """Row by row, without padding, in float64, from plain transformers."""
    for path in (qwen2, starting):
        made = tuning(config(tiny_dataset, path, micro_batch=part), tiny_dataset)
        batch = made.next_titles(2) if stage == "csft" else made.blanked_titles(2)
        model, head = language(path, both_ways=stage == "mntp")
        total, count = 0.0, 0
        for sample in batch:
            with torch.no_grad():
                states = model(torch.tensor([sample.ids]), use_cache=False).last_hidden_state[0]
            chances = (states @ head.T).log_softmax(-1)
            for place, label in enumerate(sample.labels):
                if label != IGNORED:
                    total, count = total - float(chances[place - 1, label]), count + 1
        step = next(each for each in made.stages() if each.name == stage)
        step.prepare()
        losses: list[Tensor] = []
        logged = step.step(2, losses.append)
        assert len(losses) == (1 if part is None else math.ceil(len(batch) / part))
        assert logged["loss"] == pytest.approx(total / count, rel=1e-5)
        assert sum(map(float, losses)) == pytest.approx(logged["loss"], rel=1e-6)
        assert logged["samples"] == len(batch)


def same_titles(path: Path) -> Dataset:
    """Ten items, of which three and two share a title."""
    titles = ["a red lamp"] * 3 + ["a blue mug"] * 2 + [f"a lamp and {k} mugs" for k in range(5)]
    items = pl.DataFrame({"item_id": [str(k) for k in range(10)], "title": titles})
    rows = [(f"u{u}", str(k), step) for u in range(6) for step, k in enumerate((np.arange(10) + u) % 10)]
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return prepare(Given(RawData("twins", items, events)), path, require=["title"], k_core=0)


def test_contrast_leaves_out_the_same_title(qwen2: Path, tmp_path: Path) -> None:
    twins = same_titles(tmp_path / "twins")
    made = tuning(config(twins, qwen2, contrast_batch=10, contrast_dropout=0.0, temperature=0.3), twins)
    made._attend(True, 0.0)
    model, _ = language(qwen2, both_ways=True)
    words = families.tokenizer()
    with torch.no_grad():
        unit = {}
        for title in set(twins.titles):
            states = model(torch.tensor([words(title)["input_ids"]]), use_cache=False).last_hidden_state[0]
            unit[title] = states.mean(0) / states.mean(0).norm()
    naive = []
    for title in twins.titles:
        others = [float(unit[title] @ unit[other]) / 0.3 for other in twins.titles if other != title]
        naive.append(math.log(math.exp(1 / 0.3) + sum(map(math.exp, others))) - 1 / 0.3)
    with torch.no_grad():
        found = made._contrast_step(0, lambda loss: None)
    assert found["samples"] == 10 and found["loss"] == pytest.approx(np.mean(naive), rel=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_a_batch_in_parts_has_the_gradient_of_the_whole(tiny_dataset: Dataset, llava: Path, stage: str) -> None:
    gradients = []
    for part in (None, 5):
        made = tuning(config(tiny_dataset, llava, micro_batch=part, contrast_dropout=0.0), tiny_dataset)
        made.make_trainable()
        own = next(each for each in made.stages() if each.name == stage)
        own.prepare()
        own.step(0, torch.Tensor.backward)
        gradients.append({n: p.grad for n, p in made.module.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert not any("vision" in name or "projector" in name for name in gradients[0])
    assert ("lm_head.weight" in gradients[0]) == (stage != "contrast")
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], atol=1e-5, rtol=1e-3)


def test_the_two_views_of_the_contrast_differ_by_dropout_alone(tiny_dataset: Dataset, qwen2: Path) -> None:
    made = tuning(config(tiny_dataset, qwen2, contrast_dropout=0.3), tiny_dataset)
    rows = [made.read(title) for title in tiny_dataset.titles[:4]]
    for stage in made.stages():
        stage.prepare()
        made.module.train()
        with torch.no_grad():
            first, second = made.encoder.pooled([*rows, *rows]).chunk(2)
        same = torch.allclose(first, second, atol=1e-5)
        assert same == (stage.name != "contrast"), stage.name


# Vectors


@pytest.mark.parametrize("start", [False, True])
def test_a_vector_is_the_mean_over_the_titles_tokens(
    tiny_dataset: Dataset, qwen2: Path, starting: Path, tmp_path: Path, start: bool
) -> None:
    """Without any stage: the backbone as it comes, made to look both ways."""
    path = starting if start else qwen2
    none = dict.fromkeys((f"{stage}_steps" for stage in STAGES), 0)
    done = run(config(tiny_dataset, path, **none), tmp_path / "run")
    items = EmbeddingTable.load(done.path / "items")
    assert list(items.views) == ["fused"] and not list((done.path).glob("stages/*"))
    model, _ = language(path, both_ways=True)
    words = families.tokenizer()
    for item in (0, 7, 23):
        ids = words(tiny_dataset.titles[item])["input_ids"]
        with torch.no_grad():
            states = model(torch.tensor([[*([1] if start else []), *ids]]), use_cache=False).last_hidden_state[0]
        np.testing.assert_allclose(items["fused"][item], states[int(start) :].mean(0), atol=1e-5)


def test_padding_does_not_count_into_a_mean() -> None:
    states = torch.tensor([[[1.0], [3.0], [100.0]], [[1.0], [3.0], [5.0]]])
    real = torch.tensor([[True, True, False], [True, True, True]])
    assert mean_over(states, real).tolist() == [[2.0], [3.0]]
    assert mean_over(states.bfloat16(), real).dtype == torch.float32


# A whole run


def weights(folder: Path) -> dict[str, Tensor]:
    name = "language" if (folder / "model" / "language.safetensors").exists() else "adapter_model"
    return load_file(folder / "model" / f"{name}.safetensors")


def check_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def stamps(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_what_a_run_leaves(runs: dict[str, Path], kind: str, tiny_dataset: Dataset) -> None:
    folder = runs[kind]
    found = json.loads((folder / "results.json").read_text())
    assert found["method"] == "llm2rec" and set(found["dropout"]) == {"f2f"}
    assert set(found["validation"]) - {"seqrec:gru4rec"} == {"csft_loss", "csft_epoch"}
    kept = json.loads((folder / "manifest.json").read_text())["done"]["train"]
    assert kept["steps"] == {"csft": 12, "mntp": 12, "contrast": 12} and kept["seconds"] > 0
    for stage in STAGES:
        own = {path.name for path in (folder / "stages" / stage).iterdir()}
        assert own == {"metrics.jsonl", "tensorboard", "stage.json"}, "no weights are left twice"
    items, histories = (EmbeddingTable.load(folder / name) for name in ("items", "histories"))
    assert len(items) == 24 and len(histories) == len(tiny_dataset.user_ids)
    assert ("seqrec" in found) == (kind == "full")


def test_what_is_trained(runs: dict[str, Path], qwen2: Path, llava: Path) -> None:
    before = dict(load_backbone(BackboneConfig(path=str(qwen2))).model.named_parameters())
    after = weights(runs["full"])
    assert after.keys() == before.keys()
    assert all(not torch.equal(value, before[name]) for name, value in after.items()), "everything has moved"
    adapters = weights(runs["lora"])
    assert adapters and all("language_model" in name and "lora_" in name for name in adapters)
    assert any(value.abs().sum() > 0 for name, value in adapters.items() if "lora_B" in name)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_every_stage_learns(runs: dict[str, Path], kind: str) -> None:
    for stage in STAGES:
        losses = [line["loss"] for line in read_metrics(runs[kind] / "stages" / stage / "metrics.jsonl", "train")]
        first, last = np.mean(losses[:3]), np.mean(losses[-3:])
        assert last < (0.97 if kind == "lora" else 0.8) * first, (stage, losses)


def test_the_weights_that_validate_best_go_on(runs: dict[str, Path]) -> None:
    for folder in runs.values():
        lines = read_metrics(folder / "stages" / "csft" / "metrics.jsonl", "validation")
        kept = json.loads((folder / "stages" / "csft" / "stage.json").read_text())["validation"]
        assert [line["epoch"] for line in lines] == [1, 2, 3]
        best = min(lines, key=lambda line: line["loss"])
        assert kept == {"loss": best["loss"], "epoch": best["epoch"]}


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_vectors_before_saving_are_those_after_loading(
    tiny_dataset: Dataset, qwen2: Path, llava: Path, tmp_path: Path, runs: dict[str, Path], kind: str
) -> None:
    made = Run.open(runs[kind]).config
    method = LLM2Rec(made, Split(tiny_dataset))
    method.check(trained=False)
    done = Run.create(tmp_path / "run", made)
    method.train(done)
    check_same_weights(done.path, runs[kind])
    assert method.tuning is not None
    with torch.no_grad():
        before = method.tuning.encoder(tiny_dataset.titles)
    loaded = TitleEncoder.load(done.path / "model")
    with torch.no_grad():
        assert torch.equal(loaded(tiny_dataset.titles), before)
    items = EmbeddingTable.load(runs[kind] / "items")
    np.testing.assert_array_equal(items["fused"], before.numpy())


def test_done_is_done(runs: dict[str, Path]) -> None:
    for folder in runs.values():
        before = stamps(folder)
        run(Run.open(folder).config, folder)
        assert stamps(folder) == before


# Stopping and going on


@pytest.mark.parametrize(
    ("stage", "kind", "at"),
    [("csft", "full", 6), ("mntp", "lora", 2), ("contrast", "full", 2), ("contrast", "full", 6)],
)
def test_killed_in_a_stage(
    tmp_path: Path, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, stage: str, kind: str, at: int
) -> None:
    """Before its first checkpoint, at step 4, the weights of the stage before are what counts."""
    folder, made, stages = tmp_path / "run", Run.open(runs[kind]).config, Tuning.stages

    def dying(self: Tuning) -> list[Any]:
        found = stages(self)
        own = next(each for each in found if each.name == stage)
        step = own.step

        def until(k: int, backward: Callable[[Tensor], None]) -> Any:
            if k == at:
                raise KeyboardInterrupt
            return step(k, backward)

        return [replace(each, step=until) if each is own else each for each in found]

    with monkeypatch.context() as patch:
        patch.setattr(Tuning, "stages", dying)
        with pytest.raises(KeyboardInterrupt):
            run(made, folder, until="train")
    finished = [name for name in STAGES if (folder / "stages" / name / "stage.json").exists()]
    assert finished == list(STAGES[: STAGES.index(stage)])
    assert (folder / "stages" / stage / "checkpoints").exists() == (at > 4) and not (folder / "model").exists()
    seen: list[int] = []
    contrast = Tuning._contrast_step
    monkeypatch.setattr(Tuning, "_contrast_step", lambda self, k, b: seen.append(k) or contrast(self, k, b))
    run(made, folder, until="train")
    assert seen == list(range(4 if stage == "contrast" and at > 4 else 0, 12)), (
        "a stage goes on from its last checkpoint"
    )
    check_same_weights(folder, runs[kind])


@pytest.mark.parametrize("where", ["trained.safetensors", "stage.json", "model", "train"])
def test_killed_between_stages(
    tiny_dataset: Dataset, tmp_path: Path, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Before the weights of a stage stand, before its record stands, before the model and before the manifest."""
    from vlm2rec.training import stages

    def dies(*given: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    made = Run.open(runs["full"]).config
    places = {
        "trained.safetensors": (stages, "write_weights"), "stage.json": (stages, "write_json"),
        "model": (TitleEncoder, "save"), "train": (Run, "finish"),
    }  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(*places[where], dies if where != "train" else _dies_at_train(Run.finish))
        with pytest.raises(KeyboardInterrupt):
            run(made, tmp_path / "run", until="train")
    assert (tmp_path / "run" / "model").exists() == (where == "train")
    run(made, tmp_path / "run", until="encode")
    check_same_weights(tmp_path / "run", runs["full"])
    one, other = (EmbeddingTable.load(folder / "items") for folder in (tmp_path / "run", runs["full"]))
    np.testing.assert_array_equal(one["fused"], other["fused"])


def _dies_at_train(finish: Callable[..., None]) -> Callable[..., None]:
    def dying(self: Run, name: str, **info: Any) -> None:
        if name == "train":
            raise KeyboardInterrupt
        finish(self, name, **info)

    return dying


# What may not be known


def test_held_out_events_do_not_touch_a_weight(tiny_dataset: Dataset, qwen2: Path, tmp_path: Path) -> None:
    """Everybody is given somebody else's last two events; without validation nothing may change."""
    changed = copy.copy(tiny_dataset)
    ends = [events[-2:] for events in tiny_dataset.sequences]
    changed.sequences = Ragged.of(
        [
            np.concatenate([events[:-2], end[::-1]])
            for events, end in zip(tiny_dataset.sequences, [*ends[1:], ends[0]], strict=True)
        ]
    )
    made = config(tiny_dataset, qwen2, csft_validations=0, csft_steps=4, mntp_steps=2, contrast_steps=2)
    for number, dataset in enumerate((tiny_dataset, changed)):
        method = LLM2Rec(made, Split(dataset))
        method.check(trained=False)
        method.train(Run.create(tmp_path / str(number), made))
    check_same_weights(tmp_path / "0", tmp_path / "1")


def test_items_that_nobody_had_in_training_are_not_read(tiny_dataset: Dataset, qwen2: Path) -> None:
    alone = copy.copy(tiny_dataset)
    alone.titles = [f"{title} x{item}" for item, title in enumerate(tiny_dataset.titles)]
    keep = 5  # item 5 is left in nothing but last events
    alone.sequences = Ragged.of(
        [np.concatenate([events[:-2][events[:-2] != keep], [events[-2], keep]]) for events in tiny_dataset.sequences]
    )
    made = tuning(config(tiny_dataset, qwen2), alone)
    assert keep not in made.items and len(made.items) == 23
    words = families.tokenizer()
    for k in range(6):
        said = [words.decode(sample.ids) for sample in (*made.next_titles(k), *made.blanked_titles(k))]
        assert not any("x5" in text for text in said)


# Other ways to run


def test_fewer_stages_and_fewer_epochs(tiny_dataset: Dataset, qwen2: Path, tmp_path: Path) -> None:
    made = config(tiny_dataset, qwen2, csft_steps=10_000, csft_epochs=1, csft_batch=64, mntp_steps=0, contrast_steps=2)
    done = run(made, tmp_path / "run", until="train").manifest["done"]["train"]
    samples = sum(len(events) - 3 for events in tiny_dataset.sequences)
    assert done["steps"] == {"csft": 3 * (samples // 64 // 3), "contrast": 2}
    assert {path.name for path in (tmp_path / "run" / "stages").iterdir()} == {"csft", "contrast"}


def test_half_precision_is_tuned_in_float32_and_saved_as_it_came(
    tiny_dataset: Dataset, qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: set[torch.dtype] = set()
    original = Tuning._token_loss

    def spy(self: Tuning, *given: Any, **more: Any) -> Tensor:
        kinds.update(parameter.dtype for parameter in self.module.parameters())
        loss = original(self, *given, **more)
        assert loss.dtype == torch.float32
        return loss

    monkeypatch.setattr(Tuning, "_token_loss", spy)
    steps = {"csft_steps": 3, "mntp_steps": 2, "contrast_steps": 2}
    done = run(config(tiny_dataset, qwen2, backbone={"dtype": "bfloat16"}, **steps), tmp_path / "run")
    assert kinds == {torch.float32}
    assert {value.dtype for value in weights(done.path).values()} == {torch.bfloat16}
    assert math.isfinite(done.results()["dropout"]["f2f"])


def test_recomputing_activations_trains_the_same(tiny_dataset: Dataset, qwen2: Path, tmp_path: Path) -> None:
    steps = {"csft_steps": 2, "mntp_steps": 2, "contrast_steps": 2}
    for way in (False, True):
        made = config(tiny_dataset, qwen2, training={"gradient_checkpointing": way}, **steps)
        run(made, tmp_path / str(way), until="train")
    one, other = (weights(tmp_path / str(way)) for way in (False, True))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-4, rtol=1e-3)


# Refusals


def test_what_does_not_fit_is_one_line(tiny_dataset: Dataset, tiny_folder: Path, qwen2: Path, tmp_path: Path) -> None:
    items = pl.read_parquet(tiny_folder / "items.parquet").with_columns(title=pl.lit(""))
    events = pl.read_parquet(tiny_folder / "interactions.parquet")
    raw = RawData("untitled", items, events, tiny_folder / "images")
    untitled = prepare(Given(raw), tmp_path / "untitled", require=["image"], picture_size=32)
    narrow = tmp_path / "narrow"
    families.build("qwen2", narrow)
    settings = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 40}))
    causal = build_text_only("gpt_neo", tmp_path / "causal")
    single = copy.copy(tiny_dataset)
    single.titles = ["a"] * 24
    wrong = [
        (config(untitled, qwen2), "has no titles"),
        (config(tiny_dataset, narrow), "a history of 10 titles and the next one take .* the backbone reads 40"),
        (config(tiny_dataset, causal), "cannot be made to look both ways"),
        (config(tiny_dataset, tmp_path / "no"), r"backbone\.path"),
    ]
    for made, says in wrong:
        with pytest.raises(InputError, match=says) as error:
            run(made, tmp_path / "run")
        assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="no item to train on"):
        tuning(config(tiny_dataset, qwen2), single)
    short = config(tiny_dataset, narrow, data={"max_history": 2})
    LLM2Rec(short, Split(tiny_dataset, 2)).check(trained=False)


def test_a_model_of_another_backbone_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    other = build_text_only("llama", tmp_path / "llama")
    saved = json.loads((runs["full"] / "model" / "titles.json").read_text())
    saved["backbone"]["path"] = str(other)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "titles.json").write_text(json.dumps(saved))
    (tmp_path / "model" / "language.safetensors").symlink_to(runs["full"] / "model" / "language.safetensors")
    with pytest.raises(InputError, match=r"language\.safetensors: .*backbone\.path"):
        TitleEncoder.load(tmp_path / "model")
    with pytest.raises(InputError, match="no title encoder"):
        TitleEncoder.load(tmp_path / "nothing")
