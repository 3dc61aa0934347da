"""Texts that cost a model's time, each made once: kept line by line in a file that a kill cannot spoil."""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm2rec.backbones.generate import batches, greedy
from vlm2rec.backbones.load import Backbone
from vlm2rec.backbones.packing import Prompt
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.methods.slim.prompts import Question, Shelf
from vlm2rec.progress import progress
from vlm2rec.prompts import Picture

Generate = Callable[[Collection[int]], Iterator[Mapping[int, str]]]
"""`generate(wanted)`: texts by number, part after part; a part may hold more than is wanted."""


@dataclass(frozen=True)
class Writer:
    """A local model that answers questions by greedy decoding. Its encoder was built with `head=True`."""

    encoder: Encoder
    shelf: Shelf
    max_new_tokens: int

    def check(self, questions: Sequence[Question]) -> None:
        """Try whether all prompts leave room for their answers; a picture is taken to be as long as the first one.

        Raises InputError, as `read`.
        """
        self.encoder.look_at(self.shelf, [])
        shown = self._picture_tokens()
        words = [[part for part in question.segments if not isinstance(part, Picture)] for question in questions]
        self._need_room(
            max(
                len(self.encoder.read(spoken).ids) + shown * (len(question.segments) - len(spoken))
                for question, spoken in zip(questions, words, strict=True)
            )
        )

    def read(self, questions: Sequence[Question]) -> list[Prompt]:
        """Prompts as the model reads them. Raises InputError where one leaves no room for its answer."""
        self.encoder.look_at(self.shelf, {item for question in questions for item in question.history})
        prompts = [self.encoder.read(question.segments) for question in questions]
        self._need_room(max(len(prompt.ids) for prompt in prompts))
        return prompts

    def __call__(self, questions: Sequence[Question], wanted: Collection[int]) -> Iterator[Mapping[int, str]]:
        """Answers by number, longest prompts first; what shares a batch does not depend on what is wanted."""
        backbone = self.encoder.backbone
        asked = [(prompt.ids, prompt.visuals) for prompt in self.read(questions)]
        for part in batches(backbone, asked):
            if any(row in wanted for row in part):
                answers = greedy(backbone, [asked[row] for row in part], self.max_new_tokens, stop_tokens(backbone))
                yield {row: _plain(backbone, answer) for row, answer in zip(part, answers, strict=True)}

    def _picture_tokens(self) -> int:
        if self.encoder.passes == ("text",):
            return 0
        first = next(item for item in range(self.shelf.size) if self.shelf.pictures[item] is not None)
        self.encoder.look_at(self.shelf, [first])
        visual = self.encoder.visual(first)
        assert visual is not None
        return len(self.encoder.backbone.picture_tokens(len(visual.tokens)))

    def _need_room(self, longest: int) -> None:
        if longest + self.max_new_tokens > self.encoder.backbone.context:
            raise InputError(
                f"a prompt about a history takes {longest} tokens and its answer up to {self.max_new_tokens},"
                f" {self.encoder.settings.path!r} reads {self.encoder.backbone.context}; lower data.max_history,"
                " prompt.max_title_tokens or method.max_new_tokens"
            )


def stop_tokens(backbone: Backbone) -> set[int]:
    """The tokens that end an answer: the tokenizer's own, and those the checkpoint generates up to."""
    assert backbone.generator is not None
    given: Any = backbone.generator.generation_config.eos_token_id
    listed = given if isinstance(given, list) else [given]
    return {int(token) for token in [backbone.tokenizer.eos_token_id, *listed] if token is not None}


def key_of(*parts: str) -> str:
    """SHA-256, in hex digits, of the UTF-8 bytes of the parts joined by newlines."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def collect(
    path: Path, keys: Sequence[str], generate: Generate, about: Callable[[int], Mapping[str, str]], title: str
) -> list[str]:
    """The texts of `keys`, those kept at `path` and, generated and appended, those not yet there.

    A line holds `key`, what `about` says of that number, and the text as `answer`. A key that is there several times
    is asked for once.
    """
    kept = {line["key"]: line["answer"] for line in read_lines(path)}
    first = {key: number for number, key in reversed(list(enumerate(keys)))}
    wanted = {number for key, number in first.items() if key not in kept}
    if wanted:
        with progress(title, len(first), len(first) - len(wanted)) as tell:
            for part in generate(wanted):
                new = {keys[number]: (number, text) for number, text in part.items() if keys[number] not in kept}
                append_lines(path, ({"key": key, **about(n), "answer": text} for key, (n, text) in new.items()))
                kept |= {key: text for key, (_, text) in new.items()}
                tell(len(first.keys() & kept.keys()), "")
    return [kept[key] for key in keys]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that `append_lines` wrote, without a last line that a kill cut short."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add one line an object, over a last line that a kill cut short; on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        file.flush()
        os.fsync(file.fileno())


def _plain(backbone: Backbone, answer: Sequence[int]) -> str:
    text: str = backbone.tokenizer.decode(answer, skip_special_tokens=True)
    return text.strip()
