"""`python -m matrix [clients|browser|proxies|vectors]... [--only REGEX]`: runs the matrix and prints its tables."""

import argparse
import asyncio
import re
import sys
import time

from . import cases
from .clients import all_clients
from .report import Matrix
from .servers import Bed

# Cells at once. Each is mostly waiting.
WIDTH = 6
# Longest that one case may take, all waits in it together.
CASE_LIMIT = 120.0


async def client_cells(bed, matrix, only):
    gate = asyncio.Semaphore(WIDTH)
    clients = all_clients()
    order = [(client.row, cell) for client in clients for cells, _ in cases.CASES for cell in cells]
    outcomes = {}

    async def prove(client, cells, function):
        failures = cases.Cells()
        async with gate:
            try:
                async with asyncio.timeout(CASE_LIMIT):
                    await function(bed, client, failures)
            except Exception as error:  # whatever went wrong is the failure of the cells that were to be proved
                for cell in cells:
                    failures.check(cell, False, f"{type(error).__name__}: {error}")
        for cell in cells:
            outcomes[client.row, cell] = failures.get(cell)

    work = [(client, cells, function) for client in clients for cells, function in cases.CASES
            if any(only.search(f"{client.row} × {cell}") for cell in cells)]
    await asyncio.gather(*(prove(*w) for w in work))
    for key in order:
        if key in outcomes:
            matrix.put(*key, outcomes[key])


async def main():
    parser = argparse.ArgumentParser(prog="matrix")
    parser.add_argument("parts", nargs="*", default=[])
    parser.add_argument("--only", default="", help="regular expression on 'row × cell'")
    options = parser.parse_args()
    parts = options.parts or ["vectors", "clients", "browser", "proxies"]
    only = re.compile(options.only)
    totals, notes, tables = [0, 0, 0], [], []
    started = time.monotonic()
    async with Bed() as bed:
        for part in parts:
            matrix, corner = Matrix(), {"clients": "client", "browser": "Chromium", "proxies": "proxy", "vectors": "vectors"}[part]
            begun = time.monotonic()
            await {"clients": client_cells}[part](bed, matrix, only)
            tables.append(f"\n{part}, {time.monotonic() - begun:.0f} s\n\n{matrix.table(corner)}")
            notes += matrix.limits_found() + matrix.notes
            totals = [a + b for a, b in zip(totals, matrix.counts())]
    for line in bed.errors:
        notes.append(f"FAIL  the data plane's log: {line}")
        totals[1] += 1
    print(*tables, sep="\n")
    print(*notes, sep="\n")
    print(f"\n{time.monotonic() - started:.0f} s in all")
    print(f"{totals[0]} passed, {totals[1]} failed, {totals[2]} skipped")
    return 1 if totals[1] or not totals[0] else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
