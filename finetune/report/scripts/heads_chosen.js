// The chosen head: its values by every method, the rows that need it, which label it serves, what it attends to.
"use strict";

const maxShownLabels = 12;
const labelChart = new ChangingChart();

/** Returns a table of the chosen head's value in every map. */
function valuesTable(head) {
  const lines = [...headData.maps, ...headData.changes].map((map) => {
    const cell = cellOf(map, head);
    return cell && element("tr", {}, element("th", { scope: "row", class: "text" }, map.name), element("td", { class: "text" }, cell[3]));
  });
  return element("table", {}, element("tbody", {}, ...lines.filter(Boolean)));
}

/** Returns a line with the partner of a redundant head, which is chosen by a click; empty for other heads. */
function partnerLine(head) {
  const partner = headData.partners[head];
  if (!partner) return [];
  const button = element("button", { type: "button", onclick: () => setState({ head: partner }) }, headName(partner));
  return [element("p", { class: "partner-line" }, "Redundant with ", button, " (dashed in the map)")];
}

/** Returns a button with the text of a row that chooses the row. */
function effectButton(index) {
  const button = element("button", { type: "button", class: "row-link", onclick: () => chooseRow(index) }, explanations.name(index));
  explanations.text(index).then((text) => { if (text) button.replaceChildren(isolated(shortened(text))); });
  return button;
}

/** Returns a table of rows with their effects. */
function effectsTable(caption, list) {
  if (!list.length) return element("div", {}, element("h4", {}, caption), element("p", { class: "soft" }, "None."));
  const lines = list.map(([index, effect]) => element("tr", {},
    element("td", {}, signed(effect)),
    element("td", { class: "text" }, isolated(explanations.target(index))),
    element("td", { class: "words" }, effectButton(index))));
  const titles = element("tr", {}, element("th", {}, "effect"), element("th", { class: "text" }, "label"), element("th", { class: "words" }, "row"));
  return element("div", {}, element("h4", {}, caption),
    element("div", { class: "scroll" }, element("table", {}, element("thead", {}, titles), element("tbody", {}, ...lines))));
}

/** Returns the labels that a head affects most, as [label, mean, half of the width of its interval, rows]. */
function shownLabels(head) {
  const all = explanations.labelEffects[head].map(([label, ...values]) => [explanations.targets[label] || "all rows", ...values]);
  const largest = [...all].sort((first, second) => Math.abs(second[1]) - Math.abs(first[1])).slice(0, maxShownLabels);
  return largest.sort((first, second) => second[1] - first[1]);
}

/** Returns the option of a dot plot of the mean effect per label with 95 % intervals. */
function labelOption(labels) {
  const name = (_, index) => shortened(visibleText(labels[index][0]), 24);
  const interval = ([, mean, width], index) => [[mean - width, index], [mean + width, index], ["-", "-"]];
  return {
    tooltip: {
      formatter: ({ dataIndex }) => {
        const [label, mean, width, count] = labels[dataIndex];
        return `${escaped(visibleText(label))}: ${signed(mean)} ± ${width.toPrecision(2)}<br>${count} rows`;
      },
    },
    grid: { left: 130, right: 16, top: 8, bottom: 44 },
    xAxis: { type: "value", name: "mean effect on the score", nameLocation: "middle", nameGap: 26 },
    yAxis: { type: "category", inverse: true, data: labels.map((_, index) => String(index)), axisLabel: { formatter: name, color: color("ink") } },
    series: [
      { type: "line", data: labels.flatMap(interval), symbol: "none", silent: true, lineStyle: { width: 2, color: color("blue") } },
      { type: "scatter", data: labels.map(([, mean], index) => [mean, index]), symbolSize: 10, itemStyle: { color: color("blue") } },
    ],
  };
}

/** Returns the panel of the mean effect per predicted label. */
function labelPanel(head) {
  const labels = shownLabels(head);
  if (!labels.length) return element("div", {});
  const total = explanations.labelEffects[head].length;
  const described = labels.map(([label, mean, width]) => `${label} ${signed(mean)} ± ${width.toPrecision(2)}`).join("; ");
  const place = labelChart.show(() => labelOption(labels), `Mean effect by label: ${described}`, null, 60 + 34 * labels.length);
  const part = total > labels.length ? ` The ${labels.length} of ${total} labels with the largest effects.` : "";
  return element("div", { class: "label-effects" }, element("h4", {}, "Which label it serves"), place,
    element("p", { class: "soft" }, `Mean effect over the rows that are explained for the label, with its 95 % interval over rows (Student's t); labels of at least three rows.${part}`));
}

/** Returns the row whose attention is shown: the row that the reader chose if it has tokens, else one with a map. */
function attentionRow(head) {
  const chosen = explanations.explainedByIndex.get(chosenIndex());
  if (chosen?.tokens && (getState("row") !== null || chosen.attention[head])) return chosen;
  return explanations.withTokens.find((row) => row.attention[head]) ?? explanations.withTokens[0] ?? null;
}

/** Shows the values of the chosen head beside the map, and its rows, labels and attention below. */
function showChosenHead() {
  const head = chosenHead();
  if (head === null) return;
  const name = headName(head);
  const title = name.charAt(0).toUpperCase() + name.slice(1);
  const values = document.getElementById("chosen-head");
  values.hidden = false;
  values.replaceChildren(element("h3", {}, title), ...partnerLine(head), valuesTable(head));
  if (!explanations?.extremes[head]) return;
  const [needed, hurt] = explanations.extremes[head];
  const details = document.getElementById("chosen-head-rows");
  const row = attentionRow(head);
  details.hidden = false;
  details.replaceChildren(
    element("h3", {}, `What ${name} does for single rows`),
    element("p", {}, `Effect on the ${explanations.scoreName} of ${explanations.count.toLocaleString("en")} analyzed rows (${explanations.effectMethod}). Click a row to see what it needs.`),
    element("div", { class: "pair" }, effectsTable("Rows that need it most", needed), effectsTable("Rows that it hurts most", hurt)),
    labelPanel(head),
    ...(row ? [attentionPanel(head, row)] : []),
  );
  watchScrolling(details);
}

onStart(() => {
  if (headData) onState(["head", "row"], showChosenHead);
});
