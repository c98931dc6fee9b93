// The confusion matrix of the slice and its most confused pairs. The choice of a label and a prediction does not apply
// to it: it is where the reader makes that choice.
"use strict";

const MAX_NUMBERED_CLASSES = 20; // more leave no space for numbers in the cells
const MAX_PAIRS = 12;
const MAX_WRONG_CELLS = 3000; // drawn, so that the page stays fast
const LEAST_DARKEST = 0.3; // share of the darkest wrong cell, at least: few errors look like few errors

/** Returns the rows of the slice without its conditions on label and prediction. */
async function rowsOfAnyPair(positions) {
  const choice = sliceChoice();
  if (choice.label === null && choice.predicted === null) return positions;
  const expression = chosenExpression(choice);
  const all = Uint32Array.from({ length: rows.count }, (_, position) => position);
  const chosen = sliceConditions({ ...choice, label: null, predicted: null }).reduce(filtered, all);
  return (expression && await matching(chosen, expression)) ?? chosen;
}

/** Returns the confusion matrix of rows with its sums. */
function confusionOf(positions) {
  const size = rows.labels.length;
  const cells = new Uint32Array(size * size);
  for (const position of positions) cells[rows.label[position] * size + rows.predicted[position]]++;
  const [actual, predicted] = [new Uint32Array(size), new Uint32Array(size)];
  cells.forEach((count, cell) => {
    actual[Math.floor(cell / size)] += count;
    predicted[cell % size] += count;
  });
  return { size, cells, actual, predicted, positions };
}

/** Returns the classes in a chosen order. */
function classOrder(confusion, name, byConfusion) {
  const classes = [...confusion.actual.keys()];
  const { size, cells, actual, predicted } = confusion;
  const keys = {
    name: (a, b) => rows.labels[a].localeCompare(rows.labels[b], undefined, { numeric: true }),
    size: (a, b) => actual[b] - actual[a],
    f1: (a, b) => f1Of(a) - f1Of(b),
  };
  const f1Of = (label) => ratio(2 * cells[label * size + label], actual[label] + predicted[label]);
  if (name === "confusion") return [...byConfusion, ...classes.slice(byConfusion.length)];
  return keys[name] ? classes.sort(keys[name]) : classes;
}

/** Returns the cells that have rows, as [column, row, share of the row, count, label, predicted]. */
function confusionItems({ size, cells, actual }, order) {
  const place = new Uint32Array(size);
  order.forEach((label, index) => (place[label] = index));
  const items = [];
  cells.forEach((count, cell) => {
    if (!count) return;
    const [label, predicted] = [Math.floor(cell / size), cell % size];
    items.push([place[predicted], place[label], count / actual[label], count, label, predicted]);
  });
  return items;
}

/** Returns a heatmap of some cells in one color. */
function confusionSeries(name, items, size, strongest) {
  const [ink, card, chosen] = [color("ink"), color("card"), [getState("label"), getState("predicted")]];
  const isChosen = ([, , , , label, predicted]) => rows.labels[label] === chosen[0] && rows.labels[predicted] === chosen[1];
  const chosenLast = [...items.filter((item) => !isChosen(item)), ...items.filter(isChosen)]; // drawn over its neighbors
  const data = chosenLast.map((value) => ({
    value,
    label: { color: value[2] > 0.55 * strongest ? card : ink },
    itemStyle: isChosen(value) ? { borderColor: ink, borderWidth: 2 } : {},
  }));
  return {
    name, data, type: "heatmap", progressive: 0,
    label: { show: size <= MAX_NUMBERED_CLASSES, formatter: ({ value }) => value[3].toLocaleString("en") },
    itemStyle: { borderColor: card, borderWidth: size > 40 ? 0.5 : 1 },
    emphasis: { itemStyle: { borderColor: ink, borderWidth: 1.5 } },
  };
}

/** Returns the text that appears over a cell, as HTML. */
function confusionTooltip({ value }) {
  const [, , share, count, label, predicted] = value;
  const [name, other] = [label, predicted].map((index) => escaped(rows.labels[index]));
  return `label <b>${name}</b><br>predicted <b>${other}</b><br>${rowsText(count)}, ${percentText(share)} of the label`;
}

/** Returns the axis of the predictions or of the labels; `space` is the length of its labels, `cell` that of a cell. */
function confusionAxis(name, labels, space, cell, rotate) {
  return {
    type: "category", data: labels, name, nameLocation: "middle",
    nameGap: (name === "predicted" && !rotate ? 18 : space) + 14,
    tooltip: { show: true, formatter: ({ name: label }) => escaped(label) },
    axisTick: { show: false },
    axisLabel: {
      width: space, overflow: "truncate", interval: cell < 8 ? "auto" : 0, rotate,
      fontSize: Math.round(clamp(cell, 8, 12)),
    },
  };
}

