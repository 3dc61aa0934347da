"""What the command line sets for its own process."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
from vlm2rec.process import settle
settle()
import numpy as np
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(1 << 24)  # 128 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), faults(), faults())
"""


def python(code: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives large blocks back at once")
def test_freed_memory_is_kept_for_the_next_tensor() -> None:
    first, *later = map(int, python(FAULTS))
    assert max(later) < first / 10


def test_what_the_user_set_stays() -> None:
    code = "import os; from vlm2rec.process import settle; settle(); print(os.environ['GOMP_SPINCOUNT'])"
    assert python(code, GOMP_SPINCOUNT="17") == ["17"]
