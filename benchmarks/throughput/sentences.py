"""The same step and the same encoding by sentence-transformers: its Transformer module, its pooling, its loss.

What differs from how it is used out of the box, and why:
- Training features are our token ids and pixels, so that tokens are the same one by one, with the attention mask that
  its own preprocessing adds. `encode` does all of it itself, from prompts as text and from pictures; its pixels are
  ours, its tokens are but for a title's first word, which it joins with the space before it, where its tokenizer does.
- It has no notion of two passes a sample: `model(features)` runs four times a step (titles and pictures, of histories
  and of targets) and the two views of a row are added. So does `encode`: twice a row.
- The loss is its MultipleNegativesRankingLoss, with our temperature. It knows no user's earlier purchases: other
  users' targets are negatives even if this user bought them. The check before timing puts our objective in its place.
- Adapters are ours by peft, through its `add_adapter`. The frozen tower runs in every pass, as in its own training;
  autograd keeps nothing of it. It packs text without padding only with flash-attn, which is not assumed here.
"""

import logging
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from shared import Bench, Group
from torch import Tensor
from ways import Usual, checkpoint, padded, pixels_of, share

from vlm2rec.backbones.load import BUILT_IN
from vlm2rec.backbones.packing import Prompt
from vlm2rec.training.batches import Batch, Samples

_FORWARD = {"method": "forward", "method_output_name": "last_hidden_state"}
_KINDS: dict[Any, Any] = {"text": _FORWARD, "image": _FORWARD, ("text", "image"): _FORWARD, ("image", "text"): _FORWARD}


def find() -> str | None:
    """The version that is installed; None where there is none."""
    try:
        import sentence_transformers
    except ImportError:
        return None
    return str(sentence_transformers.__version__)


class Sentences:
    """A SentenceTransformer on the weights of the encoder.

    Attributes:
        model: Transformer and Pooling of the last token.
        no_processor: why `encode` cannot read the family's pictures; None where it can.
    """

    def __init__(self, bench: Bench) -> None:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.base.modules import Transformer
        from sentence_transformers.sentence_transformer.modules import Pooling

        logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
        backbone = bench.encoder.backbone
        path = str(BUILT_IN) if bench.asked.backbone == "nano" else bench.asked.backbone
        settings: dict[str, Any] = {
            "model_kwargs": {"dtype": backbone.model.dtype},
            "modality_config": _KINDS,
            "module_output_name": "token_embeddings",
            "processing_kwargs": {"text": {"add_special_tokens": False}},
        }
        self.no_processor: str | None = None
        try:
            module = Transformer(path, **settings)
        except (ImportError, OSError, ValueError, TypeError, AttributeError) as error:
            self.no_processor = " ".join(str(error).split())[:120]
            with tempfile.TemporaryDirectory() as folder:  # a tokenizer is enough where features are made elsewhere
                backbone.tokenizer.save_pretrained(folder)
                module = Transformer(path, **settings, tokenizer_name_or_path=folder)
        module.model.requires_grad_(False)
        module.model.add_adapter(bench.lora())
        share(backbone.model, module.model)
        self.model = SentenceTransformer(
            modules=[module, Pooling(backbone.dim, "lasttoken")], device=str(bench.encoder.device)
        )
        if self.no_processor is None:
            _describe_pictures(module.processor, bench)


def _describe_pictures(processor: Any, bench: Bench) -> None:
    """Tell LLaVA's processor how many tokens a picture has, where the checkpoint leaves that out."""
    if getattr(processor, "patch_size", 0) is not None:
        return
    first = next(item for item, picture in enumerate(bench.split.dataset.pictures) if picture is not None)
    bench.encoder.look_at(bench.split.dataset, [first])
    visual = bench.encoder.visual(first)
    images = processor.image_processor
    side = (getattr(images, "crop_size", None) or images.size)["height"]
    assert visual is not None
    processor.patch_size = round(side / len(visual.tokens) ** 0.5)
    processor.vision_feature_select_strategy, processor.num_additional_image_tokens = "full", 0


class ByLibrary(Usual):
    """Its training step."""

    def __init__(self, bench: Bench, samples: Samples, library: Sentences, checkpointing: bool, own: bool) -> None:
        """`own`: its loss; else our objective, to compare vectors by."""
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        super().__init__(bench, samples)
        self.name = "sentence-transformers" + (", checkpointing" if checkpointing else "")
        self.model = library.model
        self._library, self._checkpointing, self._own = library, checkpointing, own
        self._ranking = MultipleNegativesRankingLoss(library.model, scale=1 / bench.config(8).objective.temperature)

    def embedder(self, group: Group) -> Callable[[], Tensor]:
        library, bench = self._library, self.bench
        ids, pixels = padded(group), pixels_of(bench, group.items)
        lengths = torch.tensor([len(prompt.ids) for prompt in group.prompts])
        made: dict[str, Any] = {"input_ids": ids, "modality": "text"}
        made["attention_mask"] = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        made |= bench.encoder.backbone.kinds(ids)
        if pixels is not None:
            made |= {**pixels.inputs, "modality": ("text", "image")}

        checkpoint(library.model[0].model, self._checkpointing)

        def embed() -> Tensor:
            device = bench.encoder.device
            features = {
                name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
                for name, value in made.items()
            }
            vectors: Tensor = library.model(features)["sentence_embedding"]
            return vectors

        return embed

    def loss(self, batch: Batch, vectors: Tensor) -> Tensor:
        if not self._own:
            return super().loss(batch, vectors)
        passes, queries = len(self.bench.encoder.passes), len(batch.histories)
        history = vectors[: queries * passes].unflatten(0, (passes, queries)).sum(0)
        target = vectors[queries * passes :].unflatten(0, (passes, -1)).sum(0)
        found: Tensor = self._ranking.compute_loss_from_embeddings([history, target[batch.positive]], None)
        return found


def encode(library: Sentences, bench: Bench, rows: list[list[int]], prompts: list[Prompt], at_once: int) -> np.ndarray:
    """Fused vectors `(n, D)` of histories, by `SentenceTransformer.encode` over texts, then over pictures.

    It is given the prompts' words and the pictures; pictures are read here, tokens and pixels are made by it.
    """
    library.model.eval()
    checkpoint(library.model[0].model, False)
    total: np.ndarray | float = 0.0
    for number, modality in enumerate(bench.encoder.passes):
        some = prompts[number * len(rows) : (number + 1) * len(rows)]
        texts = [_words(bench, prompt) for prompt in some]
        inputs: list[Any] = texts
        if modality != "text":
            inputs = [{"text": text, "image": _pictures(bench, row)} for text, row in zip(texts, rows, strict=True)]
        total = total + library.model.encode(inputs, batch_size=at_once, show_progress_bar=False)
    assert isinstance(total, np.ndarray)
    return total


def _pictures(bench: Bench, row: list[int]) -> list[Image.Image]:
    found = [bench.split.dataset.pictures[item] for item in row]
    return [Image.fromarray(picture) for picture in found if picture is not None]


def _words(bench: Bench, prompt: Prompt) -> str:
    """The prompt as text, one mark a picture."""
    mark = bench.encoder.backbone.image_token
    ids = [token for place, token in enumerate(prompt.ids) if token != mark or prompt.ids[place - 1 : place] != [mark]]
    return str(bench.encoder.backbone.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
