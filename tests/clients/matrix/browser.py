"""Headless Chromium: the clients that live in a page, and what only a browser does."""

import asyncio
import http.server
import shutil
import threading
from pathlib import Path

from playwright.async_api import async_playwright

from . import cases, servers
from .cases import FINAL, RETRY, arrives, as_text, live
from .clients import NAMES, Run
from .proxies import NO_CHANNEL
from .sessions import COOKIE
from .tap import Tap

HERE = Path(__file__).resolve().parents[1]
CLIENTS = [
    "EventSource",
    "fetch",
    "@microsoft/fetch-event-source",
    "event-source-polyfill",
    "reconnecting-eventsource",
    "extended-eventsource",
    "sse.js",
]


class Browser:
    """One Chromium, and an origin whose pages hold the bundled clients."""

    async def __aenter__(self):
        bundle = servers.ROOT / ".tools" / "clients" / "page.js"
        build = await servers.spawn(
            HERE / "node" / "node_modules" / ".bin" / "esbuild",
            HERE / "node" / "page.mjs",
            "--bundle",
            "--log-level=error",
            "--target=chrome120",
            f"--outfile={bundle}",
        )
        if await asyncio.wait_for(build.wait(), 60):
            raise AssertionError("the page was not bundled; the error is above")
        # What the origin serves, by path; a case may add to it.
        self.pages = pages = {
            "/": (b"<!doctype html><meta charset=utf-8><title>page</title><script src=page.js></script>", "text/html"),
            "/page.js": (bundle.read_bytes(), "text/javascript"),
        }

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                body, kind = pages.get(self.path, (b"", "text/plain"))
                self.send_response(200 if body else 404)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        self._playwright = await async_playwright().start()
        executable = shutil.which("chromium") or shutil.which("google-chrome")
        if executable is None:
            raise AssertionError("no chromium on PATH: install Debian's package `chromium`")
        # No sandbox: it needs privileges that a test run in a container has not; the pages are our own.
        self.chromium = await self._playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        return self

    async def __aexit__(self, *_):
        await self.chromium.close()
        await self._playwright.stop()
        self._server.shutdown()


class Page(Run):
    """A page of its own context that runs one client."""

    def __init__(self, browser, client, url, cookies=(), context=None, start=None):
        super().__init__()
        self._browser, self._client, self._url, self._cookies = browser, client, url, list(cookies)
        self._given, self._start = context, start or "sluice.start"

    async def __aenter__(self):
        self.context = self._given or await self._browser.chromium.new_context()
        if self._cookies:
            await self.context.add_cookies(self._cookies)
        self.page = await self.context.new_page()
        await self.page.expose_function("report", self.report)
        self.page.on("pageerror", lambda error: self.report({"t": "stderr", "line": str(error)}))
        await self.page.goto(self._browser.origin)
        await self.run()
        return self

    async def run(self):
        call = (
            "([url, names]) => sluice.reloadProof(url, names)"
            if self._start == "reloadProof"
            else "([url, names, client]) => sluice.start(client, url, names)"
        )
        # The call is not awaited in the page: some clients return a promise that lasts as long as the stream.
        await self.page.evaluate(f"(a) => {{ ({call})(a); }}", [self._url, NAMES, self._client])

    async def __aexit__(self, *_):
        await self.page.close()
        if self._given is None:
            await self.context.close()


class BrowserClient:
    """A client of the matrix that runs in a page of another origin than the channel's."""

    def __init__(self, browser, name):
        self.browser, self.name = browser, name
        self.row = f"{name} (Chromium{', loop of the application' if name == 'fetch' else ''})"
        self.cors = {"allowedOrigins": [browser.origin]}

    def start(self, url):
        return Page(self.browser, self.name, url)


FACTS = []


def fact(cell):
    """Registers a case that only a browser has."""

    def register(function):
        FACTS.append((cell, function))
        return function

    return register


def native(browser):
    return BrowserClient(browser, "EventSource")


async def reset_three_times(channel, tap, run):
    """Three events, and after each the connection is reset; the client comes back each time."""
    for round in range(3):
        await live(channel)
        await channel.publish(str(round))
        await run.until("the event", lambda r, round=round: len(r.events()) > round)
        tap.cut()
        await run.until("it comes back", lambda _, round=round: len(tap.reads()) == round + 2)


