// The score by length of the text, and in regression the predicted and true values.
"use strict";

const MAX_GROUPS = 8;
const MIN_GROUP_ROWS = 25;
const MAX_POINTS = 2000;

/** Returns groups of about equally many rows by length; rows of equal length are in the same group. */
function lengthGroups(positions) {
  const sorted = sortedByKey(positions, (position) => Math.min(rows.length[position], 2 ** 24 - 1));
  const numGroups = clamp(Math.floor(sorted.length / MIN_GROUP_ROWS), 1, MAX_GROUPS);
  const groups = [];
  let start = 0;
  for (let group = 1; group <= numGroups && start < sorted.length; group++) {
    let end = Math.max(Math.round((group * sorted.length) / numGroups), start + 1);
    while (end < sorted.length && rows.length[sorted[end]] === rows.length[sorted[end - 1]]) end++;
    groups.push(sorted.subarray(start, end));
    start = end;
  }
  return groups;
}

/** Returns the accuracy of rows, or their mean absolute error in regression, with its interval. */
function groupScore(positions) {
  const count = positions.length;
  if (rows.problemType === "regression") {
    const errors = Float64Array.from(positions, (position) => Math.abs(rows.predictedValue[position] - rows.value[position]));
    const value = errors.reduce((sum, error) => sum + error, 0) / count;
    const half = count > 1 ? (DEVIATIONS * standardDeviation(errors)) / Math.sqrt(count) : 0;
    return { value, low: Math.max(0, value - half), high: value + half };
  }
  const right = correctness();
  let hits = 0;
  for (const position of positions) hits += right[position];
  const [low, high] = wilsonInterval(hits, count);
  return { value: hits / count, low, high };
}

/** Returns the option of the score by length. */
function lengthOption(groups) {
  const isRegression = rows.problemType === "regression";
  const scores = groups.map(groupScore);
  const ends = groups.map((group) => [rows.length[group[0]], rows.length[group.at(-1)]]);
  const names = ends.map(([low, high]) => (low === high ? `${low}` : `${low}–${high}`));
  const text = (value) => (isRegression ? value.toPrecision(3) : percentText(value));
  const lowest = Math.min(...scores.map(({ low }) => low), 0.9);
  return {
    grid: { left: 70, right: 20, top: 16, bottom: 50 },
    tooltip: {
      formatter: ({ dataIndex }) => {
        const { value, low, high } = scores[dataIndex];
        return `${names[dataIndex]} characters, ${rowsText(groups[dataIndex].length)}<br>`
          + `${text(value)} [${text(low)}, ${text(high)}]`;
      },
    },
    xAxis: {
      type: "category", data: names, name: "characters", nameLocation: "middle", nameGap: 30,
      axisLabel: { hideOverlap: true },
    },
    yAxis: isRegression
      ? { type: "value", min: 0, name: "mean absolute error", nameLocation: "middle", nameGap: 50 }
      : percentAxis("correct rows", { nameGap: 50, min: Math.floor(10 * lowest) / 10, max: 1 }),
    series: [
      errorBars(scores.map(({ low, high }, index) => [index, low, high]), "blue"),
      {
        type: "scatter", data: scores.map(({ value }, index) => [index, value]), symbolSize: 10,
        itemStyle: { color: color("blue") },
      },
    ],
  };
}

/** Returns a text that says what the score by length is. */
function lengthText(positions) {
  if (!positions.length) return "No row is chosen.";
  const groups = "Groups of about equally many rows by the number of characters, with 95 % intervals. ";
  if (rows.problemType === "regression") return `${groups}The score is the mean absolute error: lower is better.`;
  return `${groups}The score is the share of rows ${rows.label ? "" : "of which every label is "}predicted correctly.`;
}

/** Returns at most 2,000 of the rows; which ones depends on their positions only. */
function fixedSample(positions) {
  if (positions.length <= MAX_POINTS) return positions;
  const limit = (MAX_POINTS / positions.length) * 2 ** 32;
  return positions.filter((position) => (Math.imul(position + 1, 2654435761) >>> 0) < limit).slice(0, MAX_POINTS);
}

/** Returns the option of a chart with a point per row; an item is [x, y, position of the row]. */
function pointOption(items, xName, yName, line) {
  return {
    grid: { left: 64, right: 20, top: 16, bottom: 50 },
    tooltip: {
      formatter: ({ value: [, , position] }) => {
        const number = (value) => value.toPrecision(4);
        return `row ${rows.row[position]}, ${rows.length[position]} characters<br>true value ${number(rows.value[position])}`
          + `<br>predicted ${number(rows.predictedValue[position])}`;
      },
    },
    xAxis: { type: "value", scale: true, name: xName, nameLocation: "middle", nameGap: 30, splitLine: { show: false } },
    yAxis: { type: "value", scale: true, name: yName, nameLocation: "middle", nameGap: 46 },
    series: [
      {
        type: "line", data: line, symbol: "none", silent: true, tooltip: { show: false },
        lineStyle: { color: color("soft"), type: "dashed", width: 1 },
      },
      { type: "scatter", data: items, symbolSize: 6, itemStyle: { color: color("blue"), opacity: 0.45 } },
    ],
  };
}

/** Returns the lowest and highest of values. */
function extent(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

/** Shows the predicted by the true values, and the errors by length. */
function showValues(positions, valueChart, residualChart) {
  const sample = Array.from(fixedSample(positions));
  const [low, high] = extent(sample.map((position) => rows.value[position]));
  const [shortest, longest] = extent(sample.map((position) => rows.length[position]));
  const shown = sample.length < positions.length ? `A fixed sample of ${rowsText(sample.length)} is drawn. ` : "";
  document.getElementById("value-text").textContent = positions.length
    ? `${capitalized(sliceTitle(positions))}. ${shown}On the dashed lines the prediction equals the true value. Choose a `
      + "point to see its row."
    : "No row is chosen.";
  const points = sample.map((position) => [rows.value[position], rows.predictedValue[position], position]);
  valueChart.setOption(() => pointOption(points, "true value", "predicted", [[low, low], [high, high]]));
  const errors = sample.map((position) => (
    [rows.length[position], rows.predictedValue[position] - rows.value[position], position]
  ));
  residualChart.setOption(() => pointOption(errors, "characters", "predicted minus true", [[shortest, 0], [longest, 0]]));
}

onStart(() => {
  const lengthChart = chartIn("length-chart");
  if (!rows || !lengthChart) return;
  const chooseRow = ({ value }) => setState({ row: value[2] });
  const [valueChart, residualChart] = [chartIn("value-chart", chooseRow), chartIn("residual-chart", chooseRow)];
  onSlice((positions) => {
    const groups = lengthGroups(positions);
    document.getElementById("length-text").textContent = lengthText(positions);
    lengthChart.setOption(() => lengthOption(groups));
    if (valueChart) showValues(positions, valueChart, residualChart);
  });
});
