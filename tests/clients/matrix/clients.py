"""Every client behind one interface: start it on a URL, read what it reports."""

import asyncio
import json
import os
import sys
import time
from pathlib import Path

from . import servers

HERE = Path(__file__).resolve().parents[1]
BUILT = Path(os.environ.get("SLUICE_CLIENTS", servers.ROOT / ".tools" / "clients"))
# Names that the cases publish or wait for: EventSource delivers a named event only to a listener of that name.
NAMES = [
    "order.created",
    "äöü 🙂",
    "channel.open",
    "channel.cursor",
    "channel.gap",
    "channel.invalid",
    "channel.degraded",
    "channel.recovered",
    "channel.close",
    "x",
    "y",
]


class Run:
    """One running client and what it has reported."""

    def __init__(self):
        self.reports = []
        self._changed = asyncio.Event()

    def report(self, line):
        line["at"] = time.monotonic()
        self.reports.append(line)
        self._changed.set()

    def events(self, own=False):
        """Events of publishers; with `own` those of the channel itself."""
        return [r for r in self.reports if r["t"] == "event" and r["event"].startswith("channel.") == own]

    def of(self, kind):
        return [r for r in self.reports if r["t"] == kind]

    async def until(self, what, test, limit=servers.SOON):
        """Waits until `test(self)` is true."""
        end = time.monotonic() + limit
        while not (answer := test(self)):
            self._changed.clear()
            left = end - time.monotonic()
            try:
                await asyncio.wait_for(self._changed.wait(), min(left, 0.5))
            except TimeoutError:
                if time.monotonic() >= end:
                    raise AssertionError(f"not within {limit:.0f} s: {what}; {self.tail()}") from None
        return answer

    def tail(self):
        """The last reports, short enough for a message."""
        told = [" ".join(str(v)[:60] for k, v in r.items() if k not in ("at",)) for r in self.reports[-4:]]
        return "last reports: " + ("; ".join(told) or "none")


class Process(Run):
    """A client in a process of its own."""

    def __init__(self, command):
        super().__init__()
        self._command = command

    async def __aenter__(self):
        self.process = await servers.spawn(
            *self._command,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=32 << 20,
            env=os.environ | {"NODE_NO_WARNINGS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        )
        self._tasks = [asyncio.create_task(self._out()), asyncio.create_task(self._err())]
        return self

    async def _out(self):
        while line := await self.process.stdout.readline():
            self.report(json.loads(line))
        self.report({"t": "exit"})

    async def _err(self):
        while line := await self.process.stderr.readline():
            self.report({"t": "stderr", "line": line.decode(errors="replace").rstrip()})

    async def __aexit__(self, *_):
        await servers.end(self.process, limit=2.0)
        for task in self._tasks:
            task.cancel()


class Client:
    """A client of the matrix: its name, where it runs, and whether it reconnects by itself."""

    def __init__(self, name, package, runtime, command=None, loop="own"):
        # `loop`: what reconnects: the client ("own"), or the application around a parser ("app").
        self.name, self.package, self.runtime, self.command, self.loop = name, package, runtime, command, loop
        self.row = (
            f"{name} ({runtime}{'' if loop == 'own' else ', loop of the application'})" if runtime != name else name
        )
        self.cors = {}

    def start(self, url):
        options = json.dumps({"client": self.package, "url": url, "names": NAMES})
        return Process([*self.command, options])


def all_clients():
    """The clients that run as processes; those in the browser are in browser.py."""
    node = ["node", HERE / "node" / "adapter.mjs"]
    python = [sys.executable, HERE / "python" / "adapter.py"]
    rust = [BUILT / "rust" / "debug" / "rust-adapter"]
    return [
        Client("curl", "curl", "curl", [sys.executable, HERE / "python" / "curl.py"], loop="app"),
        Client("eventsource", "eventsource", "node", node),
        Client("undici EventSource", "undici", "node", node),
        Client("eventsource-client", "eventsource-client", "node", node),
        Client("launchdarkly-eventsource", "launchdarkly-eventsource", "node", node),
        Client("extended-eventsource", "extended-eventsource", "node", node),
        Client("eventsource-parser", "eventsource-parser", "node", node, loop="app"),
        Client("httpx-sse", "httpx-sse", "python", python, loop="app"),
        Client("sseclient-py", "sseclient-py", "python", python, loop="app"),
        Client("requests-sse", "requests-sse", "python", python),
        Client("aiohttp-sse-client2", "aiohttp-sse-client2", "python", python),
        Client("launchdarkly-eventsource", "launchdarkly-eventsource", "python", python),
        Client("eventsource-client", "eventsource-client", "rust", rust),
        Client("sse-stream", "sse-stream", "rust", rust, loop="app"),
        Client("tmaxmax/go-sse", "go-sse", "go", [BUILT / "go-adapter"]),
    ]
