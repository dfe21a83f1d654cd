"""A TCP forwarder between client and server that records requests and breaks the connection in chosen ways.

It changes no byte, so what a client meets is what the data plane sent; only when, and in which pieces.
"""

import asyncio
import re
import socket
import struct
import time
from dataclasses import dataclass, field


@dataclass
class Request:
    """The head of a request, as the client sent it."""

    at: float
    method: str
    target: str
    headers: dict = field(default_factory=dict)

    @property
    def cursor(self):
        """The cursor that the request resumes from, by header or by query."""
        query = re.search(r"[?&](?:last_event_id|lastEventId)=([^&]+)", self.target)
        return self.headers.get("last-event-id") or (query and query[1]) or None


class Tap:
    """Listens on a free port and forwards to the first of `targets` that accepts."""

    def __init__(self, targets, chop=0):
        self.targets, self.chop = list(targets), chop
        self.requests, self.statuses = [], []
        # When each of `statuses` passed.
        self.answered = []
        self.refusing = self.silent = False
        self._connections, self._targets = set(), {}
        self._audible = asyncio.Event()
        self._audible.set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self.address = self._server.sockets[0].getsockname()
        return self

    async def away(self):
        """From now on connections are refused, as by a Service without pods; those that are open stay so."""
        self._server.close()

    async def back(self):
        """Undoes [`away`], on the same port."""
        self._server = await asyncio.start_server(self._serve, *self.address, limit=1 << 20)

    async def __aexit__(self, *_):
        self._server.close()
        self._audible.set()
        self.cut()

    def url(self, path):
        return f"http://{self.address[0]}:{self.address[1]}{path}"

    def reads(self):
        """The requests that would open a stream (no preflights)."""
        return [r for r in self.requests if r.method == "GET"]

    def cut(self, connections=None):
        """Resets connections (all, unless told which), as a killed server or a lost NAT entry does."""
        for writers in list(self._connections if connections is None else connections):
            for writer in writers:
                sock = writer.get_extra_info("socket")
                if sock is not None and sock.fileno() >= 0:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            self._connections.discard(writers)

    def cut_those(self, path):
        """Resets the connections whose latest request was for `path`."""
        self.cut({pair for pair, target in self._targets.items() if target.startswith(path)})

    def silence(self, silent):
        """From now on nothing passes, in neither direction, and nothing is closed: a laptop that sleeps."""
        self.silent = silent
        self._audible.clear() if silent else self._audible.set()

    async def _serve(self, reader, writer):
        up_reader = up_writer = None
        if not self.refusing:
            for target in self.targets:
                try:
                    up_reader, up_writer = await asyncio.open_connection(*target, limit=1 << 20)
                    break
                except OSError:
                    continue
        if up_writer is None:
            writer.transport.abort()
            return
        pair = (writer, up_writer)
        self._connections.add(pair)
        for each in pair:
            each.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.gather(self._upstream(reader, up_writer, pair), self._downstream(up_reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._connections.discard(pair)
            self._targets.pop(pair, None)
            for each in pair:
                each.close()

    async def _upstream(self, reader, writer, pair):
        head = b""
        try:
            while data := await reader.read(65536):
                await self._audible.wait()
                head += data
                while b"\r\n\r\n" in head:
                    one, head = head.split(b"\r\n\r\n", 1)
                    self._note(one.decode("latin-1"))
                    self._targets[pair] = self.requests[-1].target
                writer.write(data)
                await writer.drain()
        finally:
            # The client is gone: so is its connection to the server, as with any transparent middlebox.
            writer.close()

    async def _downstream(self, reader, writer):
        try:
            while data := await reader.read(65536):
                await self._audible.wait()
                if status := re.match(rb"HTTP/1\.[01] (\d{3})", data):
                    self.statuses.append(int(status[1]))
                    self.answered.append(time.monotonic())
                if not self.chop:
                    writer.write(data)
                    await writer.drain()
                    continue
                size = 1
                while data:
                    writer.write(data[:size])
                    await writer.drain()
                    data = data[size:]
                    # The pause lets the piece leave as a packet of its own.
                    await asyncio.sleep(0.0005)
                    size = size % self.chop + 1
        finally:
            writer.close()

    def _note(self, head):
        line, *rest = head.split("\r\n")
        method, target, *_ = line.split(" ")
        headers = {k.strip().lower(): v.strip() for k, _, v in (h.partition(":") for h in rest)}
        self.requests.append(Request(time.monotonic(), method, target, headers))
