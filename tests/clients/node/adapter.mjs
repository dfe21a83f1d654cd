// adapter.mjs '{"client", "url", "names"}': runs one client until it is ended; prints what happens, one JSON object a line.
import { viaEventSource, viaFetch } from "./start.mjs";

const options = JSON.parse(process.argv[2]);
const print = (t, more) => process.stdout.write(JSON.stringify({ t, ...more }) + "\n");
const out = {
  open: () => print("open"),
  event: (e) => print("event", e),
  error: (message) => print("error", { message }),
  close: (message) => print("close", { message }),
};

const start = {
  eventsource: async (url, names) => viaEventSource(new (await import("eventsource")).EventSource(url), names, out),
  undici: async (url, names) => viaEventSource(new (await import("undici")).EventSource(url), names, out),
  "launchdarkly-eventsource": async (url, names) => viaEventSource(new (await import("launchdarkly-eventsource")).EventSource(url), names, out),
  "extended-eventsource": async (url, names) => viaEventSource(new (await import("extended-eventsource")).EventSource(url), names, out),
  "eventsource-client": async (url) =>
    (await import("eventsource-client")).createEventSource({
      url,
      onConnect: out.open,
      onMessage: (e) => out.event({ id: e.id, event: e.event ?? "message", data: e.data }),
      onScheduleReconnect: ({ delay }) => out.error(`reconnects in ${delay} ms`),
      onDisconnect: () => out.error("disconnected"),
    }),
  "eventsource-parser": async (url) => viaFetch(url, out, (await import("eventsource-parser")).createParser),
};

process.on("unhandledRejection", (error) => out.close(`unhandled: ${error}`));
await start[options.client](options.url, options.names);
// A client that has given up leaves nothing to wait for; the driver wants to see that it stays so.
setInterval(() => {}, 1000);
