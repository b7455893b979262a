// What the page asks of the service, and how a refusal comes back.

export class Problem extends Error {
  constructor({ status, code, detail, retryAfter = null }) {
    super(detail);
    Object.assign(this, { status, code, detail, retryAfter });
  }
}

// Kept in this page's memory only: neither in the address nor in the browser's storage.
let key = "";

export const setKey = (value) => { key = value; };
export const hasKey = () => key !== "";

async function request(path, options = {}) {
  const headers = { ...options.headers, ...(key && { "X-API-Key": key }) };
  try {
    return await fetch(path, { cache: "no-store", ...options, headers });
  } catch {
    throw new Problem({ status: 0, code: "unreachable", detail: "The server does not answer." });
  }
}

async function refusal(response) {
  const problem = await response.json().catch(() => ({}));
  return new Problem({
    status: response.status,
    code: problem.code ?? `http_${response.status}`,
    detail: problem.detail ?? response.statusText,
    retryAfter: response.headers.get("Retry-After"),
  });
}

async function ask(path, options) {
  const response = await request(path, options);
  if (!response.ok) throw await refusal(response);
  return response;
}

// The versions in service, highest first: [{ name, version, device, card, … }].
export async function readyVersions() {
  const { models } = await (await ask("/models")).json();
  return models.flatMap((model) => model.versions
    .filter((each) => each.state === "ready")
    .map((each) => ({ name: model.name, ...each }))
    .sort((one, other) => other.version - one.version));
}

// To fetch, a folder or a file that changed after it was chosen looks like a server that is gone.
async function requireReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Problem({ status: 0, code: "unreadable_file", detail: "" });
  }
}

// One image (a File) for one version: the answer, and the stages of Server-Timing in milliseconds.
export async function classify(file, path) {
  await requireReadable(file);
  const headers = { "Content-Type": file.type || "application/octet-stream" };
  const response = await ask(path, { method: "POST", body: file, headers });
  return { answer: await response.json(), stages: timing(response.headers.get("Server-Timing") ?? "") };
}

function timing(header) {
  return Object.fromEntries([...header.matchAll(/([a-z]+);dur=([0-9.]+)/g)].map(([, name, ms]) => [name, Number(ms)]));
}

export const metrics = async () => (await ask("/metrics")).text();

// The phase of /health/ready: "ready", "loading", "draining", …; "unreachable" when nobody answers.
export async function phase() {
  try {
    return (await (await request("/health/ready")).json()).phase;
  } catch {
    return "unreachable";
  }
}
