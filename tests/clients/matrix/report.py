"""Outcomes, known limits, and the table."""

import json
import re
import textwrap
from pathlib import Path

LIMITS = json.loads((Path(__file__).resolve().parents[1] / "known_limits.json").read_text())


class Matrix:
    """Outcome of each cell: `pass`, `limit`, `FAIL` or `skip`."""

    def __init__(self, limits=LIMITS):
        self.cells, self.notes, self.remarks, self.limits = {}, [], {}, limits

    def put(self, row, column, failure):
        """Notes a cell; `failure` is None or what went wrong."""
        known = self.limits.get(row, {}).get(column)
        if failure is None:
            if known:
                self.notes.append(f"NEWS  {row} × {column}: passes, but is declared a limit: {known['reason']}")
            self.cells[row, column] = "pass"
        elif known and re.search(known["symptom"], failure, re.S):
            self.cells[row, column] = "limit"
        else:
            said = f" (declared: {known['symptom']!r})" if known else ""
            self.notes.append(f"FAIL  {row} × {column}: {failure}{said}")
            self.cells[row, column] = "FAIL"

    def skip(self, row, column, why):
        self.notes.append(f"SKIP  {row} × {column}: {why}")
        self.cells[row, column] = "skip"

    def table(self, corner):
        """The cells as a Markdown table."""
        rows = list(dict.fromkeys(r for r, _ in self.cells))
        columns = list(dict.fromkeys(c for _, c in self.cells))
        lines = [[corner, *columns], ["-", *["-"] * len(columns)]]

        def cell(*key):
            remark = self.remarks.get(key)
            return self.cells.get(key, "") + (f" ({remark})" if remark else "")

        lines += [[row, *(cell(row, c) for c in columns)] for row in rows]
        # Columns are long words and cells short: the words go into a legend where there are many.
        if len(columns) > 8:
            legend = [f"  {i:>2} {c}" for i, c in enumerate(columns, 1)]
            lines[0] = [corner, *(str(i) for i in range(1, len(columns) + 1))]
            short = {"pass": "ok", "limit": "lim", "FAIL": "FAIL", "skip": "-", "": ""}
            lines[2:] = [[line[0], *(short[c] for c in line[1:])] for line in lines[2:]]
        else:
            legend = []
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        out = [
            "| "
            + " | ".join(
                cell.ljust(w, "-" if cell == "-" and n == 1 else " ") for cell, w in zip(line, widths, strict=True)
            )
            + " |"
            for n, line in enumerate(lines)
        ]
        return "\n".join(legend + out)

    def limits_found(self):
        """Reasons of the limits that showed."""
        return [f"LIMIT {r} × {c}: {self.limits[r][c]['reason']}" for (r, c), o in self.cells.items() if o == "limit"]

    def counts(self):
        found = list(self.cells.values())
        return found.count("pass") + found.count("limit"), found.count("FAIL"), found.count("skip")


PAGE = """# Clients

Which clients of event streams were tested with sluice, and what each of them cannot do. `make test-clients` runs them all against a real data plane:
native `EventSource` and `fetch` in Chromium; eventsource, undici, eventsource-client, launchdarkly-eventsource, extended-eventsource,
eventsource-parser, @microsoft/fetch-event-source, event-source-polyfill, reconnecting-eventsource and sse.js from npm; httpx-sse,
sseclient-py, requests-sse, aiohttp-sse-client2 and launchdarkly-eventsource from PyPI; eventsource-client and sse-stream from
crates.io; go-sse; and `curl`. Cases:
{cases}.

Versions are pinned in `tests/clients`. Each is used with its defaults and as its documentation shows it. Parsers (httpx-sse, sseclient-py,
eventsource-parser, sse-stream, `curl`) do not reconnect; they were tested in the loop that an application writes around them: remember
`id` and `retry`, wait, ask again with `Last-Event-ID`, stop at any status but 200.

Native `EventSource` passes everything. So does every client for every case that is not in this table, which is written from
`tests/clients/known_limits.json`; the run fails when a client falls short of something else, and says so when one no longer does.
401 and 403 are those of the [nginx in front of it](proxies.md#who-may-read) that asks who may read: 401 at the first request, 403 after the
right was taken away from a client that was reading.

| client | case | limit |
|---|---|---|
"""


def page(cases, clients):
    """docs/clients.md: the limits of clients, as they are declared."""
    rows = [(client, case, limit["reason"]) for client in clients for case, limit in LIMITS.get(client, {}).items()]
    merged = {}
    for client, case, reason in rows:
        merged.setdefault((client, reason), []).append(case)
    lines = [f"| {client} | {', '.join(of)} | {reason} |" for (client, reason), of in merged.items()]
    return PAGE.format(cases="\n".join(textwrap.wrap(", ".join(cases), 130))) + "\n".join(lines) + "\n"
