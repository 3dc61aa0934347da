"""What a call of the command line left behind, and what a refusal looks like. The fixture `call` makes the call."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Said:
    """Exit status, standard output, standard error."""

    status: int
    out: str
    err: str


Call = Callable[..., Said]


def check_refused(said: Said, *says: str) -> None:
    """Status 2, nothing on standard output, and on standard error one line that holds each of `says`."""
    assert said.status == 2, said
    assert said.out == ""
    assert said.err.count("\n") == 1 and said.err.endswith("\n"), said.err
    assert said.err.startswith("vlm2rec: ")
    assert "Traceback" not in said.err
    for part in says:
        assert part in said.err, said.err
