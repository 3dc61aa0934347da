"""Three teachers for SLIM, any of which can take another's place: a local model, a file of answers, a template.

The source asks a large chat service. Here its answers come in through a file, a JSON object a line:

    key      which prompt it answers: SHA-256, in hex digits, of the UTF-8 bytes of MODEL, a newline, and the prompt;
             MODEL is `method.teacher_model`
    answer   what was answered: three lines, "1. Tastes: …", "2. Categories and brands: …", "3. Products: …"

Further fields are ignored, so what a run keeps of its own teacher (`teacher.jsonl`) can be another run's file. Prompts
without an answer are written to NAME.missing.jsonl beside the file NAME.jsonl, with `model`, `prompt` and an empty
`answer` to fill in; answers are read from both.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vlm2rec.errors import InputError
from vlm2rec.methods.slim.answers import Writer, collect, key_of
from vlm2rec.methods.slim.prompts import Question, Shelf, rationale, steps
from vlm2rec.runs import write_text

_NAMED = 3  # titles, words and categories a template names
_LITTLE = {"and", "are", "but", "for", "from", "her", "his", "its", "not", "our", "that", "the", "this", "with", "your"}


class Teacher(Protocol):
    """Whoever answers questions about histories."""

    @property
    def name(self) -> str:
        """What enters the key of every answer."""
        ...

    def check(self, questions: Sequence[Question]) -> None:
        """Raise InputError where the questions cannot be answered."""
        ...

    def generate(self, questions: Sequence[Question], wanted: Collection[int]) -> Iterator[Mapping[int, str]]:
        """Answers by number of the question, part after part; all that are `wanted`, perhaps some more."""
        ...


@dataclass(frozen=True)
class Answered:
    """A rationale a question, and how many of them are the template's because the teacher's lacked a step."""

    rationales: list[str]
    rejected: int


def ask(teacher: Teacher, questions: Sequence[Question], shelf: Shelf, path: Path) -> Answered:
    """Have every question answered once; what the teacher said, good or not, is kept at `path` as it comes."""
    keys = [key_of(teacher.name, question.text) for question in questions]
    answers = collect(
        path,
        keys,
        lambda wanted: teacher.generate(questions, wanted),
        lambda number: {"model": teacher.name, "prompt": questions[number].text},
        "teacher",
    )
    lacking = [number for number, answer in enumerate(answers) if steps(answer) is None]
    if lacking:
        template = TemplateTeacher(shelf)
        for number in lacking:
            answers[number] = template.answer(questions[number].history)
    return Answered(answers, len(lacking))


@dataclass(frozen=True)
class ModelTeacher:
    """An instruct model of one's own, or the run's backbone itself."""

    name: str
    writer: Writer

    def check(self, questions: Sequence[Question]) -> None:
        """Every prompt must leave room for its answer in the model's context."""
        self.writer.check(questions)

    def generate(self, questions: Sequence[Question], wanted: Collection[int]) -> Iterator[Mapping[int, str]]:
        """By greedy decoding, so that the same is said whenever it is asked."""
        return self.writer(questions, wanted)


class FileTeacher:
    """Answers that somebody else has given; the fields of the file are those at the head of this module."""

    def __init__(self, path: Path, name: str) -> None:
        """Read the file and what was filled in of the missing ones. Raises InputError where a line is no answer."""
        if not path.parent.is_dir() or path.is_dir():
            raise InputError(f"method.teacher_path = {str(path)!r}: no such file; give a JSON-lines file of answers")
        self.name = name
        self._path = path
        self._missing = path.with_name(path.stem + ".missing.jsonl")
        self._answers = {key: line["answer"] for file in (path, self._missing) for key, line in _read(file).items()}

    def check(self, questions: Sequence[Question]) -> None:
        """Every question must have an answer with all steps; where some have none, write those to be filled in."""
        texts = {key_of(self.name, question.text): question.text for question in questions}
        missing = texts.keys() - self._answers.keys()
        if missing:
            self._write_missing({key: text for key, text in texts.items() if key in missing})
            raise InputError(
                f"{self._path}: {len(missing):,} of {len(texts):,} prompts have no answer in it; they are in"
                f' {self._missing}: fill in each "answer" there, or set method.teacher=template'
                f" (keys hold method.teacher_model, here {self.name!r})"
            )
        for key in texts:
            if steps(self._answers[key]) is None:
                raise InputError(
                    f"{self._path}: the answer with key {key} lacks one of the steps Tastes, Categories and brands,"
                    " Products; mend it, or take it out"
                )

    def generate(self, questions: Sequence[Question], wanted: Collection[int]) -> Iterator[Mapping[int, str]]:
        """What the file says, all at once."""
        yield {number: self._answers[key_of(self.name, questions[number].text)] for number in wanted}

    def _write_missing(self, texts: Mapping[str, str]) -> None:
        """Open questions to the file of missing ones, behind what was filled in there."""
        unanswered = [{"key": key, "model": self.name, "prompt": text, "answer": ""} for key, text in texts.items()]
        lines = [*_read(self._missing).values(), *unanswered]
        write_text(self._missing, "".join(json.dumps(line) + "\n" for line in lines))


