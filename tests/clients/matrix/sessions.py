"""A service that knows the sessions, for a proxy that asks before it opens a stream."""

import asyncio

# The cookie of the only session there is.
COOKIE = "session=s3cret"


class Sessions:
    """Answers 204 or 401 by the cookie; or always `answer`, where a case has set it."""

    def __init__(self):
        self.answer = 204
        # What was asked for (`X-Original-URI`), in order.
        self.asked = []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = self._server.sockets[0].getsockname()
        return self

    async def __aexit__(self, *_):
        self._server.close()

    def by_cookie(self):
        """From now on the cookie decides."""
        self.answer = None

    async def _serve(self, reader, writer):
        try:
            head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode("latin-1")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head.split("\r\n")[1:])}
            self.asked.append(headers.get("x-original-uri", ""))
            status = self.answer or (204 if COOKIE in headers.get("cookie", "").split("; ") else 401)
            writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the proxy has gone and waits for no answer
        finally:
            writer.close()
