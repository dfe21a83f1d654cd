// The browser's clients; bundled into the page that browser.py serves. window.sluice.start(client, url, names) opens a stream.
import { viaEventSource, viaFetch } from "./start.mjs";
import { createParser } from "eventsource-parser";
import { fetchEventSource } from "@microsoft/fetch-event-source";
import { EventSourcePolyfill } from "event-source-polyfill";
import ReconnectingEventSource from "reconnecting-eventsource";
import { EventSource as ExtendedEventSource } from "extended-eventsource";
import { SSE } from "sse.js";

const report = (t, more) => window.report({ t, ...more });
const out = {
  open: () => report("open"),
  event: (e) => report("event", e),
  error: (message) => report("error", { message }),
  close: (message) => report("close", { message }),
};

/** The example of its README: what is fatal, what is tried again. */
function microsoft(url) {
  class Fatal extends Error {}
  fetchEventSource(url, {
    openWhenHidden: true,
    async onopen(response) {
      if (response.ok && response.headers.get("content-type") === "text/event-stream") return out.open();
      if (response.status >= 400 && response.status < 500 && response.status !== 429) throw new Fatal(`status ${response.status}`);
      throw new Error(`status ${response.status}`);
    },
    onmessage: (e) => out.event({ id: e.id, event: e.event || "message", data: e.data }),
    onclose() {
      throw new Error("closed by the server");
    },
    onerror(error) {
      if (error instanceof Fatal) throw error;
      out.error(String(error));
    },
  }).catch((error) => out.close(String(error)));
}

/** Its events carry `id`; its `error` event carries `responseCode`. */
function sse(url, names) {
  const source = new SSE(url, { autoReconnect: true });
  for (const name of ["message", ...names]) source.addEventListener(name, (e) => out.event({ id: e.lastEventId, event: e.type, data: e.data }));
  source.addEventListener("open", out.open);
  source.addEventListener("error", (e) => out.error(`status ${e.responseCode}`));
}

const start = {
  EventSource: (url, names) => viaEventSource(new EventSource(url), names, out),
  "EventSource with credentials": (url, names) => viaEventSource(new EventSource(url, { withCredentials: true }), names, out),
  fetch: (url) => viaFetch(url, out, createParser),
  "@microsoft/fetch-event-source": microsoft,
  "event-source-polyfill": (url, names) => viaEventSource(new EventSourcePolyfill(url), names, out),
  "reconnecting-eventsource": (url, names) => viaEventSource(new ReconnectingEventSource(url), names, out),
  "extended-eventsource": (url, names) => viaEventSource(new ExtendedEventSource(url), names, out),
  "sse.js": sse,
};

/** A page that survives its reload: the cursor is kept in the tab's storage and handed over in the query. */
function reloadProof(url, names) {
  const kept = sessionStorage.getItem("cursor");
  const es = new EventSource(kept ? `${url}?last_event_id=${kept}` : url);
  const keep = (e) => e.lastEventId && sessionStorage.setItem("cursor", e.lastEventId);
  for (const name of ["message", ...names]) es.addEventListener(name, keep);
  viaEventSource(es, names, out);
}

window.sluice = { start: (client, url, names) => start[client](url, names), reloadProof };
