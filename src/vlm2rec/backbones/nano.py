"""The built-in backbone: a vision-language model of about a million layer parameters, trained in seconds.

Its parts are transformers' own (LLaVA: a SigLIP tower, a two-layer projector, a Llama), its tokenizer is a
byte-level BPE of some hundred words, and a picture is four visual tokens. It is made for the drawn shop, for
demonstrations and tests: after its lessons it can read the words of that shop and see its pictures. Real titles fall
apart into letters (`backbones.reading` measures it).
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vlm2rec.backbones.load import BUILT_IN
from vlm2rec.backbones.nano_lessons import PICTURE, Lesson, Lessons
from vlm2rec.backbones.pretrained import check_built
from vlm2rec.config import TrainingConfig
from vlm2rec.errors import InputError
from vlm2rec.runs import read_json, read_metrics, replacing_folder, write_json
from vlm2rec.training.loop import Step, fit

VISUAL_TOKENS = 4
_RECIPE = 2  # raise it when anything below changes, so that kept copies are built anew
_SIDE = 64  # pixels; with patches of 32, two by two visual tokens
_WIDTH = 128
_VOCABULARY = 1024
_CONTEXT = 2048
_LOOKING = 500  # steps
_READING = 260
_PICTURES = 2000
_FILE = "nano.json"


def copy_nano(out: Path | str) -> Path:
    """Copy the checkpoint that comes with the package to the folder `out`, to look at or to align; return `out`.

    Raises:
        InputError: `out` holds something else.
    """
    out = Path(out)
    if (out / _FILE).exists() and read_json(out / _FILE, "nano") == read_json(BUILT_IN / _FILE, "nano"):
        check_built(out)
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and is no copy of nano; give another --out")
    with replacing_folder(out) as folder:
        shutil.copytree(BUILT_IN, folder, dirs_exist_ok=True)
    return out


def build_nano(
    out: Path | str, *, seed: int = 0, looking: int = _LOOKING, reading: int = _READING, pictures: int = _PICTURES
) -> Path:
    """Build the backbone into the folder `out`, in Hugging Face layout, and return it.

    First the tower and the projector learn to name what pictures show (`looking` steps), then, with the tower
    frozen, the language model learns to read words and visual tokens alike (`reading` steps). A folder that holds
    the same build already is left as it is. Weights are a function of the arguments, up to the machine's rounding.

    Raises:
        InputError: `out` holds something else.
    """
    out = Path(out)
    made_of = {"recipe": _RECIPE, "seed": seed, "looking": looking, "reading": reading, "pictures": pictures}
    if (out / _FILE).exists():
        found = read_json(out / _FILE, "nano backbone")
        if {name: found.get(name) for name in made_of} == made_of:
            check_built(out)
            return out
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and is no nano backbone; give another --out")
    lessons = Lessons(seed, pictures)
    tokenizer = make_tokenizer(lessons)
    processor = SiglipImageProcessorPil(
        size={"height": _SIDE, "width": _SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    model = make_model(tokenizer, seed)
    pupil = _Pupil(model, tokenizer, processor, lessons, seed)
    figures = pupil.look(looking) | pupil.read(reading)
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
    """The untrained model: about a million layer parameters, and a tower that makes four tokens of a picture."""
    text = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=_WIDTH,
        intermediate_size=3 * _WIDTH,
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
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=_SIDE,
        patch_size=32,
        vision_use_head=False,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(
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
    _start(model)
    return model


@torch.no_grad()
def _start(model: LlavaForConditionalGeneration) -> None:
    """Starting weights from which a model this narrow learns in a few hundred steps.

    The usual spread of 0.02 suits wide models; here it is 1 / sqrt(width). Attention starts even and hands on what
    it looks at (output = value transposed), so a last token holds a little of every word from the outset.
    """
    spread = _WIDTH**-0.5
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and ("language_model." in name or "multi_modal_projector." in name):
            nn.init.normal_(weight, 0, spread / 2 if "down_proj" in name else spread)
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        nn.init.normal_(attention.q_proj.weight, 0, 0.02)
        nn.init.normal_(attention.k_proj.weight, 0, 0.02)
        nn.init.orthogonal_(attention.v_proj.weight)
        attention.o_proj.weight.copy_(attention.v_proj.weight.T / 2)


class _Pupil:
    """The model with what it needs to learn the lessons."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        processor: SiglipImageProcessorPil,
        lessons: Lessons,
        seed: int,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.lessons = lessons
        self.seed = seed
        images = [Image.fromarray(picture) for picture in lessons.pictures]
        self.pixels: Tensor = processor(images=images, return_tensors="pt")["pixel_values"]
        self._ids: dict[str, list[int]] = {PICTURE: [tokenizer.convert_tokens_to_ids(PICTURE)] * VISUAL_TOKENS}

    def look(self, steps: int) -> dict[str, float]:
        """Teach the tower and the projector: a picture's visual tokens are to point at the words for it."""
        words = torch.stack([self._spread(tuple(facts.values())) for facts in self.lessons.facts])

        def step(index: int, backward: Callable[[Tensor], None]) -> Mapping[str, float]:
            chosen = torch.randint(len(words), (64,))
            tokens = self._visual(
                self.model.model.vision_tower(self._on(self.pixels[chosen]), output_hidden_states=True)
            )
            loss = self._wrong(tokens.mean(1), words[chosen])
            backward(loss)
            return {"loss": float(loss.detach())}

        return {"looking_loss": self._fit(step, steps, lr=2e-3, batch=64, title="nano: looking")}

    def read(self, steps: int) -> dict[str, float]:
        """Teach the language model and the projector; the tower stays as it is."""
        tower = self.model.model.vision_tower
        tower.requires_grad_(False)
        with torch.no_grad():
            parts = [tower(self._on(part), output_hidden_states=True) for part in torch.split(self.pixels, 256)]
            seen = torch.cat([part.hidden_states[-1] for part in parts])

        def step(index: int, backward: Callable[[Tensor], None]) -> Mapping[str, float]:
            texts = self.lessons.captions(index, 8) + self.lessons.sentences(index, 8)
            going_on = self._next_words(texts, seen)
            summing_up = self._answers(self.lessons.lists(index, 16), seen)
            # Most of a made-up sentence cannot be foretold: at full weight its noise would drown the lists.
            loss = 0.3 * going_on + summing_up
            backward(loss)
            return {"loss": float(loss.detach()), "next_word": float(going_on.detach())}

        return {"reading_loss": self._fit(step, steps, lr=3e-3, batch=32, title="nano: reading")}

    def _fit(self, step: Step, steps: int, lr: float, batch: int, title: str) -> float:
        """Run the project's loop in a scratch folder; the mean loss of the last steps."""
        if not steps:
            return 0.0
        settings = TrainingConfig(
            lr=lr, batch_size=batch, epochs=1, weight_decay=0.05, warmup=0.05, checkpoint_every=steps
        )
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            fit(self.model, step, steps_per_epoch=steps, settings=settings, seed=self.seed, folder=folder, title=title)
            losses = [line["loss"] for line in read_metrics(folder / "metrics.jsonl", "train")[-10:]]
        return float(sum(losses) / len(losses))

    def _next_words(self, batch: Sequence[Lesson], seen: Tensor) -> Tensor:
        """Cross-entropy of each next word of the lessons, pictures left out; a scalar."""
        ids, _ = self._padded([[*self._encode(lesson), self.tokenizer.eos_token_id] for lesson in batch])
        labels = ids.masked_fill((ids == self.tokenizer.pad_token_id) | (ids == self.model.config.image_token_id), -100)
        loss: Tensor = self.model(input_ids=ids, labels=labels, **self._shown(batch, seen)).loss
        return loss

    def _answers(self, batch: Sequence[Lesson], seen: Tensor) -> Tensor:
        """Cross-entropy of the word that follows the lessons, any of the answers being right; a scalar."""
        ids, last = self._padded([self._encode(lesson) for lesson in batch])
        states = self.model.model(input_ids=ids, **self._shown(batch, seen)).last_hidden_state
        logits = states[torch.arange(len(batch), device=ids.device), last] @ self.model.get_input_embeddings().weight.T
        return _cross_entropy(logits, torch.stack([self._spread(lesson.answers) for lesson in batch]))

    def _wrong(self, states: Tensor, words: Tensor) -> Tensor:
        """Cross-entropy of the words that states `(B, D)` point at, when read as the last layer's are."""
        logits = self.model.model.language_model.norm(states) @ self.model.get_input_embeddings().weight.T
        return _cross_entropy(logits, words)

    def _spread(self, words: Sequence[str]) -> Tensor:
        """A distribution over the vocabulary `(V,)`: each word gets its share, and each token its share of that."""
        shares = torch.zeros(_VOCABULARY)
        for word in words:
            ids = self._tokens(f" {word}")
            shares.index_add_(0, torch.tensor(ids), torch.full((len(ids),), 1 / len(ids)))
        return shares / shares.sum()

    def _shown(self, batch: Sequence[Lesson], seen: Tensor) -> dict[str, object]:
        chosen = [picture for lesson in batch for picture in lesson.pictures]
        if not chosen:
            return {}
        tokens = list(self.model.model.multi_modal_projector(seen[chosen]))
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=tokens)}}

    def _visual(self, outputs: BaseModelOutputWithPooling) -> Tensor:
        tokens: Tensor = self.model.model.multi_modal_projector(outputs.hidden_states[-1])
        return tokens

    def _encode(self, lesson: Lesson) -> list[int]:
        return [token for piece in lesson.pieces for token in self._tokens(piece)]

    def _tokens(self, text: str) -> list[int]:
        if text not in self._ids:
            self._ids[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._ids[text]

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Rows padded on the right `(B, L)`, and where each ends `(B,)`."""
        longest, pad = max(map(len, rows)), self.tokenizer.pad_token_id
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
        return self._on(ids), self._on(torch.tensor([len(row) - 1 for row in rows]))

    def _on(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.model.device)


def _cross_entropy(logits: Tensor, shares: Tensor) -> Tensor:
    return -(shares.to(logits.device) * log_softmax(logits, dim=-1)).sum(-1).mean()
