// How an application uses each client. `start[name](url, names, out)` opens a stream and reports through `out`:
// open(), event({id, event, data}), error(message), close(message) when the client has given up for good.
// Settings are the client's defaults, but for those that its own documentation asks for; a comment names them.
// The same file runs in Node.js and, bundled, in the browser.

/** For clients with the interface of EventSource: what a page does with it. */
export function viaEventSource(es, names, out) {
  const event = (e) => out.event({ id: e.lastEventId, event: e.type, data: e.data });
  for (const name of ["message", ...names]) es.addEventListener(name, event);
  es.onopen = () => out.open();
  es.onerror = (e) => {
    out.error(`${e?.message ?? e?.status ?? "error"} (state ${es.readyState})`);
    if (es.readyState === 2) out.close("readyState is CLOSED");
  };
}

/** For parsers: fetch, and the reconnection that an application writes around it (WHATWG HTML 9.2.3). */
export async function viaFetch(url, out, createParser) {
  let [cursor, retry] = ["", 3000];
  const parser = createParser({
    onEvent: (e) => {
      if (e.id) cursor = e.id;
      out.event({ id: e.id ?? cursor, event: e.event || "message", data: e.data });
    },
    onRetry: (ms) => (retry = ms),
  });
  for (;;) {
    try {
      const response = await fetch(url, { headers: { Accept: "text/event-stream", ...(cursor && { "Last-Event-ID": cursor }) } });
      if (response.status !== 200) return out.close(`status ${response.status}`);
      out.open();
      parser.reset();
      const decoder = new TextDecoder();
      const reader = response.body.getReader();
      for (let part; !(part = await reader.read()).done; ) parser.feed(decoder.decode(part.value, { stream: true }));
      out.error("the stream ended");
    } catch (error) {
      out.error(String(error));
    }
    await new Promise((done) => setTimeout(done, retry));
  }
}
