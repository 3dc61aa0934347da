"""Whatever a loader reads is whole, or refused in one line: every loader against every kind of damage."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import families
import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tiny_job import make_config

from vlm2rec.backbones.load import load_backbone
from vlm2rec.backbones.lora import add_lora
from vlm2rec.backbones.nano import copy_nano
from vlm2rec.backbones.small import Clip, PictureEncoder, TextEncoder
from vlm2rec.backbones.titles import TitleEncoder
from vlm2rec.config import BackboneConfig, LoraSettings, PromptConfig, TrainingConfig
from vlm2rec.damage import damage
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.job import run
from vlm2rec.methods import build
from vlm2rec.methods.notellm2.model import RecordEmbedder
from vlm2rec.runs import Run
from vlm2rec.training.loop import fit
from vlm2rec.training.stages import Stage, fit_stages


@dataclass(frozen=True)
class Saved:
    """Something that was saved, and how it is loaded: `load` is given a copy of the folder."""

    folder: Path
    weights: str
    load: Callable[[Path], object]
    trained: bool = True
    """Whether the weights are this program's own, which are searched for NaN too."""


def shelf() -> families.Shelf:
    rng = np.random.default_rng(0)
    pictures: list[np.ndarray | None] = [rng.integers(0, 255, (56, 56, 3), dtype=np.uint8) for _ in range(3)]
    return families.Shelf(["a red lamp", "a blue mug", "tea"], pictures)


def linear_training(folder: Path, steps: int = 4, stop: int | None = None) -> torch.nn.Module:
    """Train a layer of four numbers, validated twice; `stop`: the step at which it is killed."""
    torch.manual_seed(0)
    module = torch.nn.Linear(2, 2)

    def step(k: int, backward: Callable[[torch.Tensor], None]) -> dict[str, float]:
        if k == stop:
            raise KeyboardInterrupt
        loss = module(torch.ones(1, 2)).square().sum()
        backward(loss)
        return {"loss": float(loss.detach())}

    settings = TrainingConfig(epochs=2, batch_size=2, checkpoint_every=1)
    fit(module, step, steps_per_epoch=steps // 2, settings=settings, seed=0, folder=folder,
        validate=lambda epoch: {"score": -float(epoch)})  # fmt: skip
    return module


