// Reliability of the confidence, and risk by coverage, of the rows in the slice.
"use strict";

const MAX_BINS = 10;
const MIN_BIN_ROWS = 10;
const MAX_CURVE_POINTS = 200;
const MAX_PROBABILITIES = 200_000; // more take too long to sort

/** Returns the confidences of rows, highest first, and which of these rows are right. */
function byConfidence(positions) {
  const order = sortedByKey(positions, (position) => Math.round((1 - rows.confidence[position]) * (2 ** 24 - 1)));
  const right = correctness();
  return {
    confidence: Float64Array.from(order, (position) => rows.confidence[position]),
    right: Uint8Array.from(order, (position) => right[position]),
  };
}

/**
 * Returns the probabilities of labels, highest first, and whether the row has the label.
 * @param {number[]} labels positions in rows.labels; the probabilities of several labels are pooled
 */
function byProbability(positions, labels) {
  const step = Math.ceil((positions.length * labels.length) / MAX_PROBABILITIES); // of very many rows, every second ...
  const pairs = [];
  for (let index = 0; index < positions.length; index += step) {
    const position = positions[index];
    const actual = rows.label ? [rows.label[position]] : rows.labelSets(position);
    for (const label of labels) pairs.push([rows.probability(position, label), Number(actual.includes(label))]);
  }
  pairs.sort((first, second) => second[0] - first[0]);
  return { confidence: Float64Array.from(pairs, (pair) => pair[0]), right: Uint8Array.from(pairs, (pair) => pair[1]) };
}

/** Returns the standard normal distribution function by Abramowitz and Stegun 1964, 7.1.26: within 1e-7. */
function normalDistribution(value) {
  const x = Math.abs(value) / Math.SQRT2;
  const t = 1 / (1 + 0.3275911 * x);
  const series = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592].reduce((sum, factor) => (sum + factor) * t, 0);
  const erf = Math.sign(value) * (1 - series * Math.exp(-x * x));
  return (1 + erf) / 2;
}

/** Returns the distance in a bin without what chance adds to it, as in evaluation/calibration.py. */
function correctedDistance(distance, standardError) {
  const error = Math.max(standardError, 1e-12);
  const z = distance / error;
  const byChance = error * Math.sqrt(2 / Math.PI) * Math.exp((-z * z) / 2) + distance * (1 - 2 * normalDistribution(-z));
  return 2 * distance - byChance;
}

/**
 * Returns bins of equally many probabilities, and the expected calibration error over them, corrected for their bias.
 * @returns {{bins: {rows: number, confidence: number, accuracy: number, low: number, high: number}[], error: number}}
 */
function reliabilityOf({ confidence, right }) {
  const count = right.length;
  const numBins = clamp(Math.floor(count / MIN_BIN_ROWS), 1, MAX_BINS);
  let error = 0;
  const bins = Array.from({ length: count ? numBins : 0 }, (_, bin) => {
    const [start, end] = [bin, bin + 1].map((edge) => Math.round((edge * count) / numBins));
    const size = end - start;
    let [hits, sum, variance] = [0, 0, 0];
    for (let index = start; index < end; index++) {
      hits += right[index];
      sum += confidence[index];
      variance += confidence[index] * (1 - confidence[index]);
    }
    error += (size / count) * correctedDistance(Math.abs(sum - hits) / size, Math.sqrt(variance) / size);
    const [low, high] = wilsonInterval(hits, size);
    return { rows: size, confidence: sum / size, accuracy: hits / size, low, high };
  });
  return { bins, error: Math.max(0, error) };
}

/**
 * Returns the share of wrong rows among the most confident ones, for every number of them, and its mean (the area
 * under the curve). Rows of equal confidence count as their mean, because their order says nothing.
 */
function riskCoverageOf({ confidence, right }) {
  const risks = new Float64Array(right.length);
  let [start, errorsBefore, area] = [0, 0, 0];
  while (start < right.length) {
    let end = start;
    let errors = 0;
    while (end < right.length && confidence[end] === confidence[start]) errors += 1 - right[end++];
    for (let index = start; index < end; index++) {
      risks[index] = (errorsBefore + (errors * (index + 1 - start)) / (end - start)) / (index + 1);
      area += risks[index] / right.length;
    }
    errorsBefore += errors;
    start = end;
  }
  return { risks, area };
}

/** Returns the option of the reliability diagram. */
function reliabilityOption({ bins }, { ofLabel }) {
  const [across, up] = ofLabel ? ["mean probability", "share of rows with the label"] : ["mean confidence", "accuracy"];
  const lowest = Math.min(...bins.map((bin) => Math.min(bin.confidence, bin.low)), 0.9);
  const range = { min: Math.floor(10 * lowest) / 10, max: 1 };
  return {
    grid: { left: 60, right: 20, top: 16, bottom: 50 },
    tooltip: {
      formatter: ({ dataIndex }) => {
        const bin = bins[dataIndex];
        return `${rowsText(bin.rows)}<br>${across} ${percentText(bin.confidence)}<br>${up} `
          + `${percentText(bin.accuracy)} [${percentText(bin.low)}, ${percentText(bin.high)}]`;
      },
    },
    xAxis: percentAxis(across, range),
    yAxis: percentAxis(up, { ...range, nameGap: 44 }),
    series: [
      {
        type: "line", data: [[range.min, range.min], [1, 1]], symbol: "none", silent: true, tooltip: { show: false },
        lineStyle: { color: color("soft"), type: "dashed", width: 1 },
      },
      errorBars(bins.map((bin) => [bin.confidence, bin.low, bin.high]), "blue"),
      {
        type: "scatter", data: bins.map((bin) => [bin.confidence, bin.accuracy]), symbolSize: 9,
        itemStyle: { color: color("blue") },
      },
    ],
  };
}

