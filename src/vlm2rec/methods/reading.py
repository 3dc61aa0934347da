"""Whether what a configuration reads titles with can read those of its data set: said before anything is computed.

A model that cannot still trains for hours, and its texts still rank: a little above chance, or at it. So it is a
warning that goes into the results of the run, not an error.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers import AutoTokenizer

from vlm2rec.backbones.load import BUILT_IN
from vlm2rec.backbones.reading import Reading, read_titles
from vlm2rec.config import CLIP, SLIM, Bert, Config, Pair, Transfer, VLMPrompt
from vlm2rec.data.dataset import Dataset
from vlm2rec.errors import InputError
from vlm2rec.progress import notice
from vlm2rec.runs import Run

BY_BACKBONE = ("vanilla", "sft", "vlm2rec", "llmemb", "llm2rec", "notellm2", "slim", "vlm_prompt")
"""Kinds that read with the backbone of the configuration."""

_HOURS = "; `vlm2rec doctor CONFIG` says how long each takes"
_ENGLISH = 0.9  # share of plain Latin letters from which smol and MiniLM, which read English, are an alternative
_SAID: set[str] = set()


def readers(config: Config) -> list[str]:
    """What a method reads titles with: folders or hub names, or `nano`."""
    method = config.method
    match method:
        case Bert(path=path) | CLIP(path=path):
            return [path]
        case Pair(text=path):
            return [path]
        case Transfer(source=source):
            try:
                return readers(Run.open(source).config)
            except InputError:  # said where the run is opened for good
                return []
        case SLIM():
            return [config.backbone.path, *([method.text_encoder] if method.encoder == "bert" else [])]
        case VLMPrompt(with_title=with_title):
            return [config.backbone.path] if with_title else []
    reads = method.kind in BY_BACKBONE and config.prompt.modalities != "image"
    return [config.backbone.path] if reads else []


def reading(path: str, titles: Sequence[str]) -> Reading | None:
    """How the tokenizer at `path` reads titles; None where there is nothing to say.

    A tokenizer that cannot be loaded is for the loader of the model to complain of.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(BUILT_IN) if path == "nano" else path)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError):
        return None
    return read_titles(tokenizer, titles) if tokenizer.is_fast else None


def unreadable(config: Config, dataset: Dataset) -> list[str]:
    """A line for each tokenizer of the configuration that takes most titles apart; none where all is well."""
    found = ((path, reading(path, dataset.titles)) for path in readers(config))
    return [line(path, how, dataset.titles) for path, how in found if how is not None and not how.readable]


def line(path: str, how: Reading, titles: Sequence[str]) -> str:
    """What is wrong, how it was measured, and what to take instead."""
    title, tokens = how.example
    return (
        f"{path} cannot read these titles: {how.apart:.0%} of {how.titles:,} fall apart into single letters"
        f" ({how.letters_a_token:.1f} letters a token; {title!r} takes {tokens} tokens), so texts will tell it next to"
        f" nothing; {instead(titles)}"
    )


def instead(titles: Sequence[str]) -> str:
    """What can be taken on a machine without a GPU or a model hub."""
    if english(titles):
        return (
            "without a GPU, take method.kind = sasrec, itemknn or pair (MiniLM and EfficientNet), or the backbone smol"
            + _HOURS
        )
    return (
        "take a backbone that was trained on the language of these titles; method.kind = sasrec and itemknn read none"
    )


def without_hours(text: str) -> str:
    """A line of `unreadable` where the hours stand below it."""
    return text.removesuffix(_HOURS)


def english(titles: Sequence[str]) -> bool:
    """Whether titles are in plain Latin letters, which is all that the small encoders from PyPI read."""
    letters = [letter for title in titles[:2000] for letter in title if letter.isalpha()]
    return sum(map(str.isascii, letters)) >= _ENGLISH * len(letters)


def warn(lines: Iterable[str]) -> None:
    """Say each line once in the life of this process."""
    for text in lines:
        if text not in _SAID:
            _SAID.add(text)
            notice(f"warning: {text}")


def warn_ahead(configs: Iterable[Config]) -> None:
    """Warn of all runs that are about to be made, before the first; of checkpoints that lie on this machine."""
    asked = {(config.data.path, path) for config in configs for path in readers(config)}
    for data, path in sorted(asked):
        if path == "nano" or Path(path).is_dir():
            try:
                titles = Dataset.load(data).titles
            except InputError:  # said where the data set is opened for good
                continue
            how = reading(path, titles)
            if how is not None and not how.readable:
                warn([line(path, how, titles)])
