"""nats-server and sluice-dataplane as child processes, and channels to test on."""

import asyncio
import ctypes
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import nats
from nats.js.api import StorageType, StreamConfig

ROOT = Path(__file__).resolve().parents[3]
TOOLS = Path(os.environ.get("SLUICE_TOOLS", ROOT / ".tools" / "bin"))
BUILT = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug"
NAMESPACE = "clients"
# The machine may be busy with other tests; nothing here is expected to take a tenth of it.
SOON = 30.0

_libc = ctypes.CDLL(None)


async def spawn(*command, death=signal.SIGKILL, **options):
    """A child process in a group of its own that gets `death` when the driver ends, however the driver ends."""
    # prctl(2), PR_SET_PDEATHSIG; runs in the child.
    return await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=asyncio.subprocess.DEVNULL,
        preexec_fn=lambda: _libc.prctl(1, death),
        start_new_session=True,
        **options,
    )


async def end(process, with_signal=signal.SIGTERM, limit=10.0):
    """Ends a child: politely, then not."""
    if process.returncode is not None:
        return
    for which, wait in ((with_signal, limit), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, which)
        except ProcessLookupError:
            break
        try:
            await asyncio.wait_for(process.wait(), wait)
            return
        except TimeoutError:
            continue


async def eventually(what, ask, limit=SOON, every=0.05):
    """The first true answer of `ask`; fails with `what` after `limit` seconds."""
    until = time.monotonic() + limit
    while True:
        answer = await ask()
        if answer:
            return answer
        if time.monotonic() > until:
            raise AssertionError(f"not within {limit:.0f} s: {what}")
        await asyncio.sleep(every)


