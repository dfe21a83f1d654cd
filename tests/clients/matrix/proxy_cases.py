"""What a stream must survive on its way through a proxy."""

import asyncio
import time

import aiohttp
import h2.config
import h2.connection
import h2.events
import h2.settings

from .cases import RETRY, Cells, arrives, as_text
from .clients import Run
from .proxies import Proxy, client_tls
from .servers import SOON, eventually
from .sse import Event, Parser, Retry
from .tap import Tap

KINDS = ["nginx", "HAProxy", "Caddy", "Traefik", "Envoy"]
VARIANTS = ["defaults", "defaults, compression on", "as documented", "as documented, compression on"]
COLUMNS = [
    "first event < 1 s",
    "no buffering",
    "cursor passes",
    "client gone",
    "100 streams, one stalled",
    "drain",
    "no pod",
    "idle 90 s",
]
# A client that has gone is noticed by the next write at the latest: the heartbeat (15 s).
GONE = 18.0
IDLE = 90.0


class Source(Run):
    """An EventSource as the standard has it (9.2.3), with a browser's headers.

    The first answer that is no stream ends it for good.
    """

    def __init__(self, address, path):
        super().__init__()
        self._url = f"http://{address[0]}:{address[1]}{path}"

    async def __aenter__(self):
        # Offers no br or zstd, which it could not read.
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, connect=10),
            connector=aiohttp.TCPConnector(force_close=True),
            auto_decompress=True,
            headers={"Accept": "text/event-stream", "Cache-Control": "no-cache", "Accept-Encoding": "gzip, deflate"},
        )
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._session.close()

    async def _read(self):
        cursor, retry = "", 3000
        while True:
            try:
                async with self._session.get(
                    self._url, headers={"Last-Event-ID": cursor} if cursor else {}
                ) as response:
                    if response.status != 200 or response.content_type != "text/event-stream":
                        return self.report(
                            {"t": "close", "message": f"status {response.status} {response.content_type}"}
                        )
                    self.report({"t": "open", "encoding": response.headers.get("Content-Encoding", "")})
                    parser = Parser()
                    async for data in response.content.iter_any():
                        for item in parser.push(data):
                            if isinstance(item, Retry):
                                retry = item.millis
                            elif isinstance(item, Event):
                                cursor = item.last_event_id or cursor
                                self.report(
                                    {"t": "event", "id": item.last_event_id, "event": item.name, "data": item.data}
                                )
            except aiohttp.ClientError as error:
                self.report({"t": "error", "message": repr(error)})
            await asyncio.sleep(retry / 1000)


async def prompt(fixture, proxy, _tap, cells):
    """The first event, and then each of a slow series, arrives within a second of its publication."""
    async with fixture.channel(retry=RETRY) as channel, Source(proxy.http, channel.path) as run:
        await channel.subscribed(1)
        for i in range(8):
            begun = time.monotonic()
            await channel.publish(f"small {i}")
            cell = COLUMNS[0] if i == 0 else COLUMNS[1]
            try:
                await run.until(f"event {i}", lambda r, i=i: len(r.events()) > i, 10)
            except AssertionError as error:
                cells.check(cell, False, str(error))
                cells.check(COLUMNS[1], False, str(error))
                return
            took = run.events()[i]["at"] - begun
            cells.check(cell, took < 1, f"event {i} took {took:.2f} s")
            await asyncio.sleep(0.1)
        told = run.of("open")[0]["encoding"]
        cells.note(COLUMNS[1], f"Content-Encoding: {told}" if told else "")


async def cursor_passes(fixture, proxy, tap, cells):
    """The connection is reset at the proxy's back; the client resumes through the proxy with its cursor."""
    async with fixture.channel(retry=RETRY) as channel:
        for i in range(3):
            await channel.publish(str(i))
        async with Source(proxy.http, f"{channel.path}?from=earliest") as run:
            await run.until("the replay", lambda r: len(r.events()) == 3, 10)
            async with aiohttp.ClientSession() as session:
                head = await session.head(f"http://{proxy.http[0]}:{proxy.http[1]}{channel.path}")
                cursor = head.headers.get("Event-Cursor", "")
            cells.check(COLUMNS[2], cursor.endswith("-3"), f"HEAD says Event-Cursor {cursor!r}")
            tap.cut_those(channel.path)
            await channel.publish("while away")
            await arrives(channel, run, cells, COLUMNS[2], as_text)
            cursors = [r.cursor for r in tap.reads() if r.target.startswith(channel.path)]
            cells.check(
                COLUMNS[2],
                len(cursors) >= 2 and cursors[-1] == cursor,
                f"cursors that reached the data plane: {cursors}",
            )


