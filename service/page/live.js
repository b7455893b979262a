// Requests a second, p50, p99 and the size of batches, each between two looks at /metrics.

import { find, shape } from "./elements.js";
import { metrics, Problem } from "./server.js";

const EVERY_MS = 2000;
const KEPT = 60;
const LINE = /^(\w+)(?:\{([^}]*)\})? (\S+)/;
const BOUND = /le="([^"]+)"/;

const rates = [];
let before = null;

// What is needed of Prometheus' text: the requests, the buckets of their seconds, and the batches.
export function parse(text) {
  const found = { requests: 0, buckets: [], batches: 0, images: 0 };
  for (const line of text.split("\n")) {
    const [, name, labels, number] = line.match(LINE) ?? [];
    const value = Number(number);
    if (name === "classify_requests_total") found.requests += value;
    if (name === "classify_request_seconds_bucket") {
      found.buckets.push({ bound: Number(labels.match(BOUND)[1].replace("+Inf", "Infinity")), count: value });
    }
    if (name === "classify_batch_size_count") found.batches = value;
    if (name === "classify_batch_size_sum") found.images = value;
  }
  return found;
}

// As Prometheus' histogram_quantile: linear within the bucket, and the last finite bound for what is past it.
export function quantile(share, buckets) {
  const total = buckets.at(-1)?.count ?? 0;
  if (!total) return NaN;
  const at = buckets.findIndex(({ count }) => count >= share * total);
  const below = at ? buckets[at - 1] : { bound: 0, count: 0 };
  const { bound, count } = buckets[at];
  if (bound === Infinity) return below.bound;
  return below.bound + (bound - below.bound) * (share * total - below.count) / (count - below.count || 1);
}

export function between(earlier, later, seconds) {
  const buckets = later.buckets.map(({ bound, count }, at) => ({ bound, count: count - earlier.buckets[at].count }));
  const batches = later.batches - earlier.batches;
  return {
    rate: (later.requests - earlier.requests) / seconds,
    p50: quantile(0.5, buckets),
    p99: quantile(0.99, buckets),
    batch: batches ? (later.images - earlier.images) / batches : NaN,
  };
}

export function watchMetrics() {
  setInterval(() => { if (!document.hidden) look(); }, EVERY_MS);
  look();
}

async function look() {
  try {
    const now = { at: performance.now(), ...parse(await metrics()) };
    const restarted = before && now.requests < before.requests;
    if (before && !restarted) show(between(before, now, (now.at - before.at) / 1000));
    before = now;
    find("no-metrics").textContent = "";
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    before = null;
    find("no-metrics").textContent = why(error);
  }
}

function why({ status }) {
  if (status === 404) return "This server shows its metrics on another port.";
  return "There are no figures while the server does not answer.";
}

function show({ rate, p50, p99, batch }) {
  const number = (value, digits, unit) => (Number.isNaN(value) ? "–" : `${value.toFixed(digits)}${unit}`);
  find("rate").textContent = number(rate, rate < 10 ? 1 : 0, "");
  find("p50").textContent = number(p50 * 1000, 1, " ms");
  find("p99").textContent = number(p99 * 1000, 1, " ms");
  find("batch").textContent = number(batch, 1, "");
  rates.push(rate);
  if (rates.length > KEPT) rates.shift();
  draw();
}

function draw() {
  const most = Math.max(1, ...rates);
  const points = rates.map((rate, at) => `${(KEPT - rates.length + at) * 100 / (KEPT - 1)},${30 - 28 * rate / most}`);
  find("rates").replaceChildren(shape("polyline", { points: points.join(" ") }));
}