def small_encoder(kind: str, folder: Path) -> Path:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    words = families.tokenizer()
    processor = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    text = {"vocab_size": len(words), "max_position_embeddings": 32, **sizes}
    if kind == "bert":
        model = hf.BertModel(hf.BertConfig(**text))
    elif kind == "vit":
        model = hf.ViTModel(hf.ViTConfig(image_size=28, patch_size=14, **sizes))
        processor = {"size": {"height": 28, "width": 28}}
    else:
        vision = {"image_size": 28, "patch_size": 14, **sizes}
        model = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    kinds = {"vit": "ViTImageProcessor", "clip": "CLIPImageProcessor"}
    if kind in kinds:
        content = {"image_processor_type": kinds[kind], **processor}
        (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def saved(
    folders: dict[str, Path], tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Saved]:
    root = tmp_path_factory.mktemp("saved")
    llava, qwen2 = (BackboneConfig(path=str(folders[name])) for name in ("llava", "qwen2"))
    encoder = Encoder.build(llava, PromptConfig(combine="gated"))
    encoder.add_lora(LoraSettings(rank=4), seed=0)
    families.wake(encoder)
    encoder.save(root / "encoder")
    RecordEmbedder(encoder, shelf(), 8, seed=0).save(root / "records")
    titles = TitleEncoder(load_backbone(qwen2), 16)
    titles.save(root / "titles", qwen2, None, torch.float32)
    titles.save(root / "adapted titles", qwen2, add_lora(titles.backbone, LoraSettings(rank=4), 0), torch.float32)
    config = make_config(tiny_dataset, folders["llava"], "sasrec", seqrec={"epochs": 1, "dim": 8, "inner": 8})
    run(config, root / "sasrec", until="train")
    with pytest.raises(KeyboardInterrupt):
        linear_training(root / "training", stop=3)
    for kind in ("bert", "vit", "clip"):
        small_encoder(kind, root / kind)
    copy_nano(root / "nano")
    EmbeddingTable(["a", "b"], {"fused": np.ones((2, 3), np.float32)}).save(root / "table")

    def score(folder: Path) -> object:
        split = Split(tiny_dataset)
        return build(config, split).scorer(Run(folder, config, {}), np.arange(4), "test")

    def other_seed(folder: Path) -> object:
        return linear_training(folder)

    step = next((root / "training" / "checkpoints").glob("step-*")).name
    adapters, one = "adapter_model.safetensors", "model.safetensors"
    return {
        "encoder": Saved(root / "encoder", adapters, Encoder.load),
        "gate": Saved(root / "encoder", "gate.safetensors", Encoder.load),
        "titles": Saved(root / "titles", "language.safetensors", TitleEncoder.load),
        "adapted titles": Saved(root / "adapted titles", adapters, TitleEncoder.load),
        "records": Saved(root / "records", adapters, lambda f: RecordEmbedder.load(f, shelf(), 8)),
        "late fusion": Saved(root / "records", "late_fusion.safetensors", lambda f: RecordEmbedder.load(f, shelf(), 8)),
        "sasrec": Saved(root / "sasrec", "model/model.safetensors", score),
        "training": Saved(root / "training", f"checkpoints/{step}/trained.safetensors", other_seed),
        "optimizer": Saved(root / "training", f"checkpoints/{step}/optimizer.safetensors", other_seed),
        "best epoch": Saved(root / "training", "checkpoints/best-epoch-0001/trained.safetensors", other_seed),
        "backbone": Saved(folders["llava"], one, lambda f: load_backbone(BackboneConfig(path=str(f))), trained=False),
        "backbone with its head": Saved(
            folders["llava"], one, lambda f: load_backbone(BackboneConfig(path=str(f)), head=True), trained=False
        ),
        "text encoder": Saved(root / "bert", one, lambda f: TextEncoder(f, "cls"), trained=False),
        "picture encoder": Saved(root / "vit", one, PictureEncoder, trained=False),
        "clip": Saved(root / "clip", one, Clip, trained=False),
    }


LOADERS = (
    "encoder", "gate", "titles", "adapted titles", "records", "late fusion", "sasrec",
    "training", "optimizer", "best epoch", "backbone", "backbone with its head", "text encoder", "picture encoder",
    "clip",
)  # fmt: skip


def rewritten(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return spoil


def half(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensors[name] for name in sorted(tensors)[: len(tensors) // 2]}


def renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"other.{name}": value for name, value in tensors.items()}


def larger(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([value, value]) if value.dim() else value for name, value in tensors.items()}


def with_nan(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    first = sorted(tensors)[0]
    return {**tensors, first: torch.full_like(tensors[first], torch.nan)}


def cut_short(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut short": cut_short,
    "no safetensors": lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
    "half of the tensors": rewritten(half),
    "other names": rewritten(renamed),
    "one too many": rewritten(lambda tensors: {**tensors, "surplus": torch.ones(2)}),
    "other shapes": rewritten(larger),
    "NaN": rewritten(with_nan),
}


def check_one_line(load: Callable[[], object], *says: str) -> None:
    with pytest.raises(InputError) as caught:
        load()
    said = str(caught.value)
    assert "\n" not in said and said[0] not in "'\"" and "Traceback" not in said
    for part in says:
        assert part in said, said


@pytest.mark.parametrize("loader", LOADERS)
def test_what_is_whole_is_loaded(saved: dict[str, Saved], loader: str, tmp_path: Path) -> None:
    """From a copy, and by `str` as by `Path`."""
    shutil.copytree(saved[loader].folder, tmp_path / "copy")
    saved[loader].load(tmp_path / "copy")


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("kind", list(DAMAGES))
def test_what_is_not_whole_is_refused(saved: dict[str, Saved], loader: str, kind: str, tmp_path: Path) -> None:
    asked = saved[loader]
    if kind == "NaN" and not asked.trained:
        pytest.skip("a backbone is not searched, which would be a second reading; its vectors are")
    shutil.copytree(asked.folder, tmp_path / "copy")
    DAMAGES[kind](tmp_path / "copy" / asked.weights)
    check_one_line(lambda: asked.load(tmp_path / "copy"), str(tmp_path / "copy"))


@pytest.mark.parametrize("loader", ["encoder", "adapted titles"])
@pytest.mark.parametrize("kind", list(DAMAGES))
def test_models_of_earlier_versions_too(saved: dict[str, Saved], loader: str, kind: str, tmp_path: Path) -> None:
    """They do not say which tensors they have: those that their LoRA settings make of the backbone."""
    asked, copy = saved[loader], tmp_path / "copy"
    shutil.copytree(asked.folder, copy)
    forget(copy)
    asked.load(copy)
    DAMAGES[kind](copy / asked.weights)
    check_one_line(lambda: asked.load(copy), str(copy))


def forget(folder: Path) -> None:
    """Make a saved model as earlier versions wrote it."""
    path = next(folder / name for name in ("encoder.json", "titles.json") if (folder / name).exists())
    content = json.loads(path.read_text())
    del content["tensors"], content["digest"]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("loader", ["encoder", "adapted titles", "records"])
@pytest.mark.parametrize(
    "gone", [("adapter_config.json",), ("adapter_config.json", "adapter_model.safetensors")], ids=["settings", "both"]
)
def test_lost_adapters_never_leave_the_bare_backbone(
    saved: dict[str, Saved], loader: str, gone: tuple[str, ...], tmp_path: Path
) -> None:
    shutil.copytree(saved[loader].folder, tmp_path / "model")
    for name in gone:
        (tmp_path / "model" / name).unlink()
    check_one_line(lambda: saved[loader].load(tmp_path / "model"), str(tmp_path / "model"), "adapter_")


def test_lost_adapters_of_an_earlier_version_are_missed_by_the_run(saved: dict[str, Saved], tmp_path: Path) -> None:
    shutil.copytree(saved["encoder"].folder, tmp_path / "model")
    forget(tmp_path / "model")
    for path in (tmp_path / "model").glob("adapter_*"):
        path.unlink()
    Encoder.load(tmp_path / "model")  # nobody can know
    counts = {"language": {"all": 9, "trainable": 3}}
    (tmp_path / "manifest.json").write_text(json.dumps({"done": {"train": {}}, "trainable": counts}))
    check_one_line(lambda: Encoder.load(tmp_path / "model"), "adapter_")


def test_adapters_that_are_not_listed_are_not_taken(saved: dict[str, Saved], folders: dict[str, Path],
                                                    tmp_path: Path) -> None:  # fmt: skip
    Encoder.build(BackboneConfig(path=str(folders["llava"])), PromptConfig()).save(tmp_path / "bare")
    assert Encoder.load(tmp_path / "bare").adapter is None
    for path in saved["encoder"].folder.glob("adapter_*"):
        shutil.copy(path, tmp_path / "bare")
    check_one_line(lambda: Encoder.load(tmp_path / "bare"), "does not list")


@pytest.mark.parametrize("loader", ["encoder", "adapted titles"])
@pytest.mark.parametrize("change", ["gone", "larger", "other weights", "other family"])
def test_another_backbone_than_it_was_trained_on(
    saved: dict[str, Saved], loader: str, change: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    family = "qwen2" if loader == "adapted titles" else "llava"
    other = tmp_path / "backbone"
    shutil.copytree(folders["qwen3_vl" if change == "other family" else family], other)
    if change == "gone":
        shutil.rmtree(other)
    elif change == "larger":
        torch.manual_seed(0)
        config = hf.AutoConfig.from_pretrained(other)
        config.get_text_config().intermediate_size *= 2
        kind = hf.AutoModelForCausalLM if family == "qwen2" else hf.AutoModelForImageTextToText
        kind.from_config(config).save_pretrained(other)
    elif change == "other weights":
        rewritten(lambda tensors: {name: value * 2 for name, value in tensors.items()})(other / "model.safetensors")
    shutil.copytree(saved[loader].folder, tmp_path / "model")
    path = next((tmp_path / "model").glob("*r.json" if loader == "encoder" else "titles.json"))
    content = json.loads(path.read_text())
    content["backbone"]["path"] = str(other)
    path.write_text(json.dumps(content))
    says = "no such folder" if change == "gone" else "another backbone"
    check_one_line(lambda: saved[loader].load(tmp_path / "model"), "backbone.path", says)


@pytest.mark.parametrize("spoilt", ["gone", "empty", "no JSON", "a list", "other keys"])
@pytest.mark.parametrize(("loader", "name"), [("encoder", "encoder.json"), ("titles", "titles.json")])
def test_settings_that_cannot_be_read(
    saved: dict[str, Saved], loader: str, name: str, spoilt: str, tmp_path: Path
) -> None:
    shutil.copytree(saved[loader].folder, tmp_path / "model")
    path = tmp_path / "model" / name
    if spoilt == "gone":
        path.unlink()
    else:
        path.write_text(
            {"empty": "", "no JSON": "{", "a list": "[]", "other keys": '{"backbone": {"paths": 1}}'}[spoilt]
        )
    check_one_line(lambda: saved[loader].load(tmp_path / "model"), str(tmp_path / "model"))


@pytest.mark.parametrize("name", ["state.json"])
@pytest.mark.parametrize("spoilt", [None, "", "{", '{"steps": 1}'])
def test_a_state_that_cannot_be_read(saved: dict[str, Saved], name: str, spoilt: str | None, tmp_path: Path) -> None:
    shutil.copytree(saved["training"].folder, tmp_path / "run")
    path = next((tmp_path / "run").rglob(name))
    if spoilt is None:
        path.unlink()
    else:
        path.write_text(spoilt)
    check_one_line(lambda: linear_training(tmp_path / "run"), str(tmp_path / "run"))


def test_checkpoints_of_earlier_versions_are_gone_on_from(saved: dict[str, Saved], tmp_path: Path) -> None:
    whole = linear_training(tmp_path / "whole")
    shutil.copytree(saved["training"].folder, tmp_path / "run")
    path = next((tmp_path / "run").rglob("state.json"))
    content = json.loads(path.read_text())
    del content["tensors"]
    path.write_text(json.dumps(content))
    for name, value in linear_training(tmp_path / "run").state_dict().items():
        assert torch.equal(value, whole.state_dict()[name])


def test_the_best_epoch_stays_until_the_state_names_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the weights of a better epoch and the state that names it, both are there to go on from."""
    from vlm2rec.training.checkpoints import Checkpoints

    save, torn = Checkpoints.save, []

    def killed(self: Checkpoints, state: object) -> None:
        if state.best_epoch == 2:  # type: ignore[attr-defined]
            torn.append(sorted(path.name for path in self.folder.glob("best-*")))
            raise KeyboardInterrupt
        save(self, state)  # type: ignore[arg-type]

    def train(folder: Path) -> None:
        torch.manual_seed(0)
        module = torch.nn.Linear(2, 2)

        def step(k: int, backward: Callable[[torch.Tensor], None]) -> dict[str, float]:
            backward(module(torch.ones(1, 2)).square().sum())
            return {"loss": 0.0}

        settings = TrainingConfig(epochs=2, batch_size=2, checkpoint_every=1)
        fit(module, step, steps_per_epoch=1, settings=settings, seed=0, folder=folder,
            validate=lambda epoch: {"score": float(epoch)})  # fmt: skip

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    assert torn == [["best-epoch-0001", "best-epoch-0002"]]
    train(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").glob("best-*")] == ["best-epoch-0002"]


def test_stages_begin_anew_where_their_weights_are_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def train(folder: Path) -> tuple[torch.nn.Module, list[str]]:
        torch.manual_seed(0)
        module, ran = torch.nn.Linear(2, 2), list[str]()

        def stage(name: str) -> Stage:
            def step(k: int, backward: Callable[[torch.Tensor], None]) -> dict[str, float]:
                backward(module(torch.ones(1, 2)).square().sum())
                return {"loss": 0.0}

            return Stage(name, step, 2, TrainingConfig(epochs=1, batch_size=2), lambda: ran.append(name))

        fit_stages(module, [stage("first"), stage("second")], folder, 0, "test")
        return module, ran

    whole, ran = train(tmp_path)
    assert ran == ["first", "second"] and train(tmp_path)[1] == []
    (tmp_path / "second" / "trained.safetensors").unlink()
    again, ran = train(tmp_path)
    assert ran == ["first", "second"]
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    assert "begins anew" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["gone", "empty", "cut short"])
def test_a_built_checkpoint_that_lost_its_weights_does_not_count_as_built(
    saved: dict[str, Saved], kind: str, tmp_path: Path
) -> None:
    copy_nano(tmp_path / "nano")
    copy_nano(tmp_path / "nano")
    DAMAGES[kind](tmp_path / "nano" / "model.safetensors")
    check_one_line(lambda: copy_nano(tmp_path / "nano"), "remove the folder")


def spoil_table(folder: Path, kind: str) -> None:
    if kind in DAMAGES:
        DAMAGES[kind](folder / "fused.npy")
    elif kind == "other shape":
        np.save(folder / "fused.npy", np.ones((3, 3), np.float32))
    else:
        name = kind.partition(" ")[0]
        (folder / name).unlink()


@pytest.mark.parametrize("kind", ["gone", "empty", "cut short", "other shape", "ids.json gone", "manifest.json gone"])
def test_a_table_that_is_not_whole(kind: str, tmp_path: Path) -> None:
    EmbeddingTable(["a", "b"], {"fused": np.ones((2, 3), np.float32)}).save(tmp_path / "table")
    assert damage(tmp_path / "table") == ""
    spoil_table(tmp_path / "table", kind)
    check_one_line(lambda: EmbeddingTable.load(tmp_path / "table"), str(tmp_path / "table"))
    assert damage(tmp_path / "table")


def test_what_a_classifier_or_another_version_leaves_over_is_no_fault(saved: dict[str, Saved], tmp_path: Path) -> None:
    shutil.copytree(saved["text encoder"].folder, tmp_path / "bert")
    extra = {
        "cls.predictions.bias": torch.ones(2),
        "classifier.weight": torch.ones(2, 2),
        "embeddings.position_ids": torch.arange(4),
    }
    rewritten(lambda tensors: {**tensors, **extra})(tmp_path / "bert" / "model.safetensors")
    rewritten(lambda tensors: {name: value for name, value in tensors.items() if "pooler" not in name})(
        tmp_path / "bert" / "model.safetensors"
    )
    TextEncoder(tmp_path / "bert", "mean")


def test_a_pooler_that_is_read_must_be_there(saved: dict[str, Saved], tmp_path: Path) -> None:
    shutil.copytree(saved["picture encoder"].folder, tmp_path / "vit")
    rewritten(lambda tensors: {name: value for name, value in tensors.items() if "pooler" not in name})(
        tmp_path / "vit" / "model.safetensors"
    )
    check_one_line(lambda: PictureEncoder(tmp_path / "vit"), "pooler", "missing")
