"""A headless Chromium, driven through the pipe of its DevTools protocol: no driver and no network."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip

Json = dict[str, Any]


class Page:
    """One tab. ``events`` holds everything that it has reported, in order."""

    def __init__(self, commands: BinaryIO, answers: BinaryIO) -> None:
        self.commands, self.answers, self.numbers = commands, answers, count(1)
        self.events: list[Json] = []
        self.session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: object) -> Json:
        number = next(self.numbers)
        session = {"sessionId": self.session} if self.session else {}
        message = {"id": number, "method": method, "params": params, **session}
        self.commands.write(json.dumps(message).encode() + b"\0")
        self.commands.flush()
        while (answer := self._read()).get("id") != number:
            pass
        assert "error" not in answer, answer
        result: Json = answer["result"]
        return result

    def _read(self) -> Json:
        message: Json = json.loads(b"".join(iter(self._byte, b"\0")))
        if "method" in message:
            self.events.append(message)
        return message

    def _byte(self) -> bytes:
        byte = self.answers.read(1)
        assert byte, "the browser has gone"
        return byte

    def open(self, file: Path, *, width: int = 1280, phone: bool = False, dark: bool = False) -> None:
        """Loads a file in a window of ``width`` CSS pixels, until everything in it is there."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=844 if phone else 800,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self.events.clear()
        self.send("Page.navigate", url=file.resolve().as_uri())
        while not self.has_happened("Page.loadEventFired"):
            self._read()

    def has_happened(self, method: str) -> bool:
        return any(event["method"] == method for event in self.events)

    def value(self, expression: str) -> Any:  # noqa: ANN401
        """What a JavaScript expression evaluates to."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def click(self, selector: str) -> None:
        """A real click with the pointer, on the middle of the first element that the selector finds."""
        box = f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center', behavior: 'instant'}})"
        self.value(box)
        place = self.value(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def press(self, key: str, text: str = "") -> None:
        """A key, as it is called in the DOM; ``text`` is what it would write."""
        code = {"Tab": 9, "Enter": 13, " ": 32}[key]
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if text and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **extra)

    def screenshot(self, file: Path) -> None:
        """The whole page, also what has to be scrolled to."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        picture = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(picture["data"]))

    def complaints(self) -> list[Json]:
        """Everything that stands in the console, and exceptions that nobody caught."""
        self.value("0")  # whatever was under way has been reported now
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event for event in self.events if event["method"] in kinds]

    def requests(self) -> list[str]:
        """The addresses that were asked for."""
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]


@contextmanager
def chromium() -> Iterator[Page]:
    """Starts the browser, and ends it."""
    assert CHROMIUM is not None
    to_read, to_write = os.pipe(), os.pipe()  # the browser reads its descriptor 3 and writes to 4
    inherited = [os.dup2(to_read[0], 63), os.dup2(to_write[1], 64)]
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = f'exec "$0" "$@" --user-data-dir={profile} 3<&63 4>&64'
        browser = subprocess.Popen(
            ["bash", "-c", command, CHROMIUM, *FLAGS],
            pass_fds=inherited,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for descriptor in (*inherited, to_read[0], to_write[1]):
            os.close(descriptor)
        try:
            with os.fdopen(to_read[1], "wb") as commands, os.fdopen(to_write[0], "rb") as answers:
                yield Page(commands, answers)
        finally:
            browser.terminate()
            browser.wait(timeout=20)
