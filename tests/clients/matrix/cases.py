"""The cases: what is done to a client, and what must come of it. Each `@case` function proves the cells that it names.

A function returns nothing and lays failures into `cells[...]` by `check`, so that one session can prove several cells.
"""

import asyncio
import base64
import json
import time
from contextlib import asynccontextmanager
from pathlib import Path

from .proxies import Proxy
from .sessions import Sessions
from .tap import Tap

# How long a client that has been told to stop is watched; longer than any client's default reconnection time (3 s).
FINAL = 4.5
# The channel's `retry:` where a case is about it: below every client's default (0.5 s and more).
RETRY = 250

CASES = []


def case(*cells):
    """Registers a function as the proof of these cells."""

    def register(function):
        CASES.append((cells, function))
        return function

    return register


class Cells(dict):
    """Failures by cell; a cell that is not in here passed."""

    def check(self, cell, true, message):
        if not true and cell not in self:
            self[cell] = message


@asynccontextmanager
async def session(fixture, client, query="", chop=0, targets=None, channel=None, **delivery):
    """A channel, a tap before it, and the client reading it live."""
    if channel is None:
        async with (
            fixture.channel(**{"retry": RETRY, "cors": client.cors, **delivery}) as channel,
            session(fixture, client, query, chop, targets, channel) as parts,
        ):
            yield parts
        return
    async with Tap(targets or [fixture.plane.http], chop) as tap, client.start(tap.url(channel.path + query)) as run:
        yield channel, tap, run


async def live(channel, plane=None):
    """The stream is open on the server's side: what is published from now on is delivered."""
    await channel.subscribed(1, plane)


def sequences(events):
    """The sequence of each event, from its id; an id that is no cursor counts as None."""

    def one(id):
        epoch, _, number = (id or "").partition("-")
        return int(number) if len(epoch) == 8 and number.isdigit() else None

    return [one(e["id"]) for e in events]


async def arrives(channel, run, cells, cell, expected):
    """Everything published arrives once, in order, under its own id; `expected` maps a stored event to its data."""
    wanted = [s.sequence for s in channel.stored]
    try:
        await run.until(f"{len(wanted)} events", lambda r: len(r.events()) >= len(wanted), 12)
    except AssertionError as error:
        cells.check(cell, False, str(error))
    got = run.events()
    cells.check(cell, sequences(got) == wanted, f"ids {sequences(got)}, published {wanted}")
    # Fewer or more may have come, which is told above.
    for event, stored in zip(got, channel.stored, strict=False):
        cells.check(
            cell, event["data"] == expected(stored), f"data {event['data'][:40]!r}, published {stored.payload[:40]!r}"
        )
        cells.check(
            cell, event["event"] == (stored.name or "message"), f"event {event['event']!r}, published {stored.name!r}"
        )


def as_text(stored):
    """What a text payload is on its way through an event stream: CRLF, CR and LF are line ends (WHATWG HTML 9.2.6)."""
    return stored.payload.decode().replace("\r\n", "\n").replace("\r", "\n")


def payload_table():
    """The payloads of vectors.json by case, and what is too large to be written down."""
    table = {}
    for vector in json.loads((Path(__file__).resolve().parents[1] / "vectors.json").read_text())["payloads"]:
        table.setdefault(vector["case"], []).append((vector["event"], vector["payload"]))
    return table | {"1 MiB": [("", "m" * (1 << 20)), ("", "after")]}


PAYLOADS = payload_table()


@case(*PAYLOADS)
async def payloads(fixture, client, cells):
    """One connection for each kind, since a client may fall over one of them."""

    async def kind(cell, events):
        async with session(fixture, client) as (channel, _, run):
            await live(channel)
            for name, payload in events:
                await channel.publish(payload, name)
            await arrives(channel, run, cells, cell, as_text)

    # In two halves: a client is a process or a page, and there are many at once.
    kinds = list(PAYLOADS.items())
    for half in (kinds[:5], kinds[5:]):
        await asyncio.gather(*(kind(*k) for k in half))


@case("emoji over chunk borders")
async def chunk_borders(fixture, client, cells):
    async with session(fixture, client, chop=5) as (channel, _, run):
        await live(channel)
        for text in ("é漢🙂👩‍👩‍👧" * 6, "a\n🙂\n\nb🙂", "x" * 40):
            await channel.publish(text, "äöü 🙂")
        await arrives(channel, run, cells, "emoji over chunk borders", as_text)


@case("base64 channel")
async def base64_channel(fixture, client, cells):
    async with session(fixture, client, encoding="Base64") as (channel, _, run):
        await live(channel)
        for payload in (bytes(range(256)), b"\0", b"", b"text"):
            await channel.publish(payload)
        await arrives(channel, run, cells, "base64 channel", lambda s: base64.b64encode(s.payload).decode())


