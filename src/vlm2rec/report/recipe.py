"""How to make the runs of a page again."""

from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote

from vlm2rec.comparison import Comparison, Method
from vlm2rec.config import config_toml
from vlm2rec.report.parts import slug
from vlm2rec.report.words import display


@dataclass(frozen=True)
class Recipe:
    """The configuration of a method, and the command that runs it for all its seeds."""

    label: str
    file: str
    command: str
    folders: str
    config: str


def recipes(methods: Sequence[Method]) -> list[Recipe]:
    """One a method."""
    found = []
    for method in methods:
        file = f"{slug(method.kind)}{_number(method, methods)}.toml"
        seeds = ",".join(map(str, method.seeds))
        command = f"vlm2rec sweep {file} --set seed={seeds}" if len(method.seeds) > 1 else f"vlm2rec run {file}"
        folders = ", ".join(run.path.name for run in method.runs)
        found.append(Recipe(display(method.label), file, command, folders, config_toml(method.runs[0].config)))
    return found


def _number(method: Method, methods: Sequence[Method]) -> str:
    same = [other for other in methods if other.kind == method.kind]
    return f"-{same.index(method) + 1}" if len(same) > 1 else ""


def report_command(comparison: Comparison) -> str:
    """What makes the page again from these runs."""
    folders = [quote(str(run.path)) for method in comparison.methods for run in method.runs]
    return f"vlm2rec report {' '.join(folders)} --out report.html"


def versions(comparison: Comparison) -> list[tuple[str, str]]:
    """(whose, what was installed) for each set of versions that a run was made with."""
    found: dict[str, list[str]] = {}
    for run in (run for method in comparison.methods for run in method.runs):
        listed = ", ".join(f"{package} {version}" for package, version in run.manifest.get("versions", {}).items())
        if listed:
            found.setdefault(listed, []).append(run.path.name)
    return [("" if len(found) == 1 else ", ".join(names), listed) for listed, names in found.items()]


def fingerprints(comparison: Comparison) -> list[tuple[str, str]]:
    """(of what, fingerprint): the data, its split, and the backbone weights of each method that has some."""
    first = comparison.methods[0].runs[0]
    data = first.manifest.get("data", {})
    found = [("data", str(data.get("fingerprint", "")))]
    if "split" in data and data["split"]["fingerprint"] != data["fingerprint"]:  # leave-one-out has that of the data
        found.append(("split", str(data["split"]["fingerprint"])))
    weights = {
        str(run.manifest["backbone"]["fingerprint"])
        for method in comparison.methods
        for run in method.runs
        if run.manifest.get("backbone", {}).get("fingerprint")
    }
    return [*found, *(("backbone", one) for one in sorted(weights))]
