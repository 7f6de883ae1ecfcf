"""Firefox as it is installed, driven over WebDriver BiDi: Playwright drives only a patched one that it downloads."""

import asyncio
import json
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from tornado.websocket import WebSocketClientConnection, websocket_connect

PATIENCE = 180  # seconds
QUIET = {
    "app.normandy.enabled": False,
    "app.update.disabledForTesting": True,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "toolkit.telemetry.reportingpolicy.firstRun": False,
}
"""Preferences: no connections of the browser's own, no first-run pages."""

KEYS = {"ArrowLeft": "\ue012", "ArrowUp": "\ue013", "ArrowRight": "\ue014", "ArrowDown": "\ue015"}
KEYS |= {"Enter": "\ue007", "Space": " "}
HERE = ("file:", "data:", "http://127.0.0.1:")
"""How addresses of the book begin, from disk or from the tests' own server."""

EVENTS = ["log.entryAdded", "network.beforeRequestSent", "network.fetchError"]


class Firefox:
    """A headless Firefox with a fresh profile in the folder `profile`."""

    def __init__(self, program: str, profile: Path) -> None:
        preferences = (f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in QUIET.items())
        (profile / "user.js").write_text("".join(preferences))
        command = [program, "--headless", "--no-remote", "--remote-debugging-port=0", "--profile", str(profile)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.hung = False  # whether it once gave no answer
        # Playwright's loop runs in the thread of the tests
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._socket: WebSocketClientConnection = self._wait(websocket_connect, self._address(profile))
        self._count = 0
        self._events: list[dict[str, Any]] = []
        self.send("session.new", capabilities={})
        self.send("session.subscribe", events=EVENTS)

    def _address(self, profile: Path) -> str:
        """Where it listens: it writes a file that says so."""
        path, until = profile / "WebDriverBiDiServer.json", time.monotonic() + PATIENCE
        while time.monotonic() < until and self._process.poll() is None:
            if path.exists() and (text := path.read_text()):
                told = json.loads(text)
                return f"ws://{told['ws_host']}:{told['ws_port']}/session"
            time.sleep(0.1)
        raise TimeoutError(f"Firefox did not come up; exit status {self._process.poll()}")

    def _wait(self, function: Any, *given: Any) -> Any:
        async def call() -> Any:
            return await function(*given)

        try:
            return asyncio.run_coroutine_threadsafe(call(), self._loop).result(PATIENCE)
        except TimeoutError:
            self.hung = True
            raise

    def send(self, method: str, **given: Any) -> dict[str, Any]:
        """A command's result. Raises RuntimeError where Firefox refuses it."""
        self._count += 1
        told = self._wait(self._asked, {"id": self._count, "method": method, "params": given})
        if told["type"] == "error":
            raise RuntimeError(f"{method}: {told['message']}")
        return told["result"]

    async def _asked(self, message: dict[str, Any]) -> dict[str, Any]:
        await self._socket.write_message(json.dumps(message))
        while (told := json.loads(await self._socket.read_message())).get("id") != message["id"]:
            self._events.append(told)
        return told

    def events(self, context: str) -> list[dict[str, Any]]:
        """What was reported so far of a tab: events with their "method" and "params"."""
        self.send("session.status")  # what was reported before its answer has been read then
        return [event for event in self._events if _context(event["params"]) == context]

    def close(self) -> None:
        """End it."""
        self._process.kill() if self.hung else self._process.terminate()
        self._process.wait(30)
        self._loop.call_soon_threadsafe(self._loop.stop)


def _context(params: dict[str, Any]) -> str | None:
    return params.get("context") or params.get("source", {}).get("context")


class FirefoxPage:
    """A tab of Firefox with a page open in it: what `browsing.ChromiumPage` is for Chromium."""

    def __init__(self, firefox: Firefox, address: str, width: int, height: int, mode: str) -> None:
        self._firefox = firefox
        self._tab = firefox.send("browsingContext.create", type="tab")["context"]
        size = {"width": width, "height": height}
        firefox.send("browsingContext.setViewport", context=self._tab, viewport=size)
        themed = f"""() => {{
            if (!/^(file|http):/.test(location.href)) return; // the empty page before may store nothing
            for (const key of ["mode", "theme"]) localStorage.setItem(key, "{mode}");
        }}"""
        firefox.send("script.addPreloadScript", functionDeclaration=themed, contexts=[self._tab])
        firefox.send("browsingContext.navigate", context=self._tab, url=address, wait="complete")

    def evaluate(self, script: str, given: Any = None) -> Any:
        """The value of an expression, or of a function of `given`; a promise's value once it is there."""
        function = f"""async (given) => {{
            const script = ({script});
            const value = await (typeof script === "function" ? script(JSON.parse(given)) : script);
            return JSON.stringify(value ?? null);
        }}"""
        told = self._firefox.send(
            "script.callFunction",
            functionDeclaration=function,
            arguments=[{"type": "string", "value": json.dumps(given)}],
            target={"context": self._tab},
            awaitPromise=True,
        )
        if told["type"] == "exception":
            raise RuntimeError(told["exceptionDetails"]["text"])
        return json.loads(told["result"]["value"])

    def press(self, key: str) -> None:
        """Press a key by its name in the DOM."""
        self._act("key", {}, [{"type": kind, "value": KEYS[key]} for kind in ("keyDown", "keyUp")])

    def stroke(self, points: list[tuple[float, float]], kind: str) -> None:
        """Press the "mouse", or put a finger down ("touch"), at the first point; move over the others; let go."""
        first, *moves = ({"type": "pointerMove", "x": round(x), "y": round(y)} for x, y in points)
        down, up = ({"type": what, "button": 0} for what in ("pointerDown", "pointerUp"))
        self._act("pointer", {"parameters": {"pointerType": kind}}, [first, down, *moves, up])

    def _act(self, kind: str, more: dict[str, Any], actions: list[dict[str, Any]]) -> None:
        device = {"type": kind, "id": f"{kind} {more}", "actions": actions} | more
        self._firefox.send("input.performActions", context=self._tab, actions=[device])

    @property
    def wrong(self) -> list[str]:
        """Errors so far, and requests that left the book or failed."""
        found = []
        for event in self._firefox.events(self._tab):
            method, told = event["method"], event["params"]
            if method == "log.entryAdded" and told["level"] == "error":
                found.append(f"{told['type']}: {told['text']}")
            elif method == "network.fetchError":
                found.append(f"failed: {told['request']['url']}")
            elif method == "network.beforeRequestSent" and not told["request"]["url"].startswith(HERE):
                found.append(f"outside: {told['request']['url']}")
        return found

    def close(self) -> None:
        """Close the tab."""
        self._firefox.send("browsingContext.close", context=self._tab)
