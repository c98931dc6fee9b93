// Precision, recall and F1 of a label by the threshold of its probability.
"use strict";

const THRESHOLD_STEPS = 100;

/**
 * Returns precision, recall and F1 at each threshold k / 100; precision is null where nothing is predicted.
 * @param {number[]} labels positions in rows.labels; the counts of several labels are summed (micro average)
 */
function thresholdCurves(positions, labels) {
  const [predicted, hits] = [new Float64Array(THRESHOLD_STEPS + 1), new Float64Array(THRESHOLD_STEPS + 1)];
  const stepOf = (position, label) => Math.floor(rows.probability(position, label) * THRESHOLD_STEPS + 1e-9);
  const isChosen = new Uint8Array(rows.labels.length);
  for (const label of labels) {
    isChosen[label] = 1;
    for (const position of positions) predicted[stepOf(position, label)]++;
  }
  let actual = 0;
  for (const position of positions) {
    const [start, end] = rows.label ? [position, position + 1] : [rows.labelOffsets[position], rows.labelOffsets[position + 1]];
    const own = rows.label ?? rows.labelValues;
    for (let index = start; index < end; index++) {
      if (!isChosen[own[index]]) continue;
      hits[stepOf(position, own[index])]++;
      actual++;
    }
  }
  for (let step = THRESHOLD_STEPS - 1; step >= 0; step--) {
    predicted[step] += predicted[step + 1];
    hits[step] += hits[step + 1];
  }
  const curve = (formula) => Array.from(predicted, (count, step) => formula(hits[step], count));
  return {
    precision: curve((hit, count) => (count ? hit / count : null)),
    recall: curve((hit) => (actual ? hit / actual : null)),
    f1: curve((hit, count) => (actual ? (2 * hit) / (count + actual) : null)),
    actual,
  };
}

/** Returns the threshold with the highest F1; of several, the one nearest to 0.5. */
function bestThreshold(f1) {
  const distance = (step) => Math.abs(step - THRESHOLD_STEPS / 2);
  return f1.reduce((best, value, step) => (
    value > f1[best] || (value === f1[best] && distance(step) < distance(best)) ? step : best
  ), 0);
}

/** Returns the option of the chart. */
function thresholdOption(curves, best, own) {
  const line = (name, values) => ({
    name, type: "line", symbol: "none", lineStyle: { width: name === "F1" ? 3 : 1.5 },
    data: values.map((value, step) => [step / THRESHOLD_STEPS, value]),
  });
  const mark = (step, text, shift = 0) => ({
    xAxis: step / THRESHOLD_STEPS, label: { formatter: text, color: color("soft"), offset: [shift, 0] },
  });
  const usual = own === null ? 50 : own * THRESHOLD_STEPS;
  const shift = Math.abs(best - usual) < 20 ? 44 * Math.sign(best - usual) : 0; // the two texts do not overlap
  const name = own === null ? "0.5" : own.toFixed(2);
  const marks = [mark(usual, name), ...(Math.abs(best - usual) < 0.5 ? [] : [mark(best, "highest F1", shift)])];
  return {
    legend: { top: 0 },
    grid: { left: 60, right: 24, top: 52, bottom: 50 },
    tooltip: { trigger: "axis", valueFormatter: (value) => (value === null ? "undefined" : value.toFixed(3)) },
    xAxis: { type: "value", min: 0, max: 1, name: "threshold", nameLocation: "middle", nameGap: 30 },
    yAxis: { type: "value", min: 0, max: 1 },
    series: [
      line("precision", curves.precision),
      line("recall", curves.recall),
      {
        ...line("F1", curves.f1),
        markLine: { symbol: "none", silent: true, data: marks, lineStyle: { color: color("soft"), type: "dashed" } },
      },
    ],
  };
}

/** Returns what the curves show, as a sentence. */
function thresholdText(curves, best, own) {
  if (!curves.actual) return "No chosen row has this label, so there are no curves.";
  const shown = (value) => (value === null ? "undefined" : value.toFixed(3));
  if (own !== null) {
    const [precision, recall, f1] = [curves.precision, curves.recall, curves.f1].map((curve) => shown(curve[Math.round(own * THRESHOLD_STEPS)]));
    return `The model predicts this label above ${own.toFixed(3)}: precision ${precision}, recall ${recall}, F1 ${f1} in the `
      + `chosen rows. F1 is highest, ${shown(curves.f1[best])}, at ${(best / THRESHOLD_STEPS).toFixed(2)}; a threshold `
      + "chosen on these rows does worse on new rows.";
  }
  const [highest, usual] = [curves.f1[best], curves.f1[THRESHOLD_STEPS / 2]].map((value) => value.toFixed(3));
  const intro = `A label is predicted if its probability is at least the threshold. At 0.5, F1 is ${usual}`;
  if (best === THRESHOLD_STEPS / 2) return `${intro}, which is the highest.`;
  return `${intro}; it is highest, ${highest}, at ${(best / THRESHOLD_STEPS).toFixed(2)}. A threshold chosen on these rows `
    + "does worse on new rows.";
}

onStart(() => {
  const chart = chartIn("threshold-chart");
  if (!rows || !chart) return;
  const select = document.getElementById("threshold-label");
  const isMultiLabel = !rows.label;
  if (!rows.hasAllProbabilities) {
    document.getElementById("threshold-text").textContent = "This page does not contain all probabilities of so many rows "
      + "and labels, so there are no threshold curves.";
    document.querySelectorAll("#thresholds .controls, #threshold-chart").forEach((place) => (place.hidden = true));
    return;
  }
  if (isMultiLabel) select.append(element("option", { value: "" }, "all labels (micro average)"));
  select.append(...rows.labels.map((label, index) => element("option", { value: index }, label)));
  const withThreshold = rows.labels.findIndex((label) => label in rows.thresholds);
  if (!isMultiLabel) select.value = String(withThreshold < 0 ? 1 : withThreshold);
  const update = () => {
    const labels = select.value === "" ? [...rows.labels.keys()] : [Number(select.value)];
    const own = labels.length === 1 ? rows.thresholds[rows.labels[labels[0]]] ?? null : null;
    const curves = thresholdCurves(currentSlice, labels);
    const best = bestThreshold(curves.f1);
    document.getElementById("threshold-text").textContent = thresholdText(curves, best, own);
    chart.setOption(() => thresholdOption(curves, best, own));
  };
  select.addEventListener("change", update);
  onSlice(update);
});