async def client_gone(fixture, proxy, _tap, cells):
    """The client closes its connection on a channel without events: the slot is freed."""
    async with fixture.channel() as channel:
        async with Source(proxy.http, channel.path):
            await channel.subscribed(1)
        begun = time.monotonic()
        await channel.subscribed(0, limit=GONE)
    cells.note(COLUMNS[3], f"{time.monotonic() - begun:.1f} s")


async def many_streams(fixture, proxy, _tap, cells):
    """One HTTP/2 connection with 100 streams, of which one is not read: the other 99 get everything, promptly."""
    async with fixture.channel(retry=RETRY, writeTimeoutMillis=60_000) as channel:
        await many_streams_on(channel, proxy, cells)


async def many_streams_on(channel, proxy, cells):
    """[`many_streams`] on a channel."""
    cell, count, events = COLUMNS[4], 100, 60
    reader, writer = await asyncio.open_connection(*proxy.tls, ssl=client_tls(), server_hostname="localhost")
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    connection.initiate_connection()
    connection.increment_flow_control_window(1 << 24)
    streams, statuses, got = {}, {}, {}
    stalled = None

    def open_streams():
        room = connection.remote_settings.max_concurrent_streams
        cells.check(cell, room >= count, f"the proxy allows {room} streams on a connection")
        for _ in range(min(count, room)):
            stream = connection.get_next_available_stream_id()
            connection.send_headers(
                stream,
                [
                    (":method", "GET"),
                    (":scheme", "https"),
                    (":authority", "localhost"),
                    (":path", channel.path),
                    ("accept", "text/event-stream"),
                ],
                end_stream=True,
            )
            streams[stream], got[stream] = Parser(), []

    async def read():
        while data := await reader.read(1 << 18):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RemoteSettingsChanged) and not streams:
                    open_streams()
                elif isinstance(event, h2.events.ResponseReceived):
                    statuses[event.stream_id] = dict(event.headers)[":status"]
                elif isinstance(event, h2.events.DataReceived):
                    got[event.stream_id] += [
                        i
                        for i in streams[event.stream_id].push(event.data)
                        if isinstance(i, Event) and not i.name.startswith("channel.")
                    ]
                    # The connection's window is given back for all, the stream's own for all but one.
                    if event.flow_controlled_length:
                        connection.increment_flow_control_window(event.flow_controlled_length)
                        if event.stream_id != stalled:
                            connection.increment_flow_control_window(event.flow_controlled_length, event.stream_id)
            writer.write(connection.data_to_send())
            await writer.drain()

    writer.write(connection.data_to_send())
    reading = asyncio.create_task(read())
    try:
        await channel.subscribed(count)
        stalled = min(streams)
        begun = time.monotonic()
        for i in range(events):
            await channel.publish(f"{i:04} " + "x" * 3000)
        others = [s for s in streams if s != stalled]

        async def complete():
            return all(len(got[s]) >= events for s in others)

        try:
            await eventually("99 streams have everything", complete, 40)
        except AssertionError:
            short = sorted(len(got[s]) for s in others)
            cells.check(
                cell,
                False,
                f"of {events} events the 99 streams had {short[0]} to {short[-1]}, the stalled one {len(got[stalled])}",
            )
            return
        cells.note(cell, f"{time.monotonic() - begun:.1f} s")
        cells.check(cell, set(statuses.values()) == {"200"}, f"statuses {set(statuses.values())}")
        cells.check(cell, len(got[stalled]) < events, "the stalled stream was not stalled: its window held everything")
        for s in others:
            cells.check(
                cell,
                [int(e.data[:4]) for e in got[s]] == list(range(events)),
                "a stream with another order, or a repetition",
            )
        # It is read again, and has missed nothing.
        waiting, held = stalled, connection.remote_flow_control_window(stalled)
        stalled = None
        connection.increment_flow_control_window(1 << 20, waiting)
        writer.write(connection.data_to_send())

        async def caught_up():
            return len(got[waiting]) >= events

        await eventually(f"the stalled stream catches up (window {held})", caught_up, 30)
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        writer.close()


async def drain_and_no_pod(fixture, proxy, tap, cells):
    """A data plane drains behind the proxy; later none is there for a while. Ten clients come back each time."""
    async with (
        fixture.channel(retry=RETRY) as channel,
        fixture.another(channel, "--drain-delay", "300ms", "--drain-period", "1500ms") as first,
    ):
        await drain_and_no_pod_on(fixture, proxy, tap, cells, channel, first)


