// A canvas to draw a digit on: each stroke that ends gives an image of what was drawn so far.

import { element, find } from "./elements.js";

const INK = "#000";
const PAPER = "#fff";
const STROKE = 22;
// The drawing is centred in a square of this side, as the digits are that the network was trained on.
const SIDE = 128;
const FILLED = 0.78;

const DIGITS = [
  ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
  ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
];

export const areDigits = (labels) => DIGITS.some((names) => names.join() === labels.join());

export function enableDrawing(onDrawn) {
  const canvas = find("paper");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  let last = null;

  const clear = () => {
    context.fillStyle = PAPER;
    context.fillRect(0, 0, canvas.width, canvas.height);
  };
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * canvas.width / box.width, (event.clientY - box.top) * canvas.height / box.height];
  };
  const stroke = (to) => {
    Object.assign(context, { strokeStyle: INK, lineWidth: STROKE, lineCap: "round", lineJoin: "round" });
    context.beginPath();
    context.moveTo(...last);
    context.lineTo(...to);
    context.stroke();
    last = to;
  };

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = place(event);
    stroke(last);
  });
  canvas.addEventListener("pointermove", (event) => { if (last) stroke(place(event)); });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, async () => {
      if (!last) return;
      last = null;
      onDrawn(await centred(canvas, context));
    });
  }
  find("clear-paper").addEventListener("click", clear);
  clear();
}

async function centred(canvas, context) {
  const { left, top, size } = inked(context.getImageData(0, 0, canvas.width, canvas.height));
  const square = element("canvas", { width: SIDE, height: SIDE });
  const onto = square.getContext("2d");
  onto.fillStyle = PAPER;
  onto.fillRect(0, 0, SIDE, SIDE);
  onto.imageSmoothingQuality = "high";
  const margin = SIDE * (1 - FILLED) / 2;
  onto.drawImage(canvas, left, top, size, size, margin, margin, SIDE * FILLED, SIDE * FILLED);
  const blob = await new Promise((resolve) => { square.toBlob(resolve, "image/png"); });
  return new File([blob], "drawing.png", { type: "image/png" });
}

// The smallest square around the ink; it may reach over the canvas, where there is nothing to copy.
function inked({ data, width, height }) {
  let [left, right, top, bottom] = [width, 0, height, 0];
  for (let at = 0; at < data.length; at += 4) {
    if (data[at] > 127) continue;
    const x = (at / 4) % width;
    const y = Math.floor(at / 4 / width);
    [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x), Math.min(top, y), Math.max(bottom, y)];
  }
  const size = Math.max(right - left, bottom - top) + 1;
  return { left: (left + right + 1 - size) / 2, top: (top + bottom + 1 - size) / 2, size };
}
