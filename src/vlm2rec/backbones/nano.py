"""The built-in backbone: a vision-language model of about a million layer parameters, trained in seconds.

Its parts are transformers' own (LLaVA: a SigLIP tower, a two-layer projector, a Llama), its tokenizer is a
byte-level BPE, so it reads any title, and a picture is four visual tokens. It is a stand-in for a pretrained model
where there is no network: after its lessons it can read and see a little, and no more.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vlm2rec.backbones.nano_lessons import PICTURE, Lesson, Lessons
from vlm2rec.config import TrainingConfig
from vlm2rec.errors import InputError
from vlm2rec.runs import read_json, read_metrics, replacing_folder, write_json
from vlm2rec.training.loop import fit

VISUAL_TOKENS = 4
_RECIPE = 1  # raise it when anything below changes, so that kept copies are built anew
_SIDE = 64  # pixels; with patches of 32, two by two visual tokens
_VOCABULARY = 1024
_CONTEXT = 2048
_STEPS = 220
_FILE = "nano.json"


def build_nano(out: Path, *, seed: int = 0, steps: int = _STEPS) -> Path:
    """Build the backbone into the folder `out`, in Hugging Face layout, and return it.

    A folder that holds the same build already (recipe, seed, steps) is left as it is. Weights are a function of the
    seed, up to the rounding of the machine's arithmetic.

    Raises:
        InputError: `out` holds something else.
    """
    made_of = {"recipe": _RECIPE, "seed": seed, "steps": steps}
    if (out / _FILE).exists():
        found = read_json(out / _FILE, "nano backbone")
        if {name: found.get(name) for name in made_of} == made_of:
            return out
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and is no nano backbone; give another --out")
    lessons = Lessons(seed)
    tokenizer = make_tokenizer(lessons)
    processor = SiglipImageProcessorPil(
        size={"height": _SIDE, "width": _SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    model = make_model(tokenizer, seed)
    figures = _teach(model, tokenizer, processor, lessons, seed, steps) if steps else {}
    with replacing_folder(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        processor.save_pretrained(folder)
        write_json(folder / _FILE, made_of | figures)
    return out


def make_tokenizer(lessons: Lessons) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the lessons' words: common words are one token, any other text a few."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "<end>", PICTURE],
        show_progress=False,
    )
    bpe.train_from_iterator(lessons.texts(2000), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        eos_token="<end>",
        extra_special_tokens={"image_token": PICTURE},
        model_max_length=_CONTEXT,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlavaForConditionalGeneration:
    """The untrained model: a million layer parameters, and a tower that makes four visual tokens of a picture."""
    text = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = SiglipVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=_SIDE,
        patch_size=32,
    )
    torch.manual_seed(seed)
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=tokenizer.convert_tokens_to_ids(PICTURE),
            image_seq_length=VISUAL_TOKENS,
            vision_feature_select_strategy="full",
            vision_feature_layer=-1,
            tie_word_embeddings=True,
        )
    )


def _teach(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    processor: SiglipImageProcessorPil,
    lessons: Lessons,
    seed: int,
    steps: int,
) -> dict[str, float]:
    """Next-token training of everything on the lessons; returns the last losses by sort of lesson."""
    pixels = processor(images=[Image.fromarray(picture) for picture in lessons.pictures], return_tensors="pt")
    encode = _encoder(tokenizer)

    def step(index: int, backward: Callable[[Tensor], None]) -> Mapping[str, float]:
        sorts = {
            "captions": lessons.captions(index, 48),
            "sentences": lessons.sentences(index, 24),
            "lists": lessons.lists(index, 24),
        }
        losses = {}
        for name, batch in sorts.items():
            loss = _loss(model, batch, encode, pixels["pixel_values"])
            backward(loss)
            losses[name] = float(loss.detach())
        return {"loss": sum(losses.values()), **losses, "samples": float(sum(map(len, sorts.values())))}

    settings = TrainingConfig(lr=2e-3, batch_size=96, epochs=1, weight_decay=0.05, warmup=0.05, checkpoint_every=steps)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        fit(model, step, steps_per_epoch=steps, settings=settings, seed=seed, folder=folder, title="teaching nano")
        last = read_metrics(folder / "metrics.jsonl", "train")[-1]
    return {name: last[name] for name in ("captions", "sentences", "lists")}


def _encoder(tokenizer: PreTrainedTokenizerFast) -> Callable[[Lesson], list[int]]:
    kept: dict[str, list[int]] = {PICTURE: [tokenizer.convert_tokens_to_ids(PICTURE)] * VISUAL_TOKENS}

    def encode(lesson: Lesson) -> list[int]:
        ids: list[int] = []
        for piece in lesson.pieces:
            if piece not in kept:
                kept[piece] = tokenizer(piece, add_special_tokens=False)["input_ids"]
            ids += kept[piece]
        return [*ids, tokenizer.eos_token_id]

    return encode


def _loss(
    model: LlavaForConditionalGeneration,
    batch: Sequence[Lesson],
    encode: Callable[[Lesson], list[int]],
    pixels: Tensor,
) -> Tensor:
    """Cross-entropy of the next token over a batch's words (not its pictures), a scalar."""
    rows = [encode(lesson) for lesson in batch]
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])  # 0 is <pad>
    labels = ids.masked_fill((ids == 0) | (ids == model.config.image_token_id), -100)
    shown = [picture for lesson in batch for picture in lesson.pictures]
    seen = pixels[shown].to(model.device) if shown else None
    loss: Tensor = model(input_ids=ids.to(model.device), labels=labels.to(model.device), pixel_values=seen).loss
    return loss
