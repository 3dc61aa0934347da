"""Where a checkpoint is: in a folder, on the model hub, or in its cache. Known within seconds, network or not.

transformers would ask the hub again and again, for minutes, before it says that nobody answers. So the hub is asked
once here, first, for one small file, and with a limit on the time. Imports no torch.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from vlm2rec.errors import InputError
from vlm2rec.progress import notice

_SECONDS_TO_ANSWER = 5.0
_SECONDS_IN_ALL = 7.0  # names are looked up, and redirects followed, without any limit of their own


@dataclass(frozen=True)
class _Answer:
    """What the hub says of a name."""

    kind: Literal["there", "unknown", "refused", "no checkpoint", "no name", "offline", "unreachable"]
    detail: str = ""


def locate(name: str, key: str = "") -> str:
    """The folder of a checkpoint, or its name on the hub where the hub has it.

    Where the hub cannot be reached, a copy in its cache is taken, and one line says so.

    Args:
        name: a folder, or a name on the hub.
        key: of the configuration, for messages.

    Raises:
        InputError: it is neither in a folder nor to be had from the hub.
    """
    said = f"{key} = {name!r}" if key else name
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"{said}: holds no Hugging Face checkpoint (config.json is missing); give its folder")
        return str(folder)
    if folder.exists():
        raise InputError(f"{said}: is a file; give the folder of a Hugging Face checkpoint, or its name on the hub")
    if _looks_local(name):
        raise InputError(
            f"{said}: no such folder; give the folder of a Hugging Face checkpoint, or its name on the hub"
        )
    answer = _ask(name)
    if answer.kind == "there":
        return name
    if answer.kind in ("offline", "unreachable") and (cached := _cached(name)):
        if answer.kind == "unreachable":
            notice(f"{said}: the model hub {_endpoint()} cannot be reached ({answer.detail}); taken from its cache")
        return cached
    raise InputError(f"{said}: {_why(name, answer)}")


def shortened(error: BaseException, width: int = 200) -> str:
    """What an error says, on one line, cut between words."""
    text = " ".join(str(error).split())
    return text if len(text) <= width else f"{text[:width].rsplit(' ', 1)[0]} …"


def _looks_local(name: str) -> bool:
    """Whether a name can only be meant as a path: hub names are `model` or `owner/model`."""
    owner, slash, _ = name.partition("/")
    return (
        name.startswith(("/", ".", "~"))
        or name.count("/") > 1
        or "\\" in name
        or (bool(slash) and Path(owner).is_dir())
    )


def _why(name: str, answer: _Answer) -> str:
    hub = _endpoint()
    match answer.kind:
        case "unknown":
            return (
                f"neither a folder here nor a model on the hub {hub}; check the spelling, or log in with"
                " `hf auth login` if the model is private"
            )
        case "refused":
            return f"the hub does not give it to you; ask for access at {hub}/{name}, and log in with `hf auth login`"
        case "no checkpoint":
            return f"is on the hub {hub}, but holds no Hugging Face checkpoint (it has no config.json); take another"
        case "no name":
            return f"neither a folder here nor a name that a model can have on the hub ({answer.detail})"
        case "offline":
            return (
                "neither a folder here nor in the cache of the model hub, which HF_HUB_OFFLINE forbids to ask; give a"
                " folder, or unset HF_HUB_OFFLINE"
            )
    return (
        f"no such folder here, and the model hub {hub} cannot be reached ({answer.detail}); give a local folder, or"
        " check the network and HF_ENDPOINT"
    )


@lru_cache(maxsize=64)
def _ask(name: str) -> _Answer:
    """Ask the hub for the metadata of a model's `config.json`, once in a process."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    def ask() -> _Answer:
        try:
            get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=_SECONDS_TO_ANSWER)
        except errors.OfflineModeIsEnabled:
            return _Answer("offline")
        except errors.GatedRepoError:
            return _Answer("refused")
        except errors.RepositoryNotFoundError:
            return _Answer("unknown")
        except errors.EntryNotFoundError:
            return _Answer("no checkpoint")
        except errors.HFValidationError as error:
            return _Answer("no name", shortened(error, 120).rstrip("."))
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            if status == 401:  # the hub does not tell a private model from none
                return _Answer("unknown")
            return _Answer("refused") if status == 403 else _Answer("unreachable", f"it answers with status {status}")
        except Exception as error:  # of the HTTP client: which one it is differs between versions of the hub's package
            return _Answer("unreachable", shortened(error, 120).rstrip(".") or type(error).__name__)
        return _Answer("there")

    return _within(_SECONDS_IN_ALL, ask) or _Answer("unreachable", f"no answer within {_SECONDS_IN_ALL:g} s")


def _within(seconds: float, work: Callable[[], _Answer]) -> _Answer | None:
    """The outcome of `work`, or None where it takes longer; it is then left alone, in a thread that ends with us."""
    found: list[_Answer] = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def _cached(name: str) -> str | None:
    """The folder of a model in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return str(Path(found).parent) if isinstance(found, str) else None


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
