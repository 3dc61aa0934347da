"""Whether a tokenizer can read some titles, or takes them apart into single letters.

A model knows words by their tokens. Titles in words that its vocabulary lacks (another script, another field, a
vocabulary of a few hundred words) come to it letter by letter, or byte by byte, and mean next to nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

SAMPLED = 500
"""Titles that are looked at: a tenth of a second."""

APART = 0.25
"""A title of whose letters more than this share stand alone is said to fall apart: of real titles, 0 to 2% with the
tokenizers of language models, over 80% with that of `nano`."""

MOST = 0.5
"""Where more than this share of the titles fall apart, the tokenizer cannot read them."""

_ALONE_IS_A_WORD = (  # scripts in which one character says what a syllable or a word does
    (0x3040, 0x30FF),  # kana
    (0x3400, 0x9FFF),  # Chinese characters
    (0xAC00, 0xD7AF),  # Hangul
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


@dataclass(frozen=True)
class Reading:
    """How a tokenizer reads a sample of titles.

    Attributes:
        titles: how many were looked at.
        apart: share of them that fall apart.
        letters_a_token: letters a token on average, digits and signs left out.
        example: a typical title, of those that fall apart where some do, and how many tokens it takes.
    """

    titles: int
    apart: float
    letters_a_token: float
    example: tuple[str, int]

    @property
    def readable(self) -> bool:
        """Whether most titles keep their words."""
        return self.apart <= MOST


def read_titles(tokenizer: PreTrainedTokenizerBase, titles: Sequence[str], seed: int = 0) -> Reading | None:
    """Look at up to `SAMPLED` titles, drawn from the seed; None where none has a letter. Takes a fast tokenizer.

    A letter stands alone where its token holds no other letter of its word, where it takes more than one token (bytes),
    or where it is unknown to the vocabulary. Words of one letter are left out, and characters that are words.
    """
    worded = [title for title in titles if any(map(str.isalpha, title))]
    if not worded:
        return None
    if len(worded) > SAMPLED:
        worded = [worded[i] for i in np.sort(np.random.default_rng(seed).choice(len(worded), SAMPLED, replace=False))]
    encoded = tokenizer(worded, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True)
    shares, letters, tokens = [], 0, 0
    for title, ids, spans in zip(worded, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        alone, all_letters, used = _count(title, ids, spans, tokenizer.unk_token_id)
        shares.append(alone / all_letters)
        letters, tokens = letters + all_letters, tokens + used
    # A title of common length among those that fall apart, or of all.
    worst = [place for place, share in enumerate(shares) if share > APART] or list(range(len(worded)))
    typical = sorted(worst, key=lambda place: len(worded[place]))[len(worst) // 2]
    return Reading(
        titles=len(worded),
        apart=float(np.mean(np.array(shares) > APART)),
        letters_a_token=letters / max(1, tokens),
        example=(worded[typical], len(encoded["input_ids"][typical])),
    )


def _count(
    title: str, ids: Sequence[int], spans: Sequence[tuple[int, int]], unknown: int | None
) -> tuple[int, int, int]:
    """Letters of a title that stand alone, all its letters, and the tokens that hold any."""
    covering = np.zeros(len(title), int)
    alone, used = np.zeros(len(title), bool), 0
    for token, (start, end) in zip(ids, spans, strict=True):
        held = [place for place in range(start, end) if title[place].isalpha()]
        used += bool(held)
        covering[held] += 1
        if (token == unknown and unknown is not None) or (len(held) == 1 and _inside_a_word(title, held[0])):
            alone[held] = True
    alone |= covering > 1
    letters = [place for place, letter in enumerate(title) if letter.isalpha()]
    return int(alone[letters].sum()), len(letters), used


def _inside_a_word(title: str, place: int) -> bool:
    """Whether a letter has letters beside it, and needs them to mean something."""
    if any(low <= ord(title[place]) <= high for low, high in _ALONE_IS_A_WORD):
        return False
    return any(title[at].isalpha() for at in (place - 1, place + 1) if 0 <= at < len(title))
