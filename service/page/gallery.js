// The images that were asked about, the newest first: each has a card of its own, and fails alone.

import { bars, curl, stacked } from "./answer.js";
import { element, find, percent } from "./elements.js";
import { view } from "./evidence.js";
import { inWords } from "./problems.js";
import { classify, hasKey, Problem } from "./server.js";

const AT_ONCE = 4;
const KEPT = 24;

const signed = (number) => number.toFixed(2).replace("-", "−");

const waiting = [];
let running = 0;

// Take up to AT_ONCE images at a time, so that a folder of photographs does not fill the server's queue.
function next() {
  while (running < AT_ONCE && waiting.length) {
    running += 1;
    waiting.shift()().finally(() => { running -= 1; next(); });
  }
}

export class Shot {
  // `made`: the image was drawn or photographed here, and is on nobody's disk.
  constructor(file, { made = false } = {}) {
    this.file = file;
    this.made = made;
    this.opacity = 0.5;
    this.asked = 0;
    this.card = element("article", { className: "shot" }, element("h3", {}, file.name), element("p", {}, "Waiting…"));
    this.card.setAttribute("aria-label", file.name);
    this.card.tabIndex = -1;
    this.card.shot = this;
  }

  // Ask about the image; `question` gives the version that is chosen when its turn has come.
  ask(question) {
    this.card.setAttribute("aria-busy", "true");
    this.asked += 1;
    const number = this.asked;
    waiting.push(() => this.#ask(question, number));
    next();
  }

  replace(file, question) {
    this.file = file;
    this.ask(question);
  }

  // What a later question has overtaken is not shown: the answers may come in another order.
  async #ask(question, number) {
    const { file } = this;
    try {
      const { path, version } = question();
      const { answer, stages } = await classify(file, path);
      const image = await createImageBitmap(file).catch(() => null);
      if (number === this.asked) this.#show(answer, stages, path, image, version.card.preprocessing);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (number === this.asked) this.#refuse(error, question);
    } finally {
      if (number === this.asked) this.card.removeAttribute("aria-busy");
    }
  }

  #show(answer, stages, path, image, recipe) {
    const { predictions, explanation } = answer;
    const [best] = predictions;
    const title = element("h3", {}, best.label, " ", element("span", { className: "sure" }, percent(best.probability)));
    const about = element("p", { className: "about" }, `${this.file.name} · ${answer.model} version ${answer.version}`);
    const picture = image ? this.#picture(image, recipe, explanation) : element("div", { className: "picture" });
    this.#fill(picture,
      element("div", { className: "said" }, title, about, bars(predictions), stacked(stages)),
      curl(this.file, path, hasKey(), this.made));
    find("spoken").textContent = `${this.file.name}: ${best.label}, ${percent(best.probability)}`;
  }

  // A button that was pressed goes with what it was in; who uses the keyboard stays at the card.
  #fill(...content) {
    const focused = this.card.contains(document.activeElement);
    this.card.replaceChildren(...content);
    if (focused) this.card.focus();
  }

  #picture(image, recipe, explanation) {
    const { canvas, show } = view(image, recipe, this.file.name);
    const picture = element("div", { className: "picture" }, canvas);
    if (!explanation) return picture;
    const slider = element("input", { type: "range", min: 0, max: 100, value: this.opacity * 100 });
    const { label, logit, bias } = explanation;
    picture.append(
      element("label", { className: "slider" }, `Evidence for ${label}`, slider),
      element("p", { className: "sum" },
        `mean of the map ${signed(logit - bias)} + bias ${signed(bias)} = logit ${signed(logit)}`));
    slider.addEventListener("input", () => {
      this.opacity = slider.value / 100;
      show(explanation, this.opacity);
    });
    show(explanation, this.opacity);
    return picture;
  }

  #refuse(problem, question) {
    const again = element("button", { type: "button" }, "Try again");
    again.addEventListener("click", () => this.ask(question));
    this.#fill(element("h3", {}, this.file.name), inWords(problem), again);
    find("spoken").textContent = `${this.file.name}: ${problem.detail}`;
    if (problem.code === "unauthorized") find("key-form").hidden = false;
  }
}

export function add(shot, question) {
  const gallery = find("gallery");
  find("answers").hidden = false;
  gallery.prepend(shot.card);
  while (gallery.childElementCount > KEPT) gallery.lastElementChild.remove();
  shot.ask(question);
}

// Ask about everything again: another version was chosen, or another question.
export function askAgain(question) {
  for (const card of find("gallery").children) card.shot.ask(question);
}

export function clear() {
  find("gallery").replaceChildren();
  find("answers").hidden = true;
  find("image").focus();
}