@case("heartbeats unseen")
async def heartbeats(fixture, client, cells):
    """Heartbeats keep the stream alive and reach no application."""
    async with session(fixture, client, heartbeatMillis=200) as (channel, _, run):
        await live(channel)
        await channel.publish("before")
        await run.until("the first event", lambda r: r.events(), 12)
        await asyncio.sleep(1.5)
        await channel.publish("after")
        await arrives(channel, run, cells, "heartbeats unseen", as_text)


@case("resume", "retry honoured")
async def resume(fixture, client, cells):
    """The connection is reset three times while events go on: none is lost, none comes twice."""
    async with session(fixture, client) as (channel, tap, run):
        await live(channel)
        waits = []
        for round in range(3):
            for _ in range(3):
                await channel.publish(f"r{round}")
            try:
                await run.until("what was published", lambda r: len(r.events()) >= len(channel.stored), 12)
            except AssertionError as error:
                cells.check("resume", False, str(error))
                break
            seen, known, of_any = max(sequences(run.events())), len(tap.reads()), len(tap.requests)
            tap.cut()
            cut = time.monotonic()
            for _ in range(2):
                await channel.publish(f"away {round}")
            await run.until("a new request", lambda _, known=known: len(tap.reads()) > known, 12)
            # In a browser the first may be a preflight.
            waits.append(tap.requests[of_any].at - cut)
            cursor = tap.reads()[known].cursor
            cells.check("resume", cursor is not None, "reconnected without a cursor")
            cells.check(
                "resume", cursor is None or cursor.endswith(f"-{seen}"), f"reconnected with {cursor}, had seen {seen}"
            )
            await live(channel)
        if waits:
            told = ", ".join(f"{w * 1000:.0f}" for w in waits)
            # Half of it is the jitter that some clients document; a client that does not heed it needs 500 ms and more,
            # or none. The shortest wait counts: a busy machine only makes them longer.
            good = 0.45 * RETRY / 1000 <= min(waits) <= 0.45
            cells.check("retry honoured", good, f"retry: {RETRY}, came back after {told} ms")
        await arrives(channel, run, cells, "resume", as_text)


@asynccontextmanager
async def missed(fixture, channel, tap, payloads, purged_before):
    """Events are published and deleted while the client is cut off; within, it may come back."""
    tap.refusing = True
    tap.cut()
    for payload in payloads:
        await channel.publish(str(payload))
    await channel.purge(before=purged_before)
    # To one that has never seen them: the first may still have them in memory, and then nothing is missing.
    async with fixture.another(channel) as fresh:
        tap.targets, tap.refusing = [fresh.http], False
        yield


@case("gap seen")
async def gap(fixture, client, cells):
    """Events that the client has not seen are deleted while it is away: the application is told."""
    async with session(fixture, client) as (channel, tap, run):
        await live(channel)
        await channel.publish("1")
        await run.until("the first event", lambda r: r.events(), 12)
        async with missed(fixture, channel, tap, range(2, 9), purged_before=6):
            await run.until("events after the gap", lambda r: len(r.events()) >= 4)
            await asyncio.sleep(0.3)
        told = [e for e in run.events(own=True) if e["event"] == "channel.gap"]
        cells.check("gap seen", len(told) == 1, f"{len(told)} channel.gap events reached the application")
        data = json.loads(told[0]["data"]) if told else {}
        cells.check("gap seen", data.get("missed") == 4, f"the gap says {data}")
        cells.check("gap seen", sequences(run.events()) == [1, 6, 7, 8], f"ids {sequences(run.events())}")


@case("drain and return")
async def drain(fixture, client, cells):
    """Its data plane is stopped by SIGTERM while events go on; another one takes over."""
    async with (
        fixture.channel(retry=RETRY, cors=client.cors) as channel,
        fixture.another(channel) as first,
        session(fixture, client, targets=[first.http, fixture.plane.http], channel=channel) as (_, tap, run),
    ):
        await live(channel, first)
        await channel.publish("before")
        await run.until("the first event", lambda r: r.events(), 12)
        first.process.terminate()
        # As a Service does: a pod that stops gets no new connection.
        tap.targets = [fixture.plane.http, first.http]
        for i in range(20):
            await channel.publish(f"during {i}")
            await asyncio.sleep(0.1)
        await live(channel)
        await arrives(channel, run, cells, "drain and return", as_text)
        code = await asyncio.wait_for(first.process.wait(), 15)
        cells.check("drain and return", code == 0, f"the drained data plane ended with {code}")


async def stops(tap, run, cells, cell, since=0.0):
    """From now on no request comes, and the application has been told, after the moment `since`."""

    def told(run):
        return any(r["t"] in ("error", "close", "exit") and r["at"] >= since for r in run.reports)

    await run.until("the application is told", told, 10)
    known = len(tap.reads())
    await asyncio.sleep(FINAL)
    extra = len(tap.reads()) - known
    cells.check(cell, extra == 0, f"asked again {extra} times in {FINAL} s")


