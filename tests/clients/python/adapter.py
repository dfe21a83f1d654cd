"""adapter.py '{"client", "url", "names"}': runs one PyPI client until it is ended.

It prints what happens, one JSON object a line.
Settings are each client's defaults, but for those that its documentation asks for in this use. Parsers get the
reconnection that an application writes around them (WHATWG HTML 9.2.3).
"""

import asyncio
import json
import sys
import time


def put(t, **more):
    print(json.dumps({"t": t, **more}), flush=True)


def event(id, name, data):
    put("event", id=id, event=name or "message", data=data)


def looped(read):
    """The loop around a parser: `read(headers, seen)` serves one response; returns its status if that ends it all."""
    state = {"cursor": "", "retry": 3.0}

    def seen(id, name, data, retry):
        if id:
            state["cursor"] = id
        if retry is not None:
            state["retry"] = int(retry) / 1000
        if data is not None:
            event(id or state["cursor"], name, data)

    while True:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": state["cursor"]} if state["cursor"] else {})
        try:
            status = read(headers, seen)
            if status != 200:
                return put("close", message=f"status {status}")
        except Exception as error:  # whatever the HTTP library raises for a broken connection
            put("error", message=repr(error))
        time.sleep(state["retry"])


def httpx_sse(url):
    import httpx
    from httpx_sse import connect_sse

    def read(headers, seen):
        with (
            httpx.Client(timeout=httpx.Timeout(10, read=None)) as client,
            connect_sse(client, "GET", url, headers=headers) as source,
        ):
            if source.response.status_code == 200:
                put("open")
                for e in source.iter_sse():
                    seen(e.id, e.event, e.data, e.retry)
            return source.response.status_code

    looped(read)


def sseclient_py(url):
    import requests
    import sseclient

    def read(headers, seen):
        with requests.get(url, stream=True, headers=headers, timeout=(10, None)) as response:
            if response.status_code == 200:
                put("open")
                for e in sseclient.SSEClient(response).events():
                    seen(e.id, e.event, e.data, e.retry)
            return response.status_code

    looped(read)


def requests_sse(url):
    from requests_sse import EventSource

    try:
        with EventSource(url, on_open=lambda: put("open"), on_error=lambda: put("error", message="on_error")) as source:
            for e in source:
                event(e.last_event_id, e.type, e.data)
    except Exception as error:
        put("close", message=repr(error))


def aiohttp_sse_client2(url):
    from aiohttp import ClientSession, ClientTimeout
    from aiohttp_sse_client2.client import EventSource

    async def run():
        # aiohttp ends a response after five minutes unless told otherwise.
        async with (
            ClientSession(timeout=ClientTimeout(total=None)) as session,
            EventSource(
                url, session=session, on_open=lambda: put("open"), on_error=lambda: put("error", message="on_error")
            ) as source,
        ):
            async for e in source:
                event(e.last_event_id, e.type, e.data)
        put("close", message="the iteration ended")

    try:
        asyncio.run(run())
    except Exception as error:
        put("close", message=repr(error))


def launchdarkly_eventsource(url):
    from ld_eventsource import SSEClient
    from ld_eventsource.actions import Event, Fault, Start
    from ld_eventsource.config import ErrorStrategy

    try:
        # Without a strategy each dropped connection raises, by its documentation.
        client = SSEClient(url, error_strategy=ErrorStrategy.from_lambda(continues))
        for action in client.all:
            if isinstance(action, Start):
                put("open")
            elif isinstance(action, Fault):
                put("error", message=repr(action.error))
            elif isinstance(action, Event):
                event(action.last_event_id, action.event, action.data)
        put("close", message="the iteration ended")
    except Exception as error:
        put("close", message=repr(error))


def continues(error):
    """Its own classes for answers that are final; all else is a dropped connection."""
    from ld_eventsource.config import ErrorStrategy
    from ld_eventsource.errors import HTTPContentTypeError, HTTPStatusError

    final = isinstance(error, (HTTPStatusError, HTTPContentTypeError))
    return ErrorStrategy.FAIL if final else ErrorStrategy.CONTINUE, None


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    clients = {
        "httpx-sse": httpx_sse,
        "sseclient-py": sseclient_py,
        "requests-sse": requests_sse,
        "aiohttp-sse-client2": aiohttp_sse_client2,
        "launchdarkly-eventsource": launchdarkly_eventsource,
    }
    clients[options["client"]](options["url"])
    while True:  # given up: the driver wants to see that it stays so
        time.sleep(60)