class TemplateTeacher:
    """Fills what stands out of a history into the three steps: nothing is understood, and everything is repeatable."""

    name = "template"

    def __init__(self, shelf: Shelf) -> None:
        """Count in how many items each word, category and brand stands."""
        self._shelf = shelf
        self._words = _Telling([_words(title) for title in shelf.names])
        self._categories = _Telling([_listed(text) for text in shelf.categories])
        self._brands = _Telling([[text] if text else [] for text in shelf.brands])

    def check(self, questions: Sequence[Question]) -> None:
        """It can answer anything."""

    def generate(self, questions: Sequence[Question], wanted: Collection[int]) -> Iterator[Mapping[int, str]]:
        """One part."""
        yield {number: self.answer(questions[number].history) for number in wanted}

    def answer(self, history: Sequence[int]) -> str:
        """The rationale of a history, oldest item first: its most telling words, then names, then its last titles."""
        words = self._words.top(history, 2 * _NAMED)
        names = [*self._categories.top(history, _NAMED), *self._brands.top(history, _NAMED)]
        titles = [self._shelf.names[item] for item in reversed(history) if self._shelf.names[item]]
        recent = list(dict.fromkeys(titles))[:_NAMED]
        return rationale(
            f"The shopper likes {_and(words[:_NAMED], 'many kinds of thing')}.",
            f"{_and(names or words[_NAMED:] or words, 'Much the same as before')}.",
            f"Products like {_and(recent, 'those bought before', '; ')}.",
        )


class _Telling:
    """Which of the terms of a history say most about it, against how many items of the catalogue have them.

    n items of a history with a term that df of N items have: (n - 1/2) log(N / df). So what everything has counts
    nothing, and a word met once counts half: it may be a mere name.
    """

    def __init__(self, terms: Sequence[Sequence[str]]) -> None:
        self._terms = terms
        count = Counter(term for own in terms for term in set(own))
        self._weight = {term: math.log(len(terms) / df) for term, df in count.items()}

    def top(self, history: Sequence[int], count: int) -> list[str]:
        found = Counter(term for item in history for term in dict.fromkeys(self._terms[item]))
        scores = {term: (n - 0.5) * self._weight[term] for term, n in found.items() if self._weight[term] > 0}
        return sorted(scores, key=lambda term: -scores[term])[:count]


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Lines by key, those with a blank answer left out; none where there is no file."""
    if not path.exists():
        return {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}); give a JSON-lines file") from None
    found = [_read_line(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    return {line["key"]: line for line in found if line["answer"].strip()}


def _read_line(text: str, where: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError:
        line = None
    if not (isinstance(line, dict) and all(isinstance(line.get(name), str) for name in ("key", "answer"))):
        raise InputError(f'{where}: not an answer; write one object a line, {{"key": "…", "answer": "…"}}')
    return line


def _words(title: str) -> list[str]:
    return [word for word in re.findall(r"[^\W\d_]{3,}", title.lower()) if word not in _LITTLE]


def _listed(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"[,;|>]", text) if part.strip()]


def _and(words: Sequence[str], otherwise: str, between: str = ", ") -> str:
    return between.join(words) or otherwise
