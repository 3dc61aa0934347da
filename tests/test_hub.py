"""Where a checkpoint is: said within seconds and in one sentence, whatever the hub or the network does.

Each case asks a hub of its own on this machine, in a process of its own: the hub's package reads its settings once.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vlm2rec.backbones.hub import locate, shortened
from vlm2rec.errors import InputError

ASK = """
import sys, time
import huggingface_hub
from vlm2rec.backbones.hub import locate
from vlm2rec.errors import InputError
began = time.monotonic()
try:
    print(locate({name!r}, "backbone.path"))
except InputError as error:
    print(error)
print(time.monotonic() - began)
assert "torch" not in sys.modules
"""
SECONDS = 10.0


def ask(endpoint: str, home: Path, name: str = "owner/model", **environment: str) -> tuple[str, str]:
    """What `locate` answers within ten seconds, and what is on standard error, with `endpoint` for the hub."""
    kept = {key: value for key, value in os.environ.items() if "proxy" not in key.lower() and not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", ASK.format(name=name)],
        env={**kept, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    *said, taken = done.stdout.splitlines()
    assert float(taken) < SECONDS and len(said) == 1
    return said[0], done.stderr


@contextmanager
def hub(status: int, code: str = "") -> Iterator[str]:
    """A hub that gives one answer to everything."""

    class Answers(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", '"abc"')
            self.send_header("Content-Length", "2")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def listener(treat: Callable[[socket.socket], None]) -> Iterator[str]:
    """A port that takes connections, and treats each as it is told to."""
    kept: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                kept.append(server.accept()[0])
            except OSError:
                return
            threading.Thread(target=treat, args=(kept[-1],), daemon=True).start()

    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    finally:
        for each in (server, *kept):
            each.close()


def silent(connection: socket.socket) -> None:
    """Never answers."""


def drips(connection: socket.socket) -> None:
    """Answers a byte at a time, so that no limit between two bytes is ever reached."""
    try:
        for byte in b"HTTP/1.1 200 OK\r\n" + b"X-Padding: much ado about nothing\r\n" * 100:
            connection.send(bytes([byte]))
            time.sleep(0.5)
    except OSError:
        return


def refused() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def check_unreachable(said: str, endpoint: str) -> None:
    assert said.startswith("backbone.path = 'owner/model': no such folder here, and the model hub")
    assert endpoint in said and "cannot be reached (" in said
    assert said.endswith("give a local folder, or check the network and HF_ENDPOINT"), said


@pytest.mark.parametrize("treat", [silent, drips])
def test_a_hub_that_does_not_answer(treat: Callable[[socket.socket], None], tmp_path: Path) -> None:
    with listener(treat) as endpoint:
        check_unreachable(ask(endpoint, tmp_path)[0], endpoint)


def test_a_hub_that_nobody_runs(tmp_path: Path) -> None:
    for endpoint in (refused(), "http://hub.invalid"):
        check_unreachable(ask(endpoint, tmp_path)[0], endpoint)


def test_a_hub_that_is_out_of_order(tmp_path: Path) -> None:
    with hub(503) as endpoint:
        said, _ = ask(endpoint, tmp_path)
        check_unreachable(said, endpoint)
    assert "status 503" in said


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (404, "RepoNotFound", "neither a folder here nor a model on the hub {}; check the spelling"),
        (401, "", "neither a folder here nor a model on the hub {}; check the spelling"),
        (401, "GatedRepo", "ask for access at {}/owner/model"),
        (403, "GatedRepo", "ask for access at {}/owner/model"),
        (403, "", "ask for access at {}/owner/model"),
        (404, "EntryNotFound", "it has no config.json"),
    ],
)
def test_a_model_that_the_hub_does_not_give(status: int, code: str, says: str, tmp_path: Path) -> None:
    with hub(status, code) as endpoint:
        said, _ = ask(endpoint, tmp_path)
        assert said.startswith("backbone.path = 'owner/model': ") and says.format(endpoint) in said


def test_a_model_that_the_hub_has(tmp_path: Path) -> None:
    with hub(200) as endpoint:
        assert ask(endpoint, tmp_path) == ("owner/model", "")


def cached(home: Path) -> Path:
    """The cache as the hub's package leaves it, with one file of owner/model."""
    model = home / "hub" / "models--owner--model"
    snapshot = model / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text("{}")
    return snapshot


def test_the_cache_serves_where_the_hub_cannot(tmp_path: Path) -> None:
    snapshot, endpoint = cached(tmp_path), refused()
    found, said = ask(endpoint, tmp_path)
    assert found == str(snapshot)
    assert said.count("\n") == 1 and "cannot be reached" in said and said.endswith("taken from its cache\n")
    assert ask(endpoint, tmp_path, HF_HUB_OFFLINE="1") == (str(snapshot), "")


def test_offline_without_a_copy(tmp_path: Path) -> None:
    with hub(200) as endpoint:
        said, _ = ask(endpoint, tmp_path, HF_HUB_OFFLINE="1")
    assert "nor in the cache" in said and said.endswith("give a folder, or unset HF_HUB_OFFLINE")


@pytest.mark.parametrize("name", ["/no/where", "./model", "~/model", "a/b/c", "beside/model"])
def test_a_path_is_not_looked_for_on_the_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside").mkdir()
    monkeypatch.setattr("vlm2rec.backbones.hub._ask", lambda name: pytest.fail("the hub was asked"))
    with pytest.raises(InputError, match="no such folder"):
        locate(name, "backbone.path")


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (folder := tmp_path / "model").mkdir()
    with pytest.raises(InputError, match=r"config\.json is missing"):
        locate(str(folder))
    (folder / "config.json").write_text("{}")
    assert locate(str(folder)) == locate("~/model") == str(folder)
    with pytest.raises(InputError, match="is a file"):
        locate(str(folder / "config.json"))


def test_no_name_at_all(tmp_path: Path) -> None:
    said, _ = ask(refused(), tmp_path, name="not a name!")
    assert "neither a folder here nor a name that a model can have" in said


def test_an_error_is_cut_between_words() -> None:
    assert shortened(ValueError("one\n two")) == "one two"
    assert shortened(ValueError("word " * 100), 12) == "word word …"