@fact("no preflight on reconnect")
async def no_preflight(fixture, browser, cells, cell):
    """A plain EventSource of another origin, reset three times: its own Last-Event-ID, and never a preflight."""
    async with cases.session(fixture, native(browser)) as (channel, tap, run):
        await reset_three_times(channel, tap, run)
        cells.check(
            cell, [r.method for r in tap.requests] == ["GET"] * 4, f"requests {[r.method for r in tap.requests]}"
        )
        last = [r.headers.get("last-event-id", "") for r in tap.reads()]
        cells.check(
            cell, last[0] == "" and [i.partition("-")[2] for i in last[1:]] == ["1", "2", "3"], f"Last-Event-ID {last}"
        )
        cells.check(
            cell,
            all(r.headers.get("origin") == browser.origin for r in tap.reads()),
            "a request without Origin: not cross-origin",
        )


@fact("one preflight for fetch with a cursor")
async def one_preflight(fixture, browser, cells, cell):
    """A header set by a script is not safelisted: one preflight, remembered as Access-Control-Max-Age says."""
    async with cases.session(fixture, BrowserClient(browser, "fetch")) as (channel, tap, run):
        await reset_three_times(channel, tap, run)
        preflights = sum(r.method == "OPTIONS" for r in tap.requests)
        cells.check(cell, preflights == 1, f"{preflights} preflights in {[r.method for r in tap.requests]}")


def cookie(tap):
    return [{"name": "session", "value": COOKIE.partition("=")[2], "url": f"http://{tap.address[0]}"}]


@fact("credentials")
async def credentials(fixture, browser, cells, cell):
    """withCredentials: the cookie is sent, and the answer is readable only where the channel allows credentials."""
    for allowed in (True, False):
        async with (
            fixture.channel(
                retry=RETRY, cors={"allowedOrigins": [browser.origin], "allowCredentials": allowed}
            ) as channel,
            Tap([fixture.plane.http]) as tap,
            Page(browser, "EventSource with credentials", tap.url(channel.path), cookie(tap)) as run,
        ):
            await run.until("an answer", lambda r: r.of("open") or r.of("error"))
            cells.check(
                cell, tap.reads()[0].headers.get("cookie") == COOKIE, f"Cookie {tap.reads()[0].headers.get('cookie')}"
            )
            cells.check(cell, bool(run.of("open")) == allowed, f"allowCredentials {allowed}: {run.tail()}")
            if allowed:
                await live(channel)
                await channel.publish("x")
                await arrives(channel, run, cells, cell, as_text)


@fact("signed in by a cookie, through nginx")
async def signed_in(fixture, browser, cells, cell):
    """The session's cookie opens the stream; without it the answer is 401.

    When the session ends, a reconnection is refused for good.
    """
    client = BrowserClient(browser, "EventSource with credentials")
    client.cors["allowCredentials"] = True
    async with cases.signed_in(fixture, client) as (channel, sessions, tap):
        sessions.by_cookie()
        async with client.start(tap.url(channel.path)) as stranger:
            await stranger.until("it is stopped", lambda r: r.of("close"))
        cells.check(cell, tap.statuses == [401], f"statuses without a cookie {tap.statuses}")
        async with Page(browser, client.name, tap.url(channel.path), cookie(tap)) as run:
            await live(channel)
            await channel.publish("for those who are signed in")
            await arrives(channel, run, cells, cell, as_text)
            sessions.answer = 401
            tap.cut()
            await run.until("it is stopped", lambda r: r.of("close"))
            known = len(tap.requests)
            await asyncio.sleep(FINAL)
            cells.check(cell, len(tap.requests) == known, f"asked again {len(tap.requests) - known} times")
        cells.check(cell, set(sessions.asked) == {NO_CHANNEL, channel.path}, f"asked for {set(sessions.asked)}")


@fact("foreign origin refused")
async def foreign(fixture, browser, cells, cell):
    async with (
        fixture.channel(retry=RETRY, cors={"allowedOrigins": ["https://shop.example"]}) as channel,
        Tap([fixture.plane.http]) as tap,
        Page(browser, "EventSource", tap.url(channel.path)) as run,
    ):
        await run.until("an error", lambda r: r.of("error"))
        cells.check(cell, not run.of("open"), "the page could read a channel that does not allow its origin")


