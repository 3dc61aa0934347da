"""What the backbone is asked to read, as segments; knows neither tokens nor pixels (Sec. 2.2.1).

A history prompt is an opening line, one numbered slot an item (oldest first), and a closing request that ends in
the same token always, so the pooled state has one meaning. An item's prompt is the history prompt with that item
in its only slot (index 0), so a one-item history embeds exactly like the item.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vlm2rec.config import PromptConfig

Modality = Literal["text", "image", "both"]


@dataclass(frozen=True, slots=True)
class Text:
    """Words, the same for every item."""

    text: str


@dataclass(frozen=True, slots=True)
class Title:
    """The place of an item's title."""

    item: int


@dataclass(frozen=True, slots=True)
class Picture:
    """The place of an item's picture."""

    item: int


Segment = Text | Title | Picture


def passes(prompt: PromptConfig) -> tuple[Modality, ...]:
    """The forward passes that make one embedding: a text and an image pass (external fusion), or a single one."""
    if prompt.modalities != "both":
        return (prompt.modalities,)
    return ("text", "image") if prompt.fusion == "external" else ("both",)


def history_prompt(items: Sequence[int], modality: Modality, prompt: PromptConfig, read: int = 0) -> list[Segment]:
    """Segments of one pass over a history of item indices, oldest first, behind the first `read` items' slots."""
    segments: list[Segment] = [] if read else [Text(prompt.opening)]
    for number, item in enumerate(items[read:], start=read + 1):
        segments.append(Text(f"{number}. "))
        if modality != "image":
            segments.append(Title(item))
        if modality == "both":
            segments.append(Text(" "))
        if modality != "text":
            segments.append(Picture(item))
        segments.append(Text("\n"))
    segments.append(Text(prompt.closing))
    return segments
