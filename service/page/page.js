// The page to try a model in: sends the chosen image to POST /classify and shows the answer.

const find = (id) => document.getElementById(id);

function element(tag, properties = {}) {
  return Object.assign(document.createElement(tag), properties);
}

async function showModels() {
  const response = await fetch("/models");
  const { models } = await response.json();
  const ready = models.flatMap((model) =>
    model.versions.filter((each) => each.state === "ready").map((each) => ({ name: model.name, ...each })));
  find("model").replaceChildren(...ready.map((each) =>
    element("option", { value: `model=${encodeURIComponent(each.name)}&version=${each.version}`,
                        textContent: `${each.name} version ${each.version}` })));
  find("served").textContent = ready.length
    ? ready.map((each) => `${each.name} version ${each.version}: ${each.card.architecture} in ${each.card.precision}, ${each.card.labels.length} classes, on ${each.device}`).join("; ")
    : "No model is ready yet; reload the page in a moment.";
}

function showEvidence(explanation) {
  find("evidence").hidden = !explanation;
  if (!explanation) return;
  const { label, logit, bias, overlay } = explanation;
  find("overlay").src = overlay;
  find("overlay").alt = `Where the evidence for ${label} lies`;
  find("explained").textContent = `evidence for ${label}: mean ${(logit - bias).toFixed(2)}, bias ${bias.toFixed(2)}, logit ${logit.toFixed(2)}`;
}

function showAnswer(file, answer, timing, path) {
  find("answer").hidden = false;
  URL.revokeObjectURL(find("preview").src);
  find("preview").src = URL.createObjectURL(file);
  find("predictions").replaceChildren(...answer.predictions.map(({ label, probability }) => {
    const line = element("li");
    line.append(
      element("span", { className: "label", textContent: label }),
      element("meter", { value: probability, title: `${label}: ${probability}` }),
      element("span", { className: "probability", textContent: `${(probability * 100).toFixed(1)} %` }));
    return line;
  }));
  showEvidence(answer.explanation);
  find("timing").textContent = timing.replaceAll(";dur=", " ").replaceAll(",", " ms,") + " ms";
  find("curl").textContent = `curl -F 'file=@${file.name.replaceAll("'", "'\\''")}' '${location.origin}${path}'`;
}

let chosen = null;

async function classify(file) {
  chosen = file;
  const path = `/classify?${find("model").value}${find("explain").checked ? "&explain=cam" : ""}`;
  find("problem").textContent = "";
  try {
    const response = await fetch(path, { method: "POST", body: file, headers: { "Content-Type": file.type || "application/octet-stream" } });
    const answer = await response.json();
    if (response.ok) {
      showAnswer(file, answer, response.headers.get("Server-Timing"), path);
    } else {
      find("problem").textContent = `${answer.title}: ${answer.detail} (${answer.code})`;
    }
  } catch {
    find("problem").textContent = "The server does not answer. Is it running?";
  }
}

function take(files) {
  const image = [...files].find((each) => each.type.startsWith("image/")) ?? files[0];
  if (image) classify(image);
}

for (const id of ["explain", "model"]) {
  find(id).addEventListener("change", () => { if (chosen) classify(chosen); });
}
find("image").addEventListener("change", (event) => take(event.target.files));
document.addEventListener("paste", (event) => take(event.clipboardData.files));
for (const kind of ["dragover", "dragleave", "drop"]) {
  find("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    find("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files);
  });
}
showModels().catch(() => { find("served").textContent = "The server does not answer. Is it running?"; });