async def drain_and_no_pod_on(fixture, proxy, tap, cells, channel, first):
    """[`drain_and_no_pod`] with a data plane of its own."""
    tap.targets = [first.http]
    # The proxy may keep a connection to the other one, from when it was asked whether it is ready.
    tap.cut()
    runs = [Source(proxy.http, channel.path) for _ in range(10)]
    try:
        for run in runs:
            await run.__aenter__()
        await channel.subscribed(10, first)
        first.process.terminate()
        tap.targets = [fixture.plane.http, first.http]
        for i in range(30):
            await channel.publish(f"during {i}")
            await asyncio.sleep(0.1)
        for run in runs:
            await arrives(channel, run, cells, COLUMNS[5], as_text)
            cells.check(COLUMNS[5], not run.of("close"), f"a client was stopped: {run.tail()}")
        await asyncio.wait_for(first.process.wait(), 15)
        await tap.away()
        tap.cut()
        await channel.publish("while no pod was there")
        # Several tries of each client fall into this.
        await asyncio.sleep(4)
        async with aiohttp.ClientSession() as session:
            answer = await session.post(f"http://{proxy.http[0]}:{proxy.http[1]}{channel.path}/t", data=b"x")
            cells.check(COLUMNS[6], answer.status >= 500, f"a publisher was answered {answer.status}")
        await tap.back()
        try:
            await channel.subscribed(10)
        except AssertionError:
            stopped = [run.of("close")[0]["message"] for run in runs if run.of("close")]
            cells.check(COLUMNS[6], False, f"{len(stopped)} of 10 stopped for good: {stopped[:1]}")
            return
        for run in runs:
            await arrives(channel, run, cells, COLUMNS[6], as_text)
    finally:
        for run in runs:
            await run.__aexit__()


async def idle(fixture, proxy, _tap, cells):
    """Nothing but heartbeats for 90 s, then an event on the same connection."""
    async with fixture.channel() as channel, Source(proxy.http, channel.path) as run:
        await channel.subscribed(1)
        await asyncio.sleep(IDLE)
        cells.check(
            COLUMNS[7],
            len(run.of("open")) == 1 and not run.of("close"),
            f"{len(run.of('open'))} connections: {run.tail()}",
        )
        await channel.publish("still here")
        await arrives(channel, run, cells, COLUMNS[7], as_text)


class Noted(Cells):
    """Cells with a remark each, such as a measured time."""

    def __init__(self):
        super().__init__()
        self.remarks = {}

    def note(self, cell, remark):
        if remark:
            self.remarks[cell] = remark


async def row(fixture, kind, variant, gate, only, put):
    """All cells of one proxy in one variant."""
    cells = Noted()

    async def prove(function, columns, proxy, tap, limit):
        if not any(only.search(f"{kind}, {variant} × {c}") for c in columns):
            for column in columns:
                cells[column] = ...
            return
        try:
            async with asyncio.timeout(limit):
                await function(fixture, proxy, tap, cells)
        except Exception as error:  # whatever went wrong is the failure of the cells that were to be proved
            for column in columns:
                cells.check(column, False, f"{type(error).__name__}: {error}")

    async with Tap([fixture.plane.http]) as tap, Proxy(kind, variant, tap.address) as proxy:
        waiting = asyncio.create_task(prove(idle, COLUMNS[7:], proxy, tap, IDLE + 3 * SOON))
        async with gate:
            await prove(prompt, COLUMNS[0:2], proxy, tap, 60)
            await prove(cursor_passes, COLUMNS[2:3], proxy, tap, 60)
            await prove(client_gone, COLUMNS[3:4], proxy, tap, 90)
            await prove(many_streams, COLUMNS[4:5], proxy, tap, 120)
        # A proxy of its own: the other one keeps connections to its pod.
        async with gate, Tap([fixture.plane.http]) as behind, Proxy(kind, variant, behind.address) as second:
            await prove(drain_and_no_pod, COLUMNS[5:7], second, behind, 120)
        await waiting
    for column in COLUMNS:
        if cells.get(column) is not ...:
            put(f"{kind}, {variant}", column, cells.get(column), cells.remarks.get(column))


async def proxy_cells(fixture, matrix, only):
    """All proxies; idle times run beside everything else."""
    outcomes = {}
    gate = asyncio.Semaphore(3)

    def put(*outcome):
        outcomes[outcome[:2]] = outcome[2:]

    rows = [
        (kind, variant)
        for kind in KINDS
        for variant in VARIANTS
        if any(only.search(f"{kind}, {variant} × {c}") for c in COLUMNS)
    ]
    results = await asyncio.gather(*(row(fixture, *r, gate, only, put) for r in rows), return_exceptions=True)
    for (kind, variant), result in zip(rows, results, strict=True):
        for column in COLUMNS:
            key = (f"{kind}, {variant}", column)
            if isinstance(result, BaseException):
                matrix.put(*key, f"{type(result).__name__}: {result}")
            elif key in outcomes:
                failure, remark = outcomes[key]
                matrix.put(*key, failure)
                if remark:
                    matrix.remarks[key] = remark
