// The console of one data-plane pod. It shows what the admin listener tells and reads channels as any subscriber does.
// Everything from outside reaches the page as text, never as markup.

const PERIOD = 1000; // ms between two looks
const POINTS = 120; // of the chart: two minutes
const TAIL = 300; // events kept on the page
const SUBSCRIBERS = 100; // rows asked for
const $ = (id) => document.getElementById(id);
const NS = "http://www.w3.org/2000/svg";

const histories = new Map(); // channel → {last, delivered, at, points: [{in, out}]}
let selected = location.hash.slice(1);
let channels = [];
let tail = null; // the stream that is followed
let paused = false;

function element(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const number = (n) => (n < 10_000 ? String(Math.round(n * 10) / 10) : compact.format(n));
function duration(ms) {
  const s = ms / 1000;
  if (s < 60) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
  return s < 3600 ? `${Math.floor(s / 60)} min` : `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

async function json(path) {
  const response = await fetch(path, { signal: AbortSignal.timeout(5000), cache: "no-store" });
  if (!response.ok) throw new Error(`${path} answered ${response.status}`);
  return response.json();
}

function remember(channel, now) {
  let known = histories.get(channel.name);
  // A new epoch counts from the start again: a rate over the change would be nonsense.
  if (!known || known.epoch !== channel.epoch) {
    known = { epoch: channel.epoch, points: known?.points ?? [] };
    histories.set(channel.name, known);
  } else {
    const seconds = (now - known.at) / 1000;
    known.points.push({
      in: Math.max(0, channel.last - known.last) / seconds,
      out: Math.max(0, channel.delivered - known.delivered) / seconds,
    });
    if (known.points.length > POINTS) known.points.shift();
  }
  Object.assign(known, { last: channel.last, delivered: channel.delivered, at: now });
  return known;
}

function polyline(points, key, width, height, most, className) {
  const line = document.createElementNS(NS, "polyline");
  const step = width / (POINTS - 1);
  const start = POINTS - points.length;
  const at = points.map((p, i) => `${((start + i) * step).toFixed(1)},${(height - 2 - (p[key] / most) * (height - 8)).toFixed(1)}`);
  line.setAttribute("points", at.join(" "));
  line.setAttribute("class", className);
  return line;
}

function spark(points) {
  const svg = document.createElementNS(NS, "svg");
  svg.setAttribute("viewBox", "0 0 200 22");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  svg.append(polyline(points, "in", 200, 22, Math.max(1, ...points.map((p) => p.in)), "in"));
  return svg;
}

function drawChart(points) {
  const [width, height] = [600, 140];
  const most = Math.max(1, ...points.map((p) => Math.max(p.in, p.out)));
  const parts = [0.5, 1].map((share) => {
    const grid = document.createElementNS(NS, "line");
    const y = height - 2 - share * (height - 8);
    for (const [k, v] of [["x1", 0], ["x2", width], ["y1", y], ["y2", y]]) grid.setAttribute(k, v);
    return grid;
  });
  const stored = polyline(points, "in", width, height, most, "in");
  const area = document.createElementNS(NS, "polygon");
  if (points.length > 1) {
    const left = ((POINTS - points.length) * width) / (POINTS - 1);
    area.setAttribute("points", `${left},${height} ${stored.getAttribute("points")} ${width},${height}`);
  }
  $("chart").replaceChildren(...parts, area, polyline(points, "out", width, height, most, "out"), stored);
  $("peak").textContent = `${number(most)}/s`;
}

function pill(node, text, kind) {
  node.textContent = text;
  node.className = `pill ${kind}`;
}

function drawChannels() {
  const list = channels.map((channel) => {
    const item = element("li");
    const button = element("button");
    button.type = "button";
    button.setAttribute("aria-current", String(channel.name === selected));
    const points = histories.get(channel.name)?.points ?? [];
    button.append(
      element("b", "", channel.name),
      element("small", "", `${number(points.at(-1)?.in ?? 0)}/s`),
      element("small", "", channel.namespace),
      element("small", "", `${number(channel.connections)} subscriber${channel.connections === 1 ? "" : "s"}`),
      spark(points),
    );
    button.addEventListener("click", () => select(channel.name));
    item.append(button);
    return item;
  });
  // Keep the keyboard where it was over the redraw.
  const focused = [...$("channels").querySelectorAll("button")].indexOf(document.activeElement);
  $("channels").replaceChildren(...list);
  if (focused >= 0) $("channels").querySelectorAll("button")[focused]?.focus();
  $("no-channels").hidden = channels.length > 0;
}

function drawDetail() {
  const channel = channels.find((c) => c.name === selected);
  $("detail").hidden = !channel;
  if (!channel) return;
  const { points } = histories.get(channel.name);
  $("name").textContent = channel.name;
  $("url").textContent = `/channels/${channel.name}`;
  pill($("reader"), channel.error ?? channel.reader, channel.error ? "bad" : channel.reader === "Tailing" ? "ok" : "warn");
  $("rate-in").textContent = number(points.at(-1)?.in ?? 0);
  $("rate-out").textContent = number(points.at(-1)?.out ?? 0);
  $("connections").textContent = number(channel.connections);
  $("kept").textContent = number(Math.max(0, channel.last - channel.first + 1));
  $("cursor").textContent = channel.epoch ? `${channel.epoch}-${channel.last}` : "–";
  $("cursor").title = $("cursor").textContent;
  $("publish-form").hidden = !channel.publish;
  $("publish-off").hidden = channel.publish;
  $("nats-command").textContent = `nats pub '${channel.topicPrefix}TOPIC' 'DATA'`;
  drawChart(points);
}

function drawSubscribers(rows, total) {
  $("subscribers").replaceChildren(
    ...rows.map((s) => {
      const row = element("tr");
      row.append(
        element("td", "", s.peer), element("td", "", s.state), element("td", "", s.cursor ?? "–"), element("td", "num", s.lag ?? "–"),
        element("td", "num", duration(s.age_ms)), element("td", "num", s.blocked_ms ? duration(s.blocked_ms) : "–"), element("td", "", s.filter || "every topic"),
      );
      return row;
    }),
  );
  $("subscribers-note").textContent = total > rows.length ? `the ${rows.length} furthest behind of ${number(total)}` : "";
}

// One event as the WHATWG standard, section 9.2.6, reads it: `fetch` and not EventSource, which shows only the event names it was told of.
async function* read(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let [rest, event] = ["", { id: "", event: "message", data: [] }];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (event.data.length) yield { ...event, data: event.data.join("\n") };
        event = { id: "", event: "message", data: [] };
        continue;
      }
      const colon = line.indexOf(":");
      const [field, text] = colon < 0 ? [line, ""] : [line.slice(0, colon), line.slice(colon + 1).replace(/^ /, "")];
      if (field === "data") event.data.push(text);
      else if (field === "id" || field === "event") event[field] = text;
    }
  }
}

function show(event) {
  const own = event.event.startsWith("channel.");
  let [topic, data] = ["", event.data];
  if (!own) {
    try {
      const envelope = JSON.parse(event.data);
      topic = envelope.topic;
      data = typeof envelope.data === "string" ? envelope.data : JSON.stringify(envelope.data);
    } catch {
      // Not an envelope: shown as it came.
    }
  }
  const item = element("li", own ? "own" : "");
  item.append(element("span", "id", event.id), element("span", "topic", topic), element("span", "event", event.event), element("span", "data", data));
  item.title = data.slice(0, 4000);
  $("tail").prepend(item);
  while ($("tail").childElementCount > TAIL) $("tail").lastElementChild.remove();
}

function startParameters() {
  const [start, topic] = [$("start").value, $("filter").value.trim()];
  const query = new URLSearchParams(start.includes("=") ? start : { from: start });
  for (const one of topic.split(/[\s,]+/).filter(Boolean)) query.append("topic", one);
  query.set("envelope", "json");
  return query;
}

// Follows the channel as a subscriber; comes back with the last cursor when the stream ends.
async function follow() {
  tail?.abort();
  const mine = (tail = new AbortController());
  const [name, query] = [selected, startParameters()];
  let cursor = "";
  $("tail").replaceChildren();
  const say = (text, bad) => {
    $("tail-state").textContent = text;
    $("tail-state").className = bad ? "hint bad" : "hint";
  };
  while (!mine.signal.aborted) {
    try {
      say("connecting …");
      const headers = { accept: "text/event-stream", ...(cursor && { "last-event-id": cursor }) };
      const response = await fetch(`channels/${encodeURIComponent(name)}?${query}`, { headers, signal: mine.signal, cache: "no-store" });
      if (response.status === 204) return say("the channel was removed");
      if (!response.ok) {
        const problem = await response.json().catch(() => ({}));
        return say(problem.detail ?? `the channel answered ${response.status}`, true);
      }
      say("following");
      for await (const event of read(response)) {
        if (mine.signal.aborted) return;
        if (event.id) cursor = event.id;
        if (event.event === "channel.cursor") continue;
        while (paused && !mine.signal.aborted) await new Promise((done) => setTimeout(done, 100));
        show(event);
      }
      say("the stream ended; coming back …");
    } catch (error) {
      if (mine.signal.aborted) return;
      say(`${error.message}; coming back …`, true);
    }
    await new Promise((done) => setTimeout(done, 1500));
  }
}

function select(name) {
  selected = name;
  history.replaceState(null, "", `#${name}`);
  drawChannels();
  drawDetail();
  follow();
}

async function publish(submitted) {
  submitted.preventDefault();
  const say = (text, bad) => {
    $("publish-result").textContent = text;
    $("publish-result").className = bad ? "bad" : "";
  };
  const topic = $("publish-topic").value.trim().split("/").map(encodeURIComponent).join("/");
  const event = $("publish-event").value.trim();
  try {
    const response = await fetch(`channels/${encodeURIComponent(selected)}/${topic}`, {
      method: "POST",
      headers: { "content-type": "text/plain; charset=utf-8", ...(event && { "event-name": event }) },
      body: $("publish-data").value,
      signal: AbortSignal.timeout(10_000),
    });
    if (response.ok) return say(`stored as ${response.headers.get("event-cursor")}`);
    const problem = await response.json().catch(() => ({}));
    say(problem.detail ?? `refused with ${response.status}`, true);
  } catch (error) {
    say(error.message, true);
  }
}

async function look() {
  try {
    const pod = await json("debug/channels");
    const now = performance.now();
    $("instance").textContent = pod.instance;
    $("version").textContent = `version ${pod.version}`;
    pill($("phase"), pod.phase, pod.phase === "Ready" ? "ok" : "warn");
    channels = pod.channels;
    for (const channel of channels) remember(channel, now);
    if (!channels.some((c) => c.name === selected) && channels.length) select(channels[0].name);
    else if (selected && !tail) follow();
    drawChannels();
    drawDetail();
    if (selected) {
      const { subscribers, total } = await json(`debug/subscribers?channel=${encodeURIComponent(selected)}&limit=${SUBSCRIBERS}`);
      drawSubscribers(subscribers, total);
    }
    $("trouble").hidden = true;
  } catch (error) {
    pill($("phase"), "unreachable", "bad");
    $("trouble").textContent = `The pod does not answer: ${error.message}. Trying again each second.`;
    $("trouble").hidden = false;
  }
  setTimeout(look, PERIOD);
}

$("tail-form").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  follow();
});
$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  $("pause").textContent = paused ? "Go on" : "Pause";
});
$("publish-form").addEventListener("submit", publish);
addEventListener("hashchange", () => location.hash.slice(1) !== selected && select(location.hash.slice(1)));
look();