/** Returns the option of the matrix. */
function confusionOption(confusion, order, layout) {
  const { size } = confusion;
  const items = confusionItems(confusion, order);
  const hits = items.filter((item) => item[4] === item[5]);
  const errors = items.filter((item) => item[4] !== item[5]).sort((a, b) => b[2] - a[2]).slice(0, MAX_WRONG_CELLS);
  const strongest = Math.max(errors[0]?.[2] ?? 0, LEAST_DARKEST);
  const labels = order.map((label) => rows.labels[label]);
  const across = layout.isRotated ? layout.space : layout.width - 6;
  const scale = (index, name, max) => ({
    show: false, seriesIndex: index, dimension: 2, min: 0, max,
    inRange: { color: [echarts.color.lerp(0.15, [color("card"), color(name)]), color(name)] }, // the least is visible
  });
  return {
    grid: {
      left: layout.space + 40, right: 8, top: layout.top + 40, bottom: 8, show: true, backgroundColor: color("page"),
      borderColor: color("line"),
    },
    tooltip: { formatter: confusionTooltip },
    xAxis: { ...confusionAxis("predicted", labels, across, layout.width, layout.isRotated ? 90 : 0), position: "top" },
    yAxis: { ...confusionAxis("label", labels, layout.space, layout.height, 0), inverse: true },
    visualMap: [scale(0, "blue", 1), scale(1, "orange", strongest)],
    series: [confusionSeries("right", hits, size, 1), confusionSeries("wrong", errors, size, strongest)],
  };
}

/** Sizes the place of the matrix for its classes, and returns the sizes of labels and cells. */
function confusionLayout(place) {
  const size = rows.labels.length;
  const longest = rows.labels.reduce((length, name) => Math.max(length, name.length), 1);
  const height = clamp(1000 / size, 10, size > 6 ? 44 : 64);
  const space = Math.min(Math.round(longest * 0.6 * clamp(height, 8, 12)) + 8, 150);
  const leastWidth = size > 80 ? 6 : size > 20 ? 11 : 22;
  place.style.minWidth = `${space + 48 + size * leastWidth}px`;
  const width = (Math.max(place.clientWidth, 1) - space - 48) / size;
  const isRotated = width < Math.min(space, 90);
  const top = isRotated ? space : 18;
  place.style.height = `${Math.round(size * height + top + 48)}px`;
  return { space, height, width, isRotated, top };
}

/** Returns a sentence about wrong predictions that are not drawn, or "". */
function omittedCells({ size, cells }) {
  const wrong = cells.filter((count, cell) => count && Math.floor(cell / size) !== cell % size).length;
  if (wrong <= MAX_WRONG_CELLS) return "";
  const [all, drawn] = [wrong, MAX_WRONG_CELLS].map((count) => count.toLocaleString("en"));
  return ` Of ${all} pairs of classes that were confused, the ${drawn} with the largest shares are drawn.`;
}

/** Shows the pairs of different classes with the most rows. */
function showPairs({ size, cells, actual }) {
  const pairs = [...cells.keys()].filter((cell) => cells[cell] && Math.floor(cell / size) !== cell % size);
  const share = (cell) => cells[cell] / actual[Math.floor(cell / size)];
  pairs.sort((a, b) => cells[b] - cells[a] || share(b) - share(a));
  const shown = pairs.slice(0, MAX_PAIRS).map((cell) => {
    const [label, predicted] = [rows.labels[Math.floor(cell / size)], rows.labels[cell % size]];
    return element(
      "tr", {}, element("td", { class: "text" }, stateLink({ label, predicted }, label)),
      element("td", { class: "text" }, stateLink({ label, predicted }, predicted)),
      element("td", {}, cells[cell].toLocaleString("en")), element("td", {}, percentText(share(cell))),
    );
  });
  const none = element("tr", {}, element("td", { class: "text", colspan: 4 }, "No row was predicted as another class."));
  const body = document.querySelector("#confused-pairs tbody");
  keepingFocus(body, () => body.replaceChildren(...(shown.length ? shown : [none])));
}

onStart(() => {
  const place = document.getElementById("confusion-chart");
  if (!rows || !place) return;
  const select = document.getElementById("confusion-order");
  const byConfusion = JSON.parse(select.dataset.order);
  let confusion = null;
  const chart = chartIn("confusion-chart", ({ value }) => {
    if (!Array.isArray(value)) return;
    const [label, predicted] = [rows.labels[value[4]], rows.labels[value[5]]];
    const isChosen = getState("label") === label && getState("predicted") === predicted;
    setState({ label: isChosen ? null : label, predicted: isChosen ? null : predicted, page: null });
  });
  const draw = () => {
    select.value = getState("order") ?? "confusion";
    const order = classOrder(confusion, select.value, byConfusion);
    chart.setOption(() => confusionOption(confusion, order, confusionLayout(place)));
  };
  confusionLayout(place);
  select.addEventListener("change", () => setState({ order: select.value === "confusion" ? null : select.value }));
  onState(["order"], () => confusion && draw());
  let request = 0;
  onSlice(async (positions) => {
    const current = ++request;
    const chosen = await rowsOfAnyPair(positions);
    if (current !== request) return;
    confusion = confusionOf(chosen);
    document.getElementById("confusion-rows").textContent = `${capitalized(sliceTitle(chosen))}.${omittedCells(confusion)}`;
    showPairs(confusion);
    draw();
  });
});
