"""A real Chromium without a window, spoken to over its DevTools pipe; the standard library only."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)


class Tab:
    """One page: evaluate JavaScript, press keys, and see what it complained of or asked for."""

    def __init__(self, read, write):
        self._read, self._write, self._buffer, self._last = read, write, b"", 0
        self.events = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """One command of the DevTools protocol to this page."""
        return self._call(method, self._session, **params)

    def open(self, path, **look):
        """Load a file and wait until it is there."""
        self.visit(path.absolute().as_uri(), **look)

    def visit(self, url, width=1200, height=900, scheme="light", motion="no-preference"):
        """Load a page from its address and wait until it is there."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        features += [{"name": "prefers-reduced-motion", "value": motion}]
        self.call("Emulation.setEmulatedMedia", features=features)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.events.clear()
        self.call("Page.navigate", url=url)
        kind = url.partition(":")[0]
        self.wait(f"document.readyState === 'complete' && location.protocol === '{kind}:'")

    def evaluate(self, expression):
        """The value of a JavaScript expression; promises are waited for."""
        done = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, expression, seconds=20):
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    def press(self, key):
        """Press and release a key where the focus is."""
        for kind in ("keyDown", "keyUp"):
            code = {"ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "End": 35, "Tab": 9, " ": 32}[
                key
            ]
            typed = {"text": key} if key == " " and kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent",
                **{"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, **typed},
            )

    def key(self, kind, code):
        """Let a key go down ("keyDown") or up ("keyUp"); it is named by its place, such as KeyW."""
        key = {"Space": " "}.get(code, code.removeprefix("Key").lower())
        self.call("Input.dispatchKeyEvent", type=kind, code=code, key=key)

    def complaints(self):
        """Errors and warnings of the console, and exceptions."""
        logged = [e["params"] for e in self.events if e["method"] == "Log.entryAdded"]
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [entry["entry"]["text"] for entry in logged] + [
            str(e["params"]) for e in self.events if e["method"] in kinds
        ]

    def requests(self):
        """Addresses that were asked for, without those that lie in the page itself."""
        asked = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        urls = [e["params"]["request"]["url"] for e in asked]
        return [url for url in urls if not url.startswith("data:")]

    def screenshot(self, whole=False):
        """The page as a PNG's bytes."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        return base64.b64decode(shot["data"])

    def _call(self, method, session=None, **params):
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _next(self):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], 60)
            assert ready, "the browser does not answer"
            piece = os.read(self._read, 2**16)
            assert piece, "the browser has ended"
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@contextmanager
def browser(folder):
    """A tab of a new Chromium whose files lie in `folder`."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()

    places = f'exec "$@" 3<&{to_read} 4>&{from_write}'  # where it reads commands and answers
    process = subprocess.Popen(
        [
            *("bash", "-c", places, "bash", CHROMIUM, "--headless=new", "--no-sandbox"),
            *("--disable-gpu", "--mute-audio", "--remote-debugging-pipe", "--no-first-run"),
            *(f"--user-data-dir={folder}", "--disable-dev-shm-usage"),
            *("--disable-background-networking", "--autoplay-policy=no-user-gesture-required"),
        ],
        pass_fds=(to_read, from_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(from_write)
    try:
        yield Tab(from_read, to_write)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(from_read)
        os.close(to_write)
