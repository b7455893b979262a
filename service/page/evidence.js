// The class activation map over what the model saw of an image: its crop, and how strongly the map shows is up to a slider.

import { element } from "./elements.js";

// Dark violet, red, yellow, as the service's own overlay: brighter is more, also to the colour-blind and in print.
const COLOURS = [[13, 8, 135], [204, 71, 120], [240, 249, 33]];
const SIDE = 320;

// The part of an image that the model sees, by the preprocessing in its card.
function seen(image, recipe) {
  if (recipe.fit === "stretch") return { x: 0, y: 0, width: image.width, height: image.height };
  const side = Math.min(image.width, image.height) * recipe.crop / recipe.resize;
  return { x: (image.width - side) / 2, y: (image.height - side) / 2, width: side, height: side };
}

function heat(map) {
  const values = map.flat();
  const least = Math.min(...values);
  const span = Math.max(...values) - least || 1;
  const pixels = new ImageData(map[0].length, map.length);
  values.forEach((value, at) => pixels.data.set([...colour((value - least) / span), 255], at * 4));
  const canvas = element("canvas", { width: map[0].length, height: map.length });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

function colour(level) {
  const place = Math.min(level * 2, 1.999);
  const [from, to] = COLOURS.slice(Math.floor(place));
  return from.map((value, channel) => value + (to[channel] - value) * (place % 1));
}

// A canvas of an image as the model sees it, and a function that shows a map on it, `opacity` 0 to 1.
export function view(image, recipe, name) {
  const canvas = element("canvas", { width: SIDE, height: SIDE, className: "view" });
  canvas.setAttribute("role", "img");
  const context = canvas.getContext("2d");
  const { x, y, width, height } = seen(image, recipe);
  const show = (explanation = null, opacity = 0) => {
    context.globalAlpha = 1;
    context.imageSmoothingEnabled = width > 64;  // the pixels of a small image are worth seeing
    context.drawImage(image, x, y, width, height, 0, 0, SIDE, SIDE);
    canvas.setAttribute("aria-label", `${name}, as the model sees it`);
    if (!explanation) return;
    context.globalAlpha = opacity;
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(heat(explanation.map), 0, 0, SIDE, SIDE);
    canvas.setAttribute("aria-label", `${name}, under the evidence for ${explanation.label}`);
  };
  show();
  return { canvas, show };
}
