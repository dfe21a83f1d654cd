"""The blocks of docs/recipes.md and the page of the README, run as they stand there."""

import asyncio
import json
import re
import sys

from . import servers
from .cases import RETRY, Cells, missed
from .tap import Tap

HERE = servers.ROOT / "tests" / "clients"
RECIPES = {
    name: (language, text)
    for page in ("README.md", "docs/recipes.md")
    for name, language, text in re.findall(
        r"<!-- run: clients (\S+) -->\n```(\w+)\n(.*?)```", (servers.ROOT / page).read_text(), re.S
    )
}
PROVED = []


def recipe(name):
    """Registers the proof of a recipe."""

    def register(function):
        PROVED.append((name, function))
        return function

    return register


async def bundle(fixture, name, main):
    """A page's script: the recipe as a module, and `main` that imports it."""
    folder = fixture.folder / f"recipe-{name}"
    folder.mkdir()
    (folder / name).write_text(RECIPES[name][1])
    (folder / "main.jsx").write_text(main)
    # The recipe finds its packages where the other clients of npm are.
    (folder / "node_modules").symlink_to(HERE / "node" / "node_modules")
    out = folder / "page.js"
    build = await servers.spawn(
        HERE / "node" / "node_modules" / ".bin" / "esbuild",
        folder / "main.jsx",
        "--bundle",
        "--jsx=automatic",
        "--log-level=error",
        '--define:process.env.NODE_ENV="production"',
        f"--outfile={out}",
    )
    if await asyncio.wait_for(build.wait(), 60):
        raise AssertionError(f"{name} was not bundled; the error is above")
    return out.read_text()


class Page:
    """A page that runs a script, and what it reports."""

    def __init__(self, browser, script):
        self.browser, self.script, self.seen = browser, script, []

    async def __aenter__(self):
        self.context = await self.browser.chromium.new_context()
        self.page = await self.context.new_page()
        await self.page.expose_function("report", lambda what: self.seen.append(what))
        await self.load()
        return self

    async def load(self):
        await self.page.goto(self.browser.origin)
        await self.page.add_script_tag(content=self.script)

    async def until(self, what, true):
        async def check():
            return true(self.seen)

        try:
            await servers.eventually(what, check)
        except AssertionError as error:
            raise AssertionError(f"{error}; seen {self.seen}") from error

    async def __aexit__(self, *_):
        await self.context.close()


@recipe("page.html")
async def page_html(fixture, browser, cells, name):
    """The README's page: its console shows each event under its id, after a reconnection too, and what was missed."""
    async with (
        fixture.channel(retry=RETRY, cors={"allowedOrigins": [browser.origin]}) as channel,
        Tap([fixture.plane.http]) as tap,
    ):
        html = RECIPES[name][1].replace("http://127.0.0.1:8080/channels/orders", tap.url(channel.path))
        context = await browser.chromium.new_context()
        try:
            page, said = await context.new_page(), []
            page.on("console", lambda message: said.append((message.type, message.text)))
            browser.pages["/try"] = (f"<!doctype html><title>try</title>{html}".encode(), "text/html")
            await page.goto(f"{browser.origin}/try")
            await channel.subscribed(1)
            await channel.publish("1")
            await shown(said, "log", 1)
            tap.cut()
            await channel.publish("2")
            await shown(said, "log", 2)
            logged = [text for kind, text in said if kind == "log"]
            epoch = logged[0].partition("-")[0]
            cells.check(name, logged == [f"{epoch}-1 1", f"{epoch}-2 2"] and len(epoch) == 8, f"console {said}")
            async with missed(fixture, channel, tap, range(3, 7), purged_before=6):
                await shown(said, "log", 3)
            warned = [text for kind, text in said if kind == "warning"]
            cells.check(
                name,
                len(warned) == 1 and warned[0].startswith("missed") and "missed: 3" in warned[0],
                f"warnings {warned}",
            )
            cells.check(name, said[-1] == ("log", f"{epoch}-6 6"), f"console {said}")
        finally:
            await context.close()


async def shown(said, kind, count):
    """Waits for so many lines of a kind in a page's console."""

    async def check():
        return sum(k == kind for k, _ in said) >= count

    try:
        await servers.eventually(f"{count} lines in the console", check)
    except AssertionError as error:
        raise AssertionError(f"{error}; console {said}") from error


