"""`python -m matrix [clients|browser|proxies|vectors]... [--only REGEX]`: runs the matrix and prints its tables."""

import argparse
import asyncio
import re
import signal
import sys
import time

from . import cases, report
from .browser import CLIENTS, Browser, BrowserClient, browser_facts
from .clients import all_clients
from .console import console_cells
from .proxy_cases import proxy_cells
from .recipes import recipe_cells
from .report import Matrix
from .servers import ROOT, Fixture
from .vectors import vector_cells

# Cells at once. Each is mostly waiting.
WIDTH = 6
PAGE = ROOT / "docs" / "clients.md"
# Longest that one case may take, all waits in it together.
CASE_LIMIT = 120.0


async def client_cells(fixture, matrix, only):
    await cells_of(fixture, matrix, only, all_clients())


async def browser_cells(fixture, matrix, only):
    async with Browser() as browser:
        await cells_of(fixture, matrix, only, [BrowserClient(browser, name) for name in CLIENTS])


async def browser_only(fixture, matrix, only):
    async with Browser() as browser:
        await browser_facts(fixture, browser, matrix, only)


async def console_only(fixture, matrix, only):
    async with Browser() as browser:
        await console_cells(fixture, browser, matrix, only)


async def recipes_only(fixture, matrix, only):
    async with Browser() as browser:
        await recipe_cells(fixture, browser, matrix, only)


async def cells_of(fixture, matrix, only, clients):
    """All cases with all these clients."""
    gate = asyncio.Semaphore(WIDTH)
    order = [(client.row, cell) for client in clients for cells, _ in cases.CASES for cell in cells]
    outcomes = {}

    async def prove(client, cells, function):
        failures = cases.Cells()
        async with gate:
            try:
                async with asyncio.timeout(CASE_LIMIT):
                    await function(fixture, client, failures)
            except Exception as error:  # whatever went wrong is the failure of the cells that were to be proved
                for cell in cells:
                    failures.check(cell, False, f"{type(error).__name__}: {error}")
        for cell in cells:
            outcomes[client.row, cell] = failures.get(cell)

    work = [
        (client, cells, function)
        for client in clients
        for cells, function in cases.CASES
        if any(only.search(f"{client.row} × {cell}") for cell in cells)
    ]
    await asyncio.gather(*(prove(*w) for w in work))
    for key in order:
        if key in outcomes:
            matrix.put(*key, outcomes[key])


PARTS = {
    "vectors": ("stream", vector_cells),
    "clients": ("client", client_cells),
    "browser": ("client in the browser", browser_cells),
    "chromium": ("what only a browser does", browser_only),
    "console": ("screen", console_only),
    "recipes": ("block of a page", recipes_only),
    "proxies": ("proxy", proxy_cells),
}


async def main():
    # Ended from outside: everything that was started is ended in its turn.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    parser = argparse.ArgumentParser(prog="matrix")
    parser.add_argument("parts", nargs="*", default=[])
    parser.add_argument("--only", default="", help="regular expression on 'row × cell'")
    parser.add_argument("--write-page", action="store_true", help="write docs/clients.md and end")
    options = parser.parse_args()
    page = report.page(
        [cell for cells, _ in cases.CASES for cell in cells], [row for row in report.LIMITS if row.endswith(")")]
    )
    if options.write_page:
        PAGE.write_text(page)
        return 0
    parts = options.parts or list(PARTS)
    only = re.compile(options.only)
    totals, notes = [0, 0, 0], []
    started = time.monotonic()
    async with Fixture() as fixture:
        for part in parts:
            matrix, (corner, prove) = Matrix(), PARTS[part]
            begun = time.monotonic()
            await prove(fixture, matrix, only)
            print(f"\n{part}, {time.monotonic() - begun:.0f} s\n\n{matrix.table(corner)}", flush=True)
            notes += matrix.limits_found() + matrix.notes
            totals = [a + b for a, b in zip(totals, matrix.counts(), strict=True)]
    if PAGE.read_text() != page:
        notes.append("FAIL  docs/clients.md is not what known_limits.json says: tests/clients/run.sh --write-page")
        totals[1] += 1
    for line in fixture.errors:
        notes.append(f"FAIL  the data plane's log: {line}")
        totals[1] += 1
    print("", *notes, sep="\n")
    print(f"\n{time.monotonic() - started:.0f} s in all")
    print(f"{totals[0]} passed, {totals[1]} failed, {totals[2]} skipped")
    return 1 if totals[1] or not totals[0] else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
