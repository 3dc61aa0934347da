"""Lines spoilt in every way that files are: for tests that a reader survives them."""

import random

_BYTES = [
    b"\0",
    b"\xff",
    b"\xc3",
    b'"',
    b"'",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\n",
    b"\r",
    b"\t",
    b"u",
    b"#",
]
_PIECES = [
    *[
        b"\\ud800",
        b"\\u0000",
        b"NaN",
        b"9" * 5000,
        b"1e999",
        b"[" * 5000,
        b'{"a":' * 2000,
        b"-" * 9000,
        b"\xed\xa0\x80",
    ],
    *[b"null", b"None", b"0x1F", b'"x": 1, ', b"'asin': 'B000000003', ", b'"asin": "B000000003", ', b"\xef\xbb\xbf"],
]


def mutated(lines: list[bytes], random: random.Random) -> list[bytes]:
    """The lines, half of them spoilt; a spoilt one may be two."""
    return [_spoilt(line, lines, random) if random.random() < 0.5 else line for line in lines]


def _spoilt(line: bytes, others: list[bytes], random: random.Random) -> bytes:
    place, end = sorted(random.randrange(len(line) + 1) for _ in range(2))
    ways = (
        lambda: line[:place] + random.choice(_BYTES) + line[place + 1 :],
        lambda: line[:place] + random.choice(_BYTES) + line[place:],
        lambda: line[:place] + random.choice(_PIECES) + line[place:],
        lambda: line[:place] + random.choice(_PIECES) + line[end:],
        lambda: line[:place] + line[end:],
        lambda: line[:place],
        lambda: line[:end] + random.choice(others)[end:],
        lambda: line[:place] + bytes(random.randrange(256) for _ in range(5)) + line[place + 5 :],
        lambda: line.replace(*random.choice([(b'"', b"'"), (b'": "', b'": ["'), (b'": ', b'": -'), (b", ", b",")])),
        lambda: line + random.choice([line, b" ", b"\r", b"}", b" # x", b","]),
        lambda: random.choice([b"", b"null", b"3", b'"x"', b"[1, 2]", b"{}", b"<html>", b" "]),
    )
    return random.choice(ways)()
