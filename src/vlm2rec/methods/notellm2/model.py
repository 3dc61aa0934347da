"""NoteLLM-2's model and loss: a picture compressed in context, a gate that fuses late, a contrast of pairs."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from vlm2rec.backbones.packing import Prompt
from vlm2rec.data.dataset import Catalogue
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.prompts import Picture, Segment, Text, Title
from vlm2rec.runs import replacing
from vlm2rec.weights import read_into, write_weights

FUSION_FILE = "late_fusion.safetensors"
_FUSED_SHARE = 9  # of the fused loss, against `visual_weight` for the picture's
_CUE = "\nThe product, compressed into one word:"


def records(item: int) -> tuple[list[Segment], list[Segment]]:
    """The two records of an item: its picture and a cue, then its title and the same cue."""
    picture: list[Segment] = [Text("A product of the catalogue. Its picture: "), Picture(item), Text(_CUE)]
    title: list[Segment] = [Text("\nThe same product. Its title: "), Title(item), Text(_CUE)]
    return picture, title


class LateFusion(nn.Module):
    """Mix what the vision tower saw into a state that the language model made, behind its back.

    `v = W_v p`, `g = sigmoid(W_g [v; n])`, `n' = g * v + (1 - g) * n`, then a reduction to `out_dim`, left out where
    that is -1 or no less than `dim`. No biases: an item without a picture, p = 0, has v = 0. In float32.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, dim, bias=False)
        self.gate = nn.Linear(2 * dim, dim, bias=False)
        self.reduce = nn.Linear(dim, out_dim, bias=False) if 0 < out_dim < dim else nn.Identity()
        for weight in self.parameters():
            nn.init.xavier_normal_(weight)

    def forward(self, states: Tensor, picture: Tensor) -> Tensor:
        """States `(…, D)` and a picture's features `(…, D)` to vectors `(…, out_dim)`."""
        seen = self.project(picture)
        gate = torch.sigmoid(self.gate(torch.cat([seen, states], dim=-1)))
        fused: Tensor = self.reduce(gate * seen + (1 - gate) * states)
        return fused


class PairLoss(nn.Module):
    """`(9 L_m + w L_v) / (9 + w)`: each of 2P items must find its partner, fused and by its picture (NoteLLM-2).

    Cosines are multiplied by `exp(scale)`, which is learned (leave it out of weight decay).
    """

    def __init__(self, scale: float, visual_weight: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.visual_weight = visual_weight

    def forward(self, fused: Tensor, visual: Tensor, negatives: Tensor) -> Tensor:
        """Loss, a scalar; arguments as for `contrast`."""
        total = _FUSED_SHARE * self.contrast(fused, negatives) + self.visual_weight * self.contrast(visual, negatives)
        return total / (_FUSED_SHARE + self.visual_weight)

    def contrast(self, vectors: Tensor, negatives: Tensor) -> Tensor:
        """Mean cross-entropy over 2P rows of finding the partner, row k + P modulo 2P, among the row's negatives.

        `vectors` (2P, d), not normalised; `negatives` (2P, 2P) bool. In float32 or wider. A row without negatives
        adds 0.
        """
        wide = vectors if vectors.dtype == torch.float64 else vectors.float()
        unit = normalize(wide, dim=-1, eps=1e-12)
        partner = torch.arange(len(unit), device=unit.device).roll(len(unit) // 2)
        candidates = negatives.scatter(1, partner[:, None], True)
        logits = (self.scale.to(unit.dtype).exp() * unit @ unit.T).masked_fill(~candidates, -torch.inf)
        return cross_entropy(logits, partner)


class RecordEmbedder(nn.Module):
    """Items of a catalogue to their two vectors: n'_m, which knows picture and title, and n'_v, the picture alone.

    One forward pass reads both records. A causal model's state behind the first cue, n_v, has seen the picture only;
    the state of the last token, n_m, has seen both. The same `LateFusion` serves both.
    """

    def __init__(self, encoder: Encoder, catalogue: Catalogue, out_dim: int, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self._catalogue = catalogue
        self._closing = len(encoder.backbone.wrapper(encoder.prompt.chat)[1])
        torch.manual_seed(seed)
        self.fusion = LateFusion(encoder.backbone.dim, out_dim).to(encoder.device)

    @classmethod
    def load(cls, folder: Path | str, catalogue: Catalogue, out_dim: int) -> "RecordEmbedder":
        """Read what `save` wrote. Raises InputError where it is not whole."""
        embedder = cls(Encoder.load(folder), catalogue, out_dim, seed=0)
        read_into(Path(folder) / FUSION_FILE, embedder.fusion.state_dict())
        return embedder.eval()

    def save(self, folder: Path | str) -> None:
        """Write the encoder's files and, beside them, the late fusion's weights."""
        self.encoder.save(folder)
        with replacing(Path(folder) / FUSION_FILE) as temporary:
            write_weights(temporary, self.fusion.state_dict())

    def forward(self, items: Sequence[int]) -> Tensor:
        """Vectors `(n, 2, out_dim)` float32 of n items, not normalised: n'_m, n'_v."""
        found = self.prompts(items)
        at_once = max(1, self.encoder.batch_tokens // max(len(prompt.ids) for prompt, _ in found))
        states = [self._states(found[start : start + at_once]) for start in range(0, len(found), at_once)]
        pictures = torch.stack([self._picture(item) for item in items])
        fused: Tensor = self.fusion(torch.cat(states).float(), pictures[:, None].expand(-1, 2, -1))
        return fused

    def prompts(self, items: Sequence[int]) -> list[tuple[Prompt, int]]:
        """Each item's prompt, and the position of the token that ends its first record.

        Raises:
            InputError: a prompt is longer than the backbone's context.
        """
        encoder = self.encoder
        encoder.look_at(self._catalogue, items)
        found = []
        for item in items:
            first, second = records(item)
            prompt = encoder.read([*first, *second])
            if len(prompt.ids) > encoder.backbone.context:
                raise InputError(
                    f"the two records of an item take {len(prompt.ids)} tokens, the backbone reads"
                    f" {encoder.backbone.context}; lower prompt.max_title_tokens or backbone.image_size"
                )
            # Segments are tokenised one by one, so the first record is the same tokens alone and before the second.
            found.append((prompt, len(encoder.read(first).ids) - self._closing - 1))
        return found

    def _states(self, found: Sequence[tuple[Prompt, int]]) -> Tensor:
        """n_m and n_v of some prompts, `(n, 2, D)`, in the backbone's dtype."""
        ids = [prompt.ids for prompt, _ in found]
        states, _ = self.encoder.backbone.states(ids, [visual for prompt, _ in found for visual in prompt.visuals])
        places = torch.tensor([[len(prompt.ids) - 1, cue] for prompt, cue in found], device=states.device)
        return states[torch.arange(len(found), device=states.device)[:, None], places]

    def _picture(self, item: int) -> Tensor:
        """Mean `(D,)` float32 of a picture's visual tokens, without a gradient; zeros where there is no picture."""
        visual = self.encoder.visual(item)
        if visual is None:
            return torch.zeros(self.encoder.backbone.dim, device=self.encoder.device)
        return visual.tokens.detach().to(self.encoder.device).float().mean(0)
