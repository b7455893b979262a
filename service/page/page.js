// The page to try a model in: what a person does here, and what follows from it.

import { showArchitecture } from "./architecture.js";
import { enableCamera } from "./camera.js";
import { areDigits, enableDrawing } from "./drawing.js";
import { find } from "./elements.js";
import { add, askAgain, clear, Shot } from "./gallery.js";
import { watchMetrics } from "./live.js";
import { chosen, offer, offerVersions, showFacts } from "./models.js";
import { inWords } from "./problems.js";
import { phase, Problem, readyVersions, setKey } from "./server.js";

const POLL_MS = 2000;
// What is served changes seldom: it is asked for with every third look at the state.
const LOOKS = 3;
const PHASES = {
  ready: "Ready",
  draining: "Shutting down",
  unreachable: "No answer; trying again",
};

// The question about an image, made when its turn has come: the path, and the version that is asked.
function question() {
  const version = chosen();
  if (!version) throw new Problem({ status: 0, code: "nothing_served", detail: "" });
  const query = new URLSearchParams({ model: version.name, version: version.version });
  if (find("explain").checked && !find("explain").disabled) query.set("explain", "cam");
  return { path: `/classify?${query}`, version };
}

function take(files) {
  for (const file of files) add(new Shot(file), question);
}

let sketch = null;

function takeDrawing(file) {
  if (sketch?.card.isConnected) {
    sketch.replace(file, question);
  } else {
    sketch = new Shot(file, { made: true });
    add(sketch, question);
  }
}

function showChosen() {
  const version = chosen();
  for (const id of ["choices", "about", "architecture"]) find(id).hidden = !version;
  if (!version) return;
  find("explain").disabled = !version.explains;
  find("draw").hidden = !areDigits(version.card.labels);
  showFacts(version);
  showArchitecture(version);
}

let served = "";

async function load() {
  try {
    const found = await readyVersions();
    find("key-form").hidden = true;
    find("problem").replaceChildren();
    const text = JSON.stringify(found);
    if (text === served) return;
    served = text;
    offer(found);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    find("key-form").hidden = error.code !== "unauthorized";
    find("problem").replaceChildren(inWords(error));
  }
  showChosen();
}

let last = "";
let looks = 0;

// The state of the server; what it serves is read again when it has become ready, and now and then, as models come and go.
// Who is asked for a key is not told so anew.
async function watch() {
  const now = await phase();
  const changed = now !== last;
  if (changed) {
    find("state").textContent = PHASES[now] ?? `Loading: ${now}`;
    find("state").className = now;
    last = now;
  }
  looks += 1;
  const due = changed || (looks % LOOKS === 0 && find("key-form").hidden);
  if (now === "ready" && due) await load();
  setTimeout(watch, POLL_MS);
}

find("model").addEventListener("change", () => { offerVersions(); showChosen(); askAgain(question); });
find("version").addEventListener("change", () => { showChosen(); askAgain(question); });
find("explain").addEventListener("change", () => askAgain(question));
find("clear").addEventListener("click", clear);
find("image").addEventListener("change", () => { take(find("image").files); find("image").value = ""; });
find("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  setKey(find("key").value);
  await load();
  if (!chosen()) return;
  find("key").value = "";
  find("image").focus();
  askAgain(question);
});

document.addEventListener("paste", (event) => take(event.clipboardData.files));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    find("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files);
  });
}

enableDrawing(takeDrawing);
enableCamera((file) => add(new Shot(file, { made: true }), question));
watchMetrics();
watch();
