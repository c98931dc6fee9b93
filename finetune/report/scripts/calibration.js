// Reliability of the confidence, and risk by coverage, of the rows in the slice.
"use strict";

const MAX_BINS = 10;
const MIN_BIN_ROWS = 10;
const MAX_CURVE_POINTS = 200;

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
 * Returns bins of equally many rows, and the expected calibration error over them.
 * @returns {{bins: {rows: number, confidence: number, accuracy: number, low: number, high: number}[], error: number}}
 */
function reliabilityOf({ confidence, right }) {
  const count = right.length;
  const numBins = clamp(Math.floor(count / MIN_BIN_ROWS), 1, MAX_BINS);
  const bins = Array.from({ length: count ? numBins : 0 }, (_, bin) => {
    const [start, end] = [bin, bin + 1].map((edge) => Math.round((edge * count) / numBins));
    const size = end - start;
    let [hits, sum] = [0, 0];
    for (let index = start; index < end; index++) {
      hits += right[index];
      sum += confidence[index];
    }
    const [low, high] = wilsonInterval(hits, size);
    return { rows: size, confidence: sum / size, accuracy: hits / size, low, high };
  });
  const error = bins.reduce((sum, bin) => sum + (bin.rows / count) * Math.abs(bin.accuracy - bin.confidence), 0);
  return { bins, error };
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
function reliabilityOption({ bins }) {
  const lowest = Math.min(...bins.map((bin) => Math.min(bin.confidence, bin.low)), 0.9);
  const range = { min: Math.floor(10 * lowest) / 10, max: 1 };
  return {
    grid: { left: 60, right: 20, top: 16, bottom: 50 },
    tooltip: {
      formatter: ({ dataIndex }) => {
        const bin = bins[dataIndex];
        return `${rowsText(bin.rows)}<br>mean confidence ${percentText(bin.confidence)}<br>accuracy `
          + `${percentText(bin.accuracy)} [${percentText(bin.low)}, ${percentText(bin.high)}]`;
      },
    },
    xAxis: percentAxis("mean confidence", range),
    yAxis: percentAxis("accuracy", { ...range, nameGap: 44 }),
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

/** Returns the option of the risk-coverage curve. */
function coverageOption({ confidence }, { risks }) {
  const step = Math.max(1, risks.length / MAX_CURVE_POINTS);
  const points = [];
  for (let place = step; place <= risks.length + 1e-6; place += step) points.push(Math.round(place) - 1);
  return {
    grid: { left: 60, right: 20, top: 16, bottom: 50 },
    tooltip: {
      trigger: "axis",
      formatter: ([{ dataIndex }]) => {
        const index = points[dataIndex];
        return `${rowsText(index + 1)} with a confidence of at least ${percentText(confidence[index])}<br>`
          + `${percentText((index + 1) / risks.length)} of the rows, ${percentText(risks[index])} of them wrong`;
      },
    },
    xAxis: percentAxis("share of the rows, most confident first", { min: 0, max: 1 }),
    yAxis: percentAxis("wrong predictions", { min: 0, nameGap: 44, minInterval: 0.01 }),
    series: {
      type: "line", data: points.map((index) => [(index + 1) / risks.length, risks[index]]), symbol: "none",
      areaStyle: { opacity: 0.12 }, lineStyle: { width: 2 },
    },
  };
}

onStart(() => {
  const reliabilityChart = chartIn("reliability-chart");
  const coverageChart = chartIn("coverage-chart");
  if (!rows || !reliabilityChart) return;
  onSlice((positions) => {
    const sorted = byConfidence(positions);
    const [reliability, curve] = [reliabilityOf(sorted), riskCoverageOf(sorted)];
    const errorRate = curve.risks.at(-1) ?? 0;
    const bins = reliability.bins.length === 1 ? "1 bin" : `${reliability.bins.length} bins`;
    document.getElementById("reliability-text").textContent = positions.length
      ? `Accuracy by the probability of the predicted class, with 95 % intervals. Expected calibration error `
        + `${reliability.error.toFixed(3)} (${bins} of equally many rows, ${rowsText(positions.length)}).`
      : "No row is chosen.";
    document.getElementById("coverage-text").textContent = positions.length
      ? `Share of wrong predictions if only the most confident rows are accepted. Area under the curve `
        + `${curve.area.toFixed(4)}; ${errorRate.toFixed(4)} if the confidence said nothing.`
      : "No row is chosen.";
    reliabilityChart.setOption(() => reliabilityOption(reliability));
    coverageChart.setOption(() => coverageOption(sorted, curve));
  });
});
