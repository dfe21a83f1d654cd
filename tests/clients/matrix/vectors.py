"""The streams of vectors.json through the harness's parser, with a real browser and a real client as referees."""

import asyncio
import json
from pathlib import Path

from .browser import Browser, BrowserClient
from .clients import all_clients
from .sse import Event, Parser, Retry

VECTORS = json.loads((Path(__file__).resolve().parents[1] / "vectors.json").read_text())["streams"]
REFEREES = ["eventsource (node)", "eventsource-parser (node, loop of the application)", "EventSource (Chromium)"]


def stream_of(vector):
    return bytes.fromhex(vector["hex"]) if "hex" in vector else vector["stream"].encode()


def wanted(vector):
    return [(e["event"], e["data"], e["id"]) for e in vector["events"]]


def judge_parser(vector):
    """Cut everywhere; returns what went wrong."""
    data = stream_of(vector)
    for cut in range(len(data) + 1):
        parser = Parser()
        items = parser.push(data[:cut]) + parser.push(data[cut:])
        got = [(i.name, i.data, i.last_event_id) for i in items if isinstance(i, Event)]
        retries = [i.millis for i in items if isinstance(i, Retry)]
        if got != wanted(vector) or retries[-1:] != ([vector["retry"]] if "retry" in vector else []):
            return f"cut at {cut}: {got} {retries}"
    return None


async def judge_client(client, vector):
    """Serves the stream once, then 204; returns what the client made of it."""
    asked = 0

    async def serve(reader, writer):
        nonlocal asked
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            common = (
                b"Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Headers: last-event-id, cache-control\r\n"
                b"Connection: close\r\n\r\n"
            )
            if head.startswith(b"GET"):
                asked += 1
            if head.startswith(b"GET") and asked == 1:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + common + stream_of(vector))
            else:
                writer.write(b"HTTP/1.1 204 No Content\r\n" + common)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with client.start(f"http://127.0.0.1:{port}/") as run:
            await run.until("the client sees the end of the stream", lambda r: r.of("error") or r.of("close"), 20)
            got = [(r["event"], r["data"], r["id"] or "") for r in run.of("event")]
            return None if got == wanted(vector) else f"{got}, should be {wanted(vector)}"


async def vector_cells(_bed, matrix, only):
    gate = asyncio.Semaphore(6)
    async with Browser() as browser:
        clients = [*all_clients(), BrowserClient(browser, "EventSource")]
        # A stream may name any event; EventSource hears only those that it was told of.
        referees = [c for c in clients if c.row in REFEREES]

        async def prove(client, vector):
            async with gate:
                try:
                    return await judge_client(client, vector)
                except Exception as error:  # whatever went wrong is the failure of the cell
                    return f"{type(error).__name__}: {error}"

        chosen = [v for v in VECTORS if only.search(f"vectors × {v['name']}")]
        jobs = [(c, v) for v in chosen for c in referees]
        outcomes = await asyncio.gather(*(prove(*job) for job in jobs))
        for vector in chosen:
            matrix.put(vector["name"], "harness", judge_parser(vector))
            for (client, of), outcome in zip(jobs, outcomes, strict=True):
                if of is vector:
                    matrix.put(vector["name"], client.row, outcome)
