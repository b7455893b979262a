// One answer as elements: labels as bars, the stages of the request, the curl line that repeats it.

import { element, find, percent } from "./elements.js";

const STAGES = ["decode", "queue", "inference", "respond"];

export function bars(predictions) {
  return element("ol", { className: "predictions" }, ...predictions.map(({ label, probability }) => {
    const bar = element("span", { className: "bar" });
    bar.style.setProperty("--share", probability);
    return element("li", {},
      element("span", { className: "label" }, label),
      element("span", { className: "probability" }, percent(probability)),
      bar);
  }));
}

// A stacked bar of the stages, in milliseconds; what is neither of them is the rest of the total.
export function stacked(stages) {
  const known = STAGES.filter((name) => name in stages).map((name) => [name, stages[name]]);
  const rest = stages.total - known.reduce((sum, [, ms]) => sum + ms, 0);
  const parts = [...known, ["other", Math.max(0, rest)]];
  const bar = element("div", { className: "stages" }, ...parts.map(([name, ms]) => {
    const part = element("span", { className: `stage ${name}` });
    part.style.flexGrow = ms;
    return part;
  }));
  bar.setAttribute("aria-hidden", "true");
  const legend = element("ul", { className: "legend" }, ...parts.map(([name, ms]) =>
    element("li", { className: name }, `${name} ${milliseconds(ms)}`)));
  return element("div", { className: "timing" },
    element("p", {}, `${milliseconds(stages.total)} in the server`), bar, legend);
}

const milliseconds = (ms) => `${ms < 10 ? ms.toFixed(2) : ms.toFixed(0)} ms`;

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// The command that sends the same image and question from a shell; a key is left to a variable of that shell.
export function curlLine(name, path, withKey) {
  const key = withKey ? ' -H "X-API-Key: $API_KEY"' : "";
  return `curl${key} -F ${quoted(`file=@"${name.replace(/["\\]/g, "\\$&")}"`)} ${quoted(location.origin + path)}`;
}

function saved(file) {
  const href = URL.createObjectURL(file);
  element("a", { href, download: file.name }).click();
  URL.revokeObjectURL(href);
}

// Without HTTPS a page has no clipboard: the line is then selected, for the person to copy.
async function copied(line, command) {
  try {
    await navigator.clipboard.writeText(line);
    return true;
  } catch {
    getSelection().selectAllChildren(command);
    return false;
  }
}

// The line with a button that copies it, and the image itself where it is on nobody's disk.
export function curl(file, path, withKey, made) {
  const line = curlLine(file.name, path, withKey);
  const button = element("button", { type: "button", className: "quiet" }, "Copy");
  let wordGoes;
  button.setAttribute("aria-label", "Copy the curl line");
  button.addEventListener("click", async () => {
    button.textContent = await copied(line, command) ? "Copied" : "Selected";
    find("spoken").textContent = button.textContent;
    clearTimeout(wordGoes);
    wordGoes = setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  const command = element("pre", {}, element("code", {}, line));
  command.tabIndex = 0;
  command.setAttribute("role", "group");
  command.setAttribute("aria-label", "The curl line");
  const row = element("div", { className: "curl" }, command, button);
  if (made) {
    const save = element("button", { type: "button", className: "quiet" }, "Save image");
    save.addEventListener("click", () => saved(file));
    row.append(save);
  }
  return row;
}