@recipe("browser.js")
async def reload_proof(fixture, browser, cells, name):
    async with (
        fixture.channel(retry=RETRY, cors={"allowedOrigins": [browser.origin]}) as channel,
        Tap([fixture.plane.http]) as tap,
    ):
        script = await bundle(
            fixture,
            name,
            f"""
            import {{ follow }} from "./{name}";
            const event = (e) => report({{ type: e.type, data: e.data }});
            follow({tap.url(channel.path)!r}, "orders", ["paid"], event, (gap) => report({{ gap }}));
        """,
        )
        async with Page(browser, script) as page:
            await channel.subscribed(1)
            await channel.publish("1")
            await channel.publish("2", name="paid")
            await page.until("two events", lambda seen: len(seen) == 2)
            await page.page.goto("about:blank")
            await channel.subscribed(0)
            await channel.publish("3")
            await page.load()
            await page.until("what came while it was away", lambda seen: len(seen) == 3)
            tap.cut()
            await servers.eventually("it comes back by itself", lambda: asyncio.sleep(0, len(tap.reads()) == 3))
            await channel.publish("4")
            await page.until("the next", lambda seen: len(seen) == 4)
            events = [e.get("data") for e in page.seen]
            cells.check(name, events == ["1", "2", "3", "4"] and page.seen[1]["type"] == "paid", f"{page.seen}")
            await page.page.goto("about:blank")
            await channel.subscribed(0)
            for i in range(5, 9):
                await channel.publish(str(i))
            await channel.purge(8)
            # A pod that has just started has nothing in memory of what was before.
            async with fixture.another(channel) as fresh:
                tap.targets = [fresh.http]
                await page.load()
                await page.until("the gap and what is left", lambda seen: len(seen) == 6)
            gap, left = page.seen[4:]
            cells.check(name, gap["gap"]["missed"] == 3 and left["data"] == "8", f"{page.seen[4:]}")


@recipe("hook.jsx")
async def hook(fixture, browser, cells, name):
    async with (
        fixture.channel(retry=RETRY, cors={"allowedOrigins": [browser.origin]}) as channel,
        Tap([fixture.plane.http]) as tap,
    ):
        script = await bundle(
            fixture,
            name,
            f"""
            import {{ createRoot }} from "react-dom/client";
            import {{ useChannel }} from "./{name}";
            function Orders() {{
              const events = useChannel({tap.url(channel.path)!r}, "paid");
              return <ul>{{events.map((e) => <li key={{e.id}}>{{e.type}} {{e.data}}</li>)}}</ul>;
            }}
            const root = createRoot(document.body.appendChild(document.createElement("div")));
            root.render(<Orders />);
            window.unmount = () => root.unmount();
        """,
        )
        async with Page(browser, script) as page:
            await channel.subscribed(1)
            await channel.publish("1")
            await channel.publish("2", name="paid")

            async def shown():
                return await page.page.locator("li").all_inner_texts() == ["message 1", "paid 2"]

            await servers.eventually("both events are shown", shown)
            for i in range(150):
                await channel.publish(f"more {i}")
            await page.page.locator("li", has_text="more 149").wait_for()
            cells.check(
                name, await page.page.locator("li").count() == 100, f"{await page.page.locator('li').count()} are kept"
            )
            await page.page.evaluate("unmount()")
            await channel.subscribed(0)
            cells.check(name, len(tap.reads()) == 1, f"{len(tap.reads())} requests: a render must not reconnect")


@recipe("worker.py")
async def worker(fixture, browser, cells, name):
    script, cursor = fixture.folder / name, fixture.folder / "worker-cursor"
    script.write_text(RECIPES[name][1])
    async with fixture.channel(retry=RETRY) as channel, Tap([fixture.plane.http]) as tap:
        done = []

        async def run(until):
            """Starts the worker, waits until it has done so many events in all, and kills it."""
            process = await servers.spawn(
                sys.executable, "-u", script, tap.url(channel.path), cursor, stdout=asyncio.subprocess.PIPE
            )
            try:
                if not done:
                    await channel.subscribed(1)
                    for i in range(5):
                        await channel.publish(f"event {i}")
                while len(set(done)) < until:
                    line = await asyncio.wait_for(process.stdout.readline(), servers.SOON)
                    done.append(line.decode().split(" ", 2)[2].strip())
                    if len(done) == 3:
                        tap.cut()
            finally:
                await servers.end(process, servers.signal.SIGKILL)

        await run(5)
        for i in range(5, 9):
            await channel.publish(f"event {i}")
        await run(9)
        # At least once, in order; again only what was being worked on when it was killed or cut.
        cells.check(name, sorted(set(done)) == [f"event {i}" for i in range(9)] and len(done) <= 11, f"{done}")


@recipe("page.sh")
async def history(fixture, browser, cells, name):
    async with fixture.channel(retry=RETRY) as channel:
        for i in range(3):
            await channel.publish(json.dumps({"n": i}))
        command = RECIPES[name][1].replace(
            "http://127.0.0.1:8080/channels/orders",
            f"http://{fixture.plane.http[0]}:{fixture.plane.http[1]}{channel.path}",
        )
        process = await servers.spawn("bash", "-c", command, stdout=asyncio.subprocess.PIPE)
        page = json.loads((await asyncio.wait_for(process.communicate(), servers.SOON))[0])
        cells.check(name, [json.loads(e["data"])["n"] for e in page["events"]] == [1, 2], f"{page}")


async def recipe_cells(fixture, browser, matrix, only):
    """Every block of the page; one without a proof is a failure."""
    for name in sorted(RECIPES.keys() - {name for name, _ in PROVED}):
        matrix.put(name, "as written", "no proof of it in recipes.py")
    for name, function in PROVED:
        if not only.search(f"{name} × as written"):
            continue
        cells = Cells()
        try:
            if name not in RECIPES:
                raise AssertionError("not on the page")
            async with asyncio.timeout(120):
                await function(fixture, browser, cells, name)
        except Exception as error:  # whatever went wrong is the recipe's failure
            cells.check(name, False, f"{type(error).__name__}: {error}")
        matrix.put(name, "as written", cells.get(name))
