"""curl.py '{"url"}': `curl -N` in the loop that a shell script would have, read by the harness's own parser.

curl itself neither parses events nor reconnects; it shows what is on the wire to people who look at it with curl.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from matrix.sse import Event, Parser, Retry


def put(t, **more):
    print(json.dumps({"t": t, **more}), flush=True)


def main():
    url = json.loads(sys.argv[1])["url"]
    cursor, retry = "", 3000
    while True:
        resume = ["-H", f"Last-Event-ID: {cursor}"] if cursor else []
        command = [
            "curl",
            "-sSN",
            "-f",
            "-w",
            "%{stderr}%{http_code}\n",
            "-H",
            "Accept: text/event-stream",
            *resume,
            url,
        ]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as curl:
            parser = Parser()
            put("open")
            while data := os.read(curl.stdout.fileno(), 65536):
                for item in parser.push(data):
                    if isinstance(item, Retry):
                        retry = item.millis
                    elif isinstance(item, Event):
                        put("event", id=item.last_event_id, event=item.name, data=item.data)
            cursor = parser.last_event_id or cursor
            said = curl.stderr.read().decode().strip().splitlines()
        if said and said[-1] in ("204", "400", "401", "403", "404"):
            put("close", message=f"status {said[-1]}")
            break
        put("error", message=" ".join(said))
        time.sleep(retry / 1000)
    while True:  # given up: the driver wants to see that it stays so
        time.sleep(60)


if __name__ == "__main__":
    main()