@fact("server killed")
async def killed(fixture, browser, cells, cell):
    """SIGKILL, no goodbye; another data plane takes over."""
    async with (
        fixture.channel(retry=RETRY, cors=native(browser).cors) as channel,
        fixture.another(channel) as first,
        cases.session(fixture, native(browser), channel=channel, targets=[first.http, fixture.plane.http]) as parts,
    ):
        _, _, run = parts
        await live(channel, first)
        await channel.publish("1")
        await run.until("the event", lambda r: r.events())
        first.process.kill()
        for i in range(5):
            await channel.publish(str(i))
        await live(channel)
        await channel.publish("after")
        await arrives(channel, run, cells, cell, as_text)


@fact("reload keeps the cursor")
async def reload(fixture, browser, cells, cell):
    """A page that keeps its cursor in sessionStorage misses nothing over its reload; the old stream's slot is freed."""
    async with (
        fixture.channel(retry=RETRY, cors=native(browser).cors) as channel,
        Tap([fixture.plane.http]) as tap,
        Page(browser, "", tap.url(channel.path), start="reloadProof") as run,
    ):
        await live(channel)
        await channel.publish("before")
        await run.until("the event", lambda r: r.events())
        await run.page.goto("about:blank")
        await channel.subscribed(0)
        await channel.publish("while away")
        await run.page.goto(browser.origin)
        await run.run()
        await live(channel)
        await channel.publish("after")
        await arrives(channel, run, cells, cell, as_text)
        cells.check(cell, len(tap.requests) == 2, f"requests {[(r.method, r.target) for r in tap.requests]}")


@fact("two tabs")
async def tabs(fixture, browser, cells, cell):
    """Two tabs of one browser: each has its own stream and gets everything; closing one leaves the other alone."""
    context = await browser.chromium.new_context()
    async with (
        fixture.channel(retry=RETRY, cors=native(browser).cors) as channel,
        Tap([fixture.plane.http]) as tap,
        Page(browser, "EventSource", tap.url(channel.path), context=context) as one,
    ):
        async with Page(browser, "EventSource", tap.url(channel.path), context=context) as two:
            await channel.subscribed(2)
            for i in range(5):
                await channel.publish(str(i))
            await arrives(channel, one, cells, cell, as_text)
            await arrives(channel, two, cells, cell, as_text)
        await channel.subscribed(1)
        await channel.publish("last")
        await arrives(channel, one, cells, cell, as_text)
    await context.close()


@fact("sleep and wake")
async def sleep(fixture, browser, cells, cell):
    """Nothing passes for a while and nothing is closed.

    The server gives the slot back after `writeTimeout`; on waking, nothing is missing.
    """
    async with cases.session(fixture, native(browser), writeTimeoutMillis=1500, heartbeatMillis=500) as (
        channel,
        tap,
        run,
    ):
        await live(channel)
        await channel.publish("before")
        await run.until("the event", lambda r: r.events())
        tap.silence(True)
        # More than the sockets' buffers take, so that the server is blocked in writing.
        for i in range(24):
            await channel.publish(f"{i} " + "z" * (1 << 19))
        await channel.subscribed(0)
        tap.silence(False)
        await live(channel)
        await channel.publish("awake")
        await arrives(channel, run, cells, cell, as_text)
        cells.check(cell, len(tap.reads()) >= 2, "it never reconnected")


@fact("204 and 404 close it for good")
async def closed(fixture, browser, cells, cell):
    """readyState is CLOSED and the page is told, as the standard has it."""
    async with Tap([fixture.plane.http]) as tap, Page(browser, "EventSource", tap.url("/channels/none")) as run:
        await run.until("it closes", lambda r: r.of("close"))
        await asyncio.sleep(FINAL)
        cells.check(cell, len(tap.reads()) == 1, f"{len(tap.reads())} requests")


async def browser_facts(fixture, browser, matrix, only):
    """The facts, one after the other: they share one browser and are about time."""
    for cell, function in FACTS:
        if not only.search(f"EventSource × {cell}"):
            continue
        failures = cases.Cells()
        try:
            async with asyncio.timeout(90):
                await function(fixture, browser, failures, cell)
        except Exception as error:  # whatever went wrong is the failure of the fact
            failures.check(cell, False, f"{type(error).__name__}: {error}")
        matrix.put(cell, "Chromium", failures.get(cell))
