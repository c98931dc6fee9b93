// The probabilities of the labels, with all heads and with some of them off.
"use strict";

const SHOWN_LABELS = 10; // of more labels, the most probable ones are shown

/** Returns "96.1 %", with more digits near 0 and 1 so that small changes are visible. */
function percent(probability) {
  const near = Math.min(probability, 1 - probability);
  return `${(100 * probability).toFixed(near < 0.001 ? 3 : near < 0.01 ? 2 : 1)} %`;
}

/** Returns a difference with its sign: in percentage points for probabilities, else as a number. */
function difference(change) {
  const size = Math.abs(change);
  const text = model.problemType === "regression" ? size.toFixed(3) : (100 * size).toFixed(size < 0.01 ? 2 : 1);
  return `${change < 0 ? "−" : "+"}${text}`;
}

/** Returns an element with a difference in color, or an empty one for no visible difference. */
function differenceElement(change) {
  if (Math.abs(change) < 5e-5) return element("span", { class: "soft" }, "±0");
  return element("span", { class: change > 0 ? "up" : "down" }, difference(change));
}

/** Returns the predicted labels of one side ("AllHeads" or "HeadsOff") in words, such as "positive 96.1 %". */
function verdict(prediction, side = "HeadsOff") {
  const values = side === "HeadsOff" ? prediction.heads_off : prediction.all_heads;
  if (model.problemType === "regression") return values[0].toFixed(3);
  const chosen = side === "HeadsOff" ? prediction.decided_heads_off : prediction.decided_all_heads;
  if (!chosen.length) return "no label";
  const words = chosen.map((label) => `${model.labels[label]} ${percent(values[label])}`);
  return words.length > 3 ? `${words.slice(0, 3).join(", ")} and ${words.length - 3} more` : words.join(", ");
}

/** Returns the positions of the labels to show: all, or the most probable with and without the heads. */
function shownLabels(prediction, all) {
  const labels = model.labels.map((_, label) => label);
  if (all || labels.length <= SHOWN_LABELS) return labels;
  const highest = (label) => Math.max(prediction.heads_off[label], prediction.all_heads[label]);
  return labels.sort((first, second) => highest(second) - highest(first)).slice(0, SHOWN_LABELS);
}

/**
 * Returns a row for each label: name, probability, bar; where heads are off, also the probability with all heads.
 * A click on a name calls `onTarget` with the label; `target` is the label that is explained, or null.
 */
function predictionElement(prediction, anyOff, all, target, onTarget) {
  if (model.problemType === "regression") return valueElement(prediction, anyOff);
  const rows = shownLabels(prediction, all).map((label) => {
    const button = element("button", {
      type: "button", title: "Explain this label", "aria-pressed": String(label === target), onclick: () => onTarget(label),
    }, model.labels[label]);
    return labelElement(prediction, label, anyOff, button);
  });
  return element("div", {}, ...rows);
}

function labelElement(prediction, label, anyOff, button) {
  const [now, before] = [prediction.heads_off[label], prediction.all_heads[label]];
  const isChosen = prediction.decided_heads_off.includes(label);
  const threshold = model.thresholds[label];
  const track = element("div", { class: "track", "aria-hidden": "true" }, element("i", { style: `width: ${100 * now}%` }));
  if (anyOff) track.append(element("u", { style: `left: calc(${100 * before}% - 1px)`, title: "with all heads" }));
  if (threshold !== null) track.append(element("s", { style: `left: ${100 * threshold}%`, title: "threshold" }));
  const numbers = element("span", { class: "numbers" });
  if (anyOff) numbers.append(element("span", { class: "soft" }, `${percent(before)} → `));
  numbers.append(element("b", { "data-probability": now }, percent(now)));
  if (anyOff) numbers.append(" ", differenceElement(now - before));
  return element(
    "div", { class: isChosen ? "label chosen" : "label", "data-label": model.labels[label] },
    element("span", { class: "name" }, button, isChosen ? " ✓" : ""), numbers, track,
  );
}

function valueElement(prediction, anyOff) {
  const [now, before] = [prediction.heads_off[0], prediction.all_heads[0]];
  const place = element("p", { class: "value" });
  if (anyOff) place.append(element("span", { class: "soft" }, `${before.toFixed(4)} → `));
  place.append(element("b", { "data-probability": now }, now.toFixed(4)));
  if (anyOff) place.append(" ", differenceElement(now - before));
  return place;
}