def _request(address, method, path):
    connection = http.client.HTTPConnection(*address, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


async def ask(address, path, method="GET"):
    """One short HTTP request: status, headers, body."""
    return await asyncio.to_thread(_request, address, method, path)


class Plane:
    """A running data plane."""

    def __init__(self, process, http_address, admin_address, log):
        self.process, self.http, self.admin, self.log = process, http_address, admin_address, log

    @classmethod
    async def start(cls, nats_url, configs, *arguments):
        with tempfile.NamedTemporaryFile(
            prefix="dataplane-", suffix=".log", dir=Path(configs).parent, delete=False
        ) as log:
            process = await spawn(
                BUILT / "sluice-dataplane",
                "--config-dir",
                configs,
                "--nats",
                nats_url,
                "--listen",
                "127.0.0.1:0",
                "--admin",
                "127.0.0.1:0",
                *arguments,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        addresses = {}
        while len(addresses) < 2:
            line = (await asyncio.wait_for(process.stdout.readline(), SOON)).decode()
            if not line:
                raise AssertionError(f"the data plane ended before it listened; see {log.name}")
            for name, host, port in re.findall(r"(http|admin)=([\d.]+):(\d+)", line):
                addresses[name] = (host, int(port))
        plane = cls(process, addresses["http"], addresses["admin"], Path(log.name))

        async def ready():
            return (await ask(plane.admin, "/readyz"))[0] == 200

        await eventually("the data plane is ready", ready)
        return plane

    async def subscribers(self, channel):
        """The open streams of a channel, as the admin listener tells them."""
        listed = json.loads((await ask(self.admin, "/debug/subscribers"))[2])["subscribers"]
        return [s for s in listed if s["channel"] == channel]

    async def stop(self):
        await end(self.process)
        text = self.log.read_text(errors="replace")
        self.log.unlink(missing_ok=True)
        return [line for line in text.splitlines() if " ERROR " in line or "panicked" in line]


@dataclass
class Stored:
    """A published event."""

    sequence: int
    name: str
    payload: bytes


class Channel:
    """One channel over a stream of its own."""

    def __init__(self, fixture, name):
        self.fixture, self.name = fixture, name
        self.path = f"/channels/{name}"
        self.stream = f"s_{name}"
        self.prefix = f"sse.{NAMESPACE}.{name}."
        self.stored = []

    def write(self, publish=None, **delivery):
        """Writes the configuration as the operator does: whole, in one step."""
        if "retry" in delivery:
            delivery["retryMinMillis"] = delivery["retryMaxMillis"] = delivery.pop("retry")
        config = {
            "version": 1,
            "name": self.name,
            "namespace": NAMESPACE,
            "generation": 1,
            "stream": {
                "name": self.stream,
                "subjects": [self.prefix + ">"],
                "topicPrefix": self.prefix,
                "maxMessageSize": 1 << 20,
            },
            "delivery": delivery,
            "publish": publish or {"http": False},
        }
        temporary = self.fixture.configs / f".{self.name}.new"
        temporary.write_text(json.dumps(config))
        temporary.rename(self.fixture.configs / f"{self.name}.json")

    def remove(self):
        (self.fixture.configs / f"{self.name}.json").unlink(missing_ok=True)

    async def publish(self, payload=b"", name="", topic="t"):
        payload = payload.encode() if isinstance(payload, str) else payload
        headers = {"Event-Name": name} if name else None
        ack = await self.fixture.js.publish(self.prefix + topic, payload, headers=headers, timeout=SOON)
        stored = Stored(ack.seq, name, payload)
        self.stored.append(stored)
        return stored

    async def purge(self, before):
        """Deletes what is older than sequence `before`."""
        await self.fixture.js.purge_stream(self.stream, seq=before)

    async def subscribed(self, count=1, plane=None, limit=SOON):
        """Waits until the data plane counts this many open streams, each of which knows where it starts."""
        plane = plane or self.fixture.plane

        async def enough():
            states = [s["state"] for s in await plane.subscribers(self.name)]
            return len(states) == count and "Admitting" not in states

        await eventually(f"{count} open stream(s) on {self.name}", enough, limit)


class Fixture:
    """One nats-server and one data plane that all cells share; each cell has a channel of its own."""

    async def __aenter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="sluice-clients-"))
        self.configs = self.folder / "channels"
        self.configs.mkdir()
        self._names = itertools.count(1)
        self._planes = []
        self.errors = []
        ports = self.folder / "ports"
        ports.mkdir()
        self.nats = await spawn(
            TOOLS / "nats-server",
            "-a",
            "127.0.0.1",
            "-p",
            "-1",
            "-js",
            "-sd",
            self.folder / "store",
            "--ports_file_dir",
            ports,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )

        async def listening():
            found = list(ports.glob("*.ports"))
            return json.loads(found[0].read_text())["nats"][0] if found and found[0].stat().st_size else None

        self.nats_url = await eventually("nats-server listens", listening)
        self.client = await nats.connect(self.nats_url)
        self.js = self.client.jetstream(timeout=SOON)
        self.plane = await self.start_plane()
        return self

    async def start_plane(self, configs=None, *arguments):
        """A data plane of all channels, or those in `configs`, with a short drain unless told otherwise."""
        drain = [] if "--drain-delay" in arguments else ["--drain-delay", "200ms", "--drain-period", "800ms"]
        plane = await Plane.start(self.nats_url, configs or self.configs, *drain, *arguments)
        self._planes.append(plane)
        return plane

    @asynccontextmanager
    async def another(self, channel, *arguments):
        """Another data plane, of this channel alone: it ends with the case."""
        configs = self.folder / f"only-{channel.name}-{next(self._names)}"
        configs.mkdir()
        shutil.copy(self.configs / f"{channel.name}.json", configs)
        plane = await self.start_plane(configs, *arguments)
        try:
            yield plane
        finally:
            self._planes.remove(plane)
            self.errors += await plane.stop()

    @asynccontextmanager
    async def channel(self, **delivery):
        """A new channel that is served, and gone after the case: many would be work for every data plane."""
        channel = await self._channel(**delivery)
        try:
            yield channel
        finally:
            channel.remove()
            await self.js.delete_stream(channel.stream)

    async def _channel(self, **delivery):
        channel = Channel(self, f"c{next(self._names)}")
        await self.js.add_stream(
            StreamConfig(
                name=channel.stream,
                subjects=[channel.prefix + ">"],
                storage=StorageType.MEMORY,
                allow_direct=True,
                max_msg_size=(1 << 20) + 4096,
            )
        )
        channel.write(**delivery)
        await self.served(self.plane, channel)
        return channel

    async def served(self, plane, channel):
        """Waits until a data plane serves the channel."""

        async def known():
            return (await ask(plane.http, channel.path, "HEAD"))[0] == 200

        await eventually(f"{channel.name} is served", known)

    async def __aexit__(self, *_):
        for plane in self._planes:
            self.errors += await plane.stop()
        await self.client.close()
        await end(self.nats)
        shutil.rmtree(self.folder, ignore_errors=True)