@case("404 final")
async def not_found(fixture, client, cells):
    async with Tap([fixture.plane.http]) as tap, client.start(tap.url("/channels/there-is-none")) as run:
        await run.until("a request", lambda _: tap.reads(), 15)
        await stops(tap, run, cells, "404 final")
        cells.check("404 final", 404 in tap.statuses, f"statuses {tap.statuses}")


@asynccontextmanager
async def signed_in(fixture, client):
    """A channel behind the nginx of docs/proxies.md that checks sessions: channel, sessions, a tap before it."""
    async with (
        fixture.channel(retry=RETRY, cors=client.cors) as channel,
        Sessions() as sessions,
        Proxy("nginx", "signed in", fixture.plane.http, sessions.address) as proxy,
        Tap([proxy.http]) as tap,
    ):
        yield channel, sessions, tap


@case("401 final")
async def unauthorized(fixture, client, cells):
    """No session is signed in."""
    async with signed_in(fixture, client) as (channel, sessions, tap):
        sessions.answer = 401
        async with client.start(tap.url(channel.path)) as run:
            await run.until("the answer 401", lambda _: 401 in tap.statuses, 15)
            await stops(tap, run, cells, "401 final", tap.answered[tap.statuses.index(401)])
            cells.check("401 final", not run.events(own=True) and not run.events(), f"events came: {run.tail()}")


@case("403 final")
async def forbidden(fixture, client, cells):
    """It reads; then the right to do so is taken away, and the connection breaks."""
    async with signed_in(fixture, client) as (channel, sessions, tap), client.start(tap.url(channel.path)) as run:
        await live(channel)
        await channel.publish("allowed")
        await run.until("the event", lambda r: r.events(), 12)
        sessions.answer = 403
        tap.cut()
        await run.until("the answer 403", lambda _: 403 in tap.statuses, 15)
        await stops(tap, run, cells, "403 final", tap.answered[tap.statuses.index(403)])
        await channel.publish("not allowed")
        cells.check(
            "403 final", [e["data"] for e in run.events()] == ["allowed"], f"events {[e['data'] for e in run.events()]}"
        )
        await channel.subscribed(0)


@case("204 stops")
async def removed(fixture, client, cells):
    """The channel is removed: the stream ends, and the answer to the next request is 204."""
    async with session(fixture, client) as (channel, tap, run):
        await live(channel)
        await channel.publish("1")
        await run.until("the first event", lambda r: r.events(), 12)
        channel.remove()
        await run.until("the answer 204", lambda _: 204 in tap.statuses, 20)
        # One round trip for the client to take it in.
        await asyncio.sleep(0.2)
        await stops(tap, run, cells, "204 stops")


@case("overload")
async def overload(fixture, client, cells):
    """The data plane has no slot: the client is sent away, comes back, and gets everything once there is one."""
    async with fixture.channel(retry=RETRY, cors=client.cors, maxConnections=1) as channel:
        _, holder = await asyncio.open_connection(*fixture.plane.http)
        holder.write(f"GET {channel.path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        try:
            await live(channel)
            async with session(fixture, client, channel=channel) as (_, tap, run):
                await run.until("a second try", lambda _: len(tap.reads()) >= 2, 15)
                await channel.publish("while it was full")
                holder.close()
                known = len(tap.reads())
                await run.until("a try after that", lambda _: len(tap.reads()) > known, 15)
                await live(channel)
                await channel.publish("after")
                await arrives(channel, run, cells, "overload", as_text)
        finally:
            holder.close()


@case("filter")
async def topics(fixture, client, cells):
    async with session(fixture, client, "?topic=orders.*&topic=stock.%3E") as (channel, _, run):
        await live(channel)
        for topic in ("orders.eu", "orders", "users.eu", "stock.a.b", "orders.eu.x"):
            await channel.publish(topic, topic=topic)
        await channel.publish("end", topic="orders.end")
        await run.until("the last event", lambda r: len(r.events()) >= 3, 12)
        got = [e["data"] for e in run.events()]
        cells.check("filter", got == ["orders.eu", "stock.a.b", "end"], f"got {got}")


@case("envelope=json")
async def envelope(fixture, client, cells):
    async with session(fixture, client, "?envelope=json") as (channel, _, run):
        await live(channel)
        stored = await channel.publish("a\r\nb 🙂", "order.created", topic="orders.eu")
        await run.until("the event", lambda r: r.events(), 12)
        event = run.events()[0]
        data = json.loads(event["data"])
        cells.check(
            "envelope=json",
            (data["topic"], data["data"], data["id"]) == ("orders.eu", "a\r\nb 🙂", event["id"]),
            f"data {data}",
        )
        cells.check(
            "envelope=json",
            sequences([event]) == [stored.sequence] and event["event"] == "order.created",
            f"event {event}",
        )
