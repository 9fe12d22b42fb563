"""A headless Chromium for tests: the DevTools protocol over a pair of pipes, for which no package is needed."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """One tab. `complaints` gathers what the console said: errors, warnings and uncaught exceptions."""

    def __init__(self, read: Any, write: Any) -> None:
        self.read, self.write, self.numbers = read, write, itertools.count(1)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    session: str | None = None

    def call(self, method: str, **params: Any) -> Any:
        """The answer to one command; events that come before it are noted."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.write.write(json.dumps(message).encode() + b"\0")
        self.write.flush()
        while (answer := self._message()).get("id") != number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _message(self) -> dict[str, Any]:
        text = bytearray()
        while (letter := self.read.read(1)) != b"\0":
            if not letter:
                raise RuntimeError("Chromium is gone")
            text += letter
        return json.loads(text)

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        self.loaded = method == "Page.loadEventFired" or getattr(self, "loaded", False)
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(str(params["entry"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def open(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a file in a window of this size."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.loaded = False
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self.loaded:
            self._note(self._message())

    def value(self, script: str) -> Any:
        """What a JavaScript expression gives; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press and release a key."""
        text = {" ": " ", "Enter": "\r"}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code,
                      text=text if kind == "keyDown" else "")  # fmt: skip

    def picture(self, path: Path, height: int | None = None) -> None:
        """A PNG of the window, or of the page down to a height."""
        width = self.value("document.documentElement.clientWidth")
        clip = {"clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}} if height else {}
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=bool(height), **clip)
        path.write_bytes(base64.b64decode(answer["data"]))


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A page of a fresh Chromium, which ends with the block."""
    assert CHROMIUM
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()
    theirs = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 10) for number in (to_read, from_write)]

    def at_three_and_four() -> None:
        for place, number in zip((3, 4), theirs, strict=True):
            os.dup2(number, place)

    process = subprocess.Popen(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={profile}"],
        close_fds=False, preexec_fn=at_three_and_four, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for number in (*theirs, to_read, from_write):
        os.close(number)
    try:
        with os.fdopen(from_read, "rb") as read, os.fdopen(to_write, "wb") as write:
            yield Page(read, write)
    finally:
        process.kill()
        process.wait()
