"""What the backbone is asked to read."""

import pytest

from vlm2rec.config import PromptConfig
from vlm2rec.prompts import Modality, Picture, Text, Title, history_prompt, passes

MODALITIES: tuple[Modality, ...] = ("text", "image", "both")


@pytest.mark.parametrize(
    ("fusion", "modalities", "expected"),
    [
        ("external", "both", ("text", "image")),
        ("internal", "both", ("both",)),
        ("external", "text", ("text",)),
        ("internal", "text", ("text",)),
        ("external", "image", ("image",)),
        ("internal", "image", ("image",)),
    ],
)
def test_passes(fusion: str, modalities: str, expected: tuple[str, ...]) -> None:
    assert passes(PromptConfig.model_validate({"fusion": fusion, "modalities": modalities})) == expected


def test_the_words_of_a_history() -> None:
    prompt = PromptConfig(opening="Bought:\n", closing="Next:")
    assert history_prompt([7, 3], "both", prompt) == [
        Text("Bought:\n"),
        Text("1. "), Title(7), Text(" "), Picture(7), Text("\n"),
        Text("2. "), Title(3), Text(" "), Picture(3), Text("\n"),
        Text("Next:"),
    ]  # fmt: skip


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_pass_sees_its_modality_alone_and_items_oldest_first(modality: Modality) -> None:
    items = [4, 1, 4, 9]
    segments = history_prompt(items, modality, PromptConfig())
    titles = [segment.item for segment in segments if isinstance(segment, Title)]
    pictures = [segment.item for segment in segments if isinstance(segment, Picture)]
    assert titles == ([] if modality == "image" else items)
    assert pictures == ([] if modality == "text" else items)


@pytest.mark.parametrize("modality", MODALITIES)
def test_histories_differ_by_their_slots_alone(modality: Modality) -> None:
    """A longer history continues a shorter one's prompt, up to the closing: the template does not know lengths."""
    prompt = PromptConfig()
    for count in range(1, 5):
        shorter, longer = (history_prompt(range(n), modality, prompt) for n in (count, count + 1))
        assert longer[: len(shorter) - 1] == shorter[:-1]
        assert longer[-1] == shorter[-1] == Text(prompt.closing)
