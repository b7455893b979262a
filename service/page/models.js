// Which model and version is asked, and what is known of it.

import { element, find } from "./elements.js";

let versions = [];

const chosenName = () => find("model").value;

export const chosen = () => versions.find((each) =>
  each.name === chosenName() && String(each.version) === find("version").value);

// Fill the choosers; a choice that is still served stays.
export function offer(found) {
  const [name, version] = [chosenName(), find("version").value];
  versions = found;
  fill(find("model"), [...new Set(found.map((each) => each.name))], name);
  offerVersions(version);
}

export function offerVersions(version = "") {
  const numbers = versions.filter((each) => each.name === chosenName()).map((each) => String(each.version));
  fill(find("version"), numbers, version);
}

function fill(select, values, value) {
  select.replaceChildren(...values.map((each) => element("option", { value: each, textContent: each })));
  if (values.includes(value)) select.value = value;
  select.disabled = !values.length;
}

export function showFacts({ card, device, golden_max_abs_diff: golden }) {
  const size = `${card.input.width} × ${card.input.height}`;
  const facts = [
    ["Network", `${card.architecture}, ${card.precision}`],
    ["Runs on", device],
    ["Classes", `${card.labels.length}: ${card.labels.slice(0, 4).join(", ")}${card.labels.length > 4 ? ", …" : ""}`],
    ["Sees", `${size} pixels, the centre of the image`],
    card.accuracy && ["Accuracy", `${(card.accuracy.top1 * 100).toFixed(2)} % of ${card.accuracy.images} (${card.accuracy.data})`],
    card.parity && ["Against torch", `logits differ by ${card.parity.max_abs_diff.toPrecision(2)} at most, over ${card.parity.images} images`],
    golden !== null && ["At this start", `golden images differ by ${golden.toPrecision(2)} at most`],
  ];
  find("facts").replaceChildren(...facts.filter(Boolean).map(([term, text]) =>
    element("div", {}, element("dt", {}, term), element("dd", {}, text))));
}
