// The network as in the paper's figure 3: its stages in the order of the computation, with their shortcuts.
//
// Equal blocks that follow each other are drawn once, with their number. A dotted arc changes the dimensions; a solid one
// keeps them, as an identity or, with option C, as a projection.

import { element, find, shape } from "./elements.js";

// Six stages fit beside each other on a page of 1280 pixels.
const BOX = { width: 132, height: 26, gap: 10 };
const PAD = 1;
const BLOCK_GAP = 22;
const ARC = 26;
const COUNT_WIDTH = 38;

const SHORTCUTS = {
  identity: "an identity shortcut",
  zero_padding: "a shortcut that subsamples and pads with zeros",
  projection: "a shortcut with a 1×1 projection",
};

function words({ kind, kernel, channels, stride }) {
  const halving = stride > 1 ? `, /${stride}` : "";
  if (kind === "conv") return `${kernel}×${kernel} conv, ${channels}${halving}`;
  if (kind === "max_pool") return `${kernel}×${kernel} max pool${halving}`;
  if (kind === "avg_pool") return "global avg pool";
  return `fc, ${channels}`;
}

// The card folds equal blocks, and with option C the first of them may widen what the others keep.
function unfolded(blocks, entering) {
  let channels = entering;
  return blocks.flatMap((block) => {
    const halves = block.layers.some(({ stride }) => stride > 1);
    const leaving = block.layers.at(-1).channels;
    const widens = leaving !== channels;
    channels = leaving;
    if (halves || !widens || block.count === 1) return [{ ...block, changes: halves || widens }];
    return [{ ...block, count: 1, changes: true }, { ...block, count: block.count - 1, changes: false }];
  });
}

function described({ name, blocks, output }) {
  const parts = blocks.map(({ count, layers, shortcut }) =>
    `${count} × (${layers.map(words).join("; ")})${shortcut ? ` with ${SHORTCUTS[shortcut]}` : ""}`);
  return `${name}, ${output.join("×")}: ${parts.join(", then ")}`;
}

function layerBox(layer, top) {
  const middle = { x: PAD + BOX.width / 2, y: top + BOX.height / 2 };
  return [
    shape("rect", { class: layer.kind, x: PAD, y: top, width: BOX.width, height: BOX.height, rx: 5 }),
    shape("text", { x: middle.x, y: middle.y, "text-anchor": "middle", "dominant-baseline": "central" }, words(layer)),
  ];
}

function arc(changes, top, bottom) {
  const x = PAD + BOX.width / 2;
  const right = PAD + BOX.width + ARC;
  const [from, to] = [top - BLOCK_GAP / 2, bottom + BLOCK_GAP / 2 - 4];
  const bend = 12;
  const path = `M${x} ${from} H${right - bend} Q${right} ${from} ${right} ${from + bend} V${to - bend} Q${right} ${to} ${right - bend} ${to} H${x + 5}`;
  return shape("path", { class: changes ? "shortcut changes" : "shortcut", d: path, "marker-end": "url(#arrow)" });
}

function stageDrawing(stage, entering) {
  const drawn = [];
  let y = BLOCK_GAP;
  for (const { count, layers, shortcut, changes } of unfolded(stage.blocks, entering)) {
    const top = y;
    for (const layer of layers) {
      drawn.push(...layerBox(layer, y));
      y += BOX.height + BOX.gap;
    }
    const bottom = y - BOX.gap;
    if (shortcut) drawn.push(arc(changes, top, bottom));
    if (count > 1) {
      const text = { class: "count", x: PAD + BOX.width + (shortcut ? ARC : 0) + 8, y: (top + bottom) / 2, "dominant-baseline": "central" };
      drawn.push(shape("text", text, `×${count}`));
    }
    y = bottom + BLOCK_GAP;
  }
  const middle = PAD + BOX.width / 2;
  const arcs = stage.blocks.some(({ shortcut }) => shortcut) ? ARC : 0;
  const counts = stage.blocks.some(({ count }) => count > 1) ? COUNT_WIDTH : 0;
  const width = PAD + BOX.width + arcs + (counts || PAD);
  const flow = shape("line", { class: "flow", x1: middle, y1: 0, x2: middle, y2: y });
  const drawing = shape("svg", { viewBox: `0 0 ${width} ${y}`, width, height: y, role: "img" }, flow, ...drawn);
  drawing.setAttribute("aria-label", described(stage));
  return drawing;
}

// The facts of a card, and the drawing where the card has a structure.
export function showArchitecture(version) {
  const { structure, architecture } = version.card;
  find("stages").replaceChildren(...(structure?.stages ?? []).map((stage, at, stages) => {
    const [channels, height, width] = stage.output;
    return element("li", {},
      element("h3", {}, stage.name), element("p", {}, `${channels} × ${height} × ${width}`),
      stageDrawing(stage, stages[at - 1]?.output[0]));
  }));
  find("arcs").hidden = !structure?.option;
  find("kept").textContent = structure?.option === "C" ? "projection" : "identity";
  find("structure").textContent = structure
    ? `${architecture}: ${structure.weight_layers} layers with weights, ${millions(structure.parameters)} parameters, `
      + `${millions(structure.multiply_adds)} multiply-adds${structure.option ? `, shortcuts of option ${structure.option}` : ", no shortcuts"}.`
    : `${architecture}: this file says nothing of its structure, so there is no drawing. Export it again to have one.`;
}

const millions = (count) => (count < 1e9 ? `${(count / 1e6).toPrecision(3)} million` : `${(count / 1e9).toPrecision(3)} billion`);
