"""The console in the browser: on a wide screen and a phone, in light and in dark.

Pictures go to target/console; `wide-light.png` of a run is docs/console.png."""

import asyncio
import json

from . import servers
from .cases import Cells

SHOTS = servers.ROOT / "target" / "console"
# (row, size, colour scheme)
SCREENS = [
    ("wide, light", (1280, 900), "light"),
    ("wide, dark", (1280, 900), "dark"),
    ("phone, light", (390, 844), "light"),
    ("phone, dark", (390, 844), "dark"),
]
COLUMNS = ["channels and rates", "tail", "filter", "publish", "subscribers", "fits", "clean"]
LIMIT = 30_000.0  # ms, of each wait


async def publish_steadily(channel):
    """About 20 events a second, with text that would show as markup if the page took it for such."""
    number = 0
    while True:
        number += 1
        order = {"order": 1000 + number, "total": number * 7 % 400, "note": "<b>gift</b>"}
        await channel.publish(
            json.dumps(order), name="order" if number % 3 else "", topic=("created", "paid", "shipped")[number % 3]
        )
        await asyncio.sleep(0.05)


async def screen(browser, plane, channel, size, scheme, shot, cells):
    context = await browser.chromium.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, reduced_motion="reduce"
    )
    context.set_default_timeout(LIMIT)
    page = await context.new_page()
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    outside = []
    page.on(
        "request",
        lambda request: (
            outside.append(request.url)
            if not request.url.startswith(f"http://{plane.admin[0]}:{plane.admin[1]}/")
            else None
        ),
    )
    await page.goto(f"http://{plane.admin[0]}:{plane.admin[1]}/#{channel.name}")

    async def text(selector):
        return await page.locator(selector).inner_text()

    async def until(expression):
        # Playwright's own wait evaluates text in the page, which the page's policy forbids.
        await servers.eventually(expression, lambda: page.evaluate(expression))

    await until("document.getElementById('phase').textContent === 'Ready'")
    await until("parseFloat(document.getElementById('rate-in').textContent) > 2")
    await until("document.querySelectorAll('#chart polyline.in')[0].getAttribute('points').split(' ').length > 8")
    names = await page.locator("#channels b").all_inner_texts()
    cells.check(
        "channels and rates",
        channel.name in names and await text("#reader") == "Tailing",
        f"{names}, {await text('#reader')}",
    )

    await until("document.querySelectorAll('#tail li').length > 20")
    row = page.locator("#tail li:not(.own)").first
    data = await row.locator(".data").inner_text()
    cells.check(
        "tail", "<b>gift</b>" in data and await page.locator("#tail b").count() == 0, f"not shown as text: {data}"
    )
    cells.check("tail", (await row.locator(".id").inner_text()).partition("-")[2].isdigit(), "no cursor")
    SHOTS.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=SHOTS / f"{shot}.png")

    await page.fill("#filter", "paid")
    await page.select_option("#start", "earliest")
    await page.click("#tail-form button[type=submit]")
    await until("document.querySelectorAll('#tail li:not(.own)').length > 5")
    topics = set(await page.locator("#tail li:not(.own) .topic").all_inner_texts())
    cells.check("filter", topics == {"paid"}, f"topics {topics}")

    await page.fill("#filter", "from.page")
    await page.click("#tail-form button[type=submit]")
    await page.fill("#publish-topic", "from.page")
    await page.fill("#publish-event", "hello")
    await page.fill("#publish-data", "grüße\n<i>2</i>")
    await page.click("#publish-form button")
    await until("document.getElementById('publish-result').textContent.startsWith('stored as ')")
    stored = (await text("#publish-result")).removeprefix("stored as ")
    mine = page.locator("#tail li", has=page.locator(".id", has_text=stored))
    await mine.wait_for()
    seen = [await mine.locator(f".{part}").text_content() for part in ("topic", "event", "data")]
    cells.check("publish", seen == ["from.page", "hello", "grüße\n<i>2</i>"], f"{seen}")
    await page.fill("#publish-event", "channel.open")
    await page.click("#publish-form button")
    await until("document.getElementById('publish-result').classList.contains('bad')")
    cells.check(
        "publish", "channel." in await text("#publish-result"), f"the refusal says {await text('#publish-result')!r}"
    )

    await until(
        "[...document.querySelectorAll('#subscribers tr')].some("
        "r => r.textContent.includes('from.page') && r.textContent.includes('Live'))"
    )
    width = await page.evaluate("document.documentElement.scrollWidth")
    cells.check("fits", width <= size[0], f"the page is {width} wide on a screen of {size[0]}")
    background = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(map(int, background[4:-1].split(","))) < 384
    cells.check("fits", dark == (scheme == "dark"), f"{scheme}: the background is {background}")
    # The refusal above is a 400, which the browser notes by itself.
    faults = [fault for fault in faults if "status of 400" not in fault]
    cells.check("clean", not faults and not outside, f"{faults} {outside}")
    await context.close()


async def console_cells(fixture, browser, matrix, only):
    """Every screen, one after the other."""
    async with fixture.channel(retry=500) as channel:
        channel.write(retry=500, publish={"http": True})
        async with fixture.another(channel) as plane:
            publishing = asyncio.create_task(publish_steadily(channel))
            try:
                for row, size, scheme in SCREENS:
                    if not only.search(f"{row} × console"):
                        continue
                    cells = Cells()
                    try:
                        await screen(browser, plane, channel, size, scheme, row.replace(", ", "-"), cells)
                    except Exception as error:  # whatever went wrong is the failure of what was not shown yet
                        for column in COLUMNS:
                            cells.check(column, False, f"{type(error).__name__}: {error}")
                    for column in COLUMNS:
                        matrix.put(row, column, cells.get(column))
            finally:
                publishing.cancel()
                await asyncio.gather(publishing, return_exceptions=True)