/** Returns what prediction sets of each promised coverage do on the shown split: share of answered rows, and errors. */
function promisedPoints() {
  return [...document.querySelectorAll("#set-table tr[data-right]")].map(({ dataset }) => ({
    coverage: Number(dataset.coverage), answered: Number(dataset.answered), wrong: 1 - Number(dataset.right),
  }));
}

/** Returns the series of the promised points. */
function promisedSeries(points) {
  return {
    type: "scatter", symbol: "diamond", symbolSize: 11, itemStyle: { color: color("orange") }, z: 5,
    data: points.map(({ answered, wrong }) => [answered, wrong]),
    label: {
      show: true, position: "left", color: color("ink"), backgroundColor: color("card"), padding: [1, 4], borderRadius: 3,
      formatter: ({ dataIndex }) => `promised ${Math.round(100 * points[dataIndex].coverage)} %`,
    },
    labelLayout: { hideOverlap: true },
    tooltip: { show: false },
  };
}

/** Returns the option of the risk-coverage curve. */
function coverageOption({ confidence }, { risks }, promised) {
  const step = Math.max(1, risks.length / MAX_CURVE_POINTS);
  const points = [];
  for (let place = step; place <= risks.length + 1e-6; place += step) points.push(Math.round(place) - 1);
  return {
    grid: { left: 60, right: 20, top: 16, bottom: 50 },
    tooltip: {
      trigger: "axis",
      formatter: (items) => {
        const { dataIndex } = items.find(({ seriesType }) => seriesType === "line") ?? {};
        if (dataIndex === undefined) return "";
        const index = points[dataIndex];
        return `${rowsText(index + 1)} with a confidence of at least ${percentText(confidence[index])}<br>`
          + `${percentText((index + 1) / risks.length)} of the rows, ${percentText(risks[index])} of them wrong`;
      },
    },
    xAxis: percentAxis("share of the rows, most confident first", { min: 0, max: 1 }),
    yAxis: percentAxis("wrong predictions", { min: 0, nameGap: 44, minInterval: 0.01 }),
    series: [
      {
        type: "line", data: points.map((index) => [(index + 1) / risks.length, risks[index]]), symbol: "none",
        areaStyle: { opacity: 0.12 }, lineStyle: { width: 2 },
      },
      promisedSeries(promised),
    ],
  };
}

/** Fills the choice of the probability, and returns a function that returns the chosen probabilities of rows. */
function probabilityChoice() {
  const select = document.getElementById("reliability-label");
  const all = [...rows.labels.keys()];
  select.append(element("option", { value: "" }, rows.label ? "the predicted label" : "all labels"));
  if (rows.hasAllProbabilities) select.append(...all.map((label) => element("option", { value: label }, rows.labels[label])));
  return {
    select,
    ofLabel: () => !rows.label || select.value !== "",
    sorted: (positions) => {
      if (select.value !== "") return byProbability(positions, [Number(select.value)]);
      return rows.label ? byConfidence(positions) : byProbability(positions, all);
    },
  };
}

/** Returns what the reliability chart shows, as a sentence. */
function reliabilityText({ bins, error }, ofLabel, count) {
  const text = bins.length === 1 ? "1 bin" : `${bins.length} bins`;
  const what = ofLabel ? "Share of the rows that have the label by its probability" : "Accuracy by the probability of the predicted class";
  return `${what}, with 95 % intervals. Expected calibration error ${error.toFixed(3)} (${text} of equally many `
    + `${ofLabel ? "probabilities" : "rows"}, ${rowsText(count)}).`;
}

function drawReliability(chart) {
  const choice = probabilityChoice();
  const possible = rows.label || rows.hasAllProbabilities;
  const update = () => {
    const text = document.getElementById("reliability-text");
    if (!possible) {
      text.textContent = "This page does not contain all probabilities of so many rows and labels, so there is no curve.";
      return;
    }
    const reliability = reliabilityOf(choice.sorted(currentSlice));
    const ofLabel = choice.ofLabel();
    text.textContent = currentSlice.length ? reliabilityText(reliability, ofLabel, currentSlice.length) : "No row is chosen.";
    chart.setOption(() => reliabilityOption(reliability, { ofLabel }));
  };
  choice.select.addEventListener("change", update);
  onSlice(update);
}

function drawRiskCoverage(chart) {
  const promised = promisedPoints();
  onSlice((positions) => {
    const sorted = byConfidence(positions);
    const curve = riskCoverageOf(sorted);
    const errorRate = curve.risks.at(-1) ?? 0;
    const marks = promised.length ? " Diamonds: the rows that prediction sets answer on all rows of the split." : "";
    document.getElementById("coverage-text").textContent = positions.length
      ? `Share of wrong predictions if only the most confident rows are accepted. Area under the curve `
        + `${curve.area.toFixed(4)}; ${errorRate.toFixed(4)} if the confidence said nothing.${marks}`
      : "No row is chosen.";
    chart.setOption(() => coverageOption(sorted, curve, promised));
  });
}

onStart(() => {
  if (!rows) return;
  const [reliabilityChart, coverageChart] = [chartIn("reliability-chart"), chartIn("coverage-chart")];
  if (reliabilityChart) drawReliability(reliabilityChart);
  if (coverageChart) drawRiskCoverage(coverageChart);
});
