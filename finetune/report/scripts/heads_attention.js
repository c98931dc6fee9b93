// The attention of a head over the tokens of a row: a map from token to token.
"use strict";

const maxAttentionTokens = 40;
const attentionChart = new ChangingChart();

/** Returns the option of the chart; the color is the square root of the weight, so that small weights are visible. */
function attentionOption(row, head) {
  const tokens = row.tokens.slice(0, maxAttentionTokens);
  const weights = row.attention[head];
  const weight = (from, to) => weights[to * row.tokens.length + from] / 100;
  const data = tokens.flatMap((_, from) => tokens.map((__, to) => [to, from, Math.sqrt(weight(from, to))]));
  const special = tokens.map((token, index) => isSpecial(token, row.attributions[index]));
  const labels = {
    interval: 0,
    formatter: (_, index) => shortened(visibleText(tokens[index]), 14),
    color: (_, index) => (special[index] ? color("field") : color("ink")),
  };
  const axis = (rest) => ({
    type: "category", data: tokens.map((_, index) => String(index)), axisTick: { show: false }, axisLine: { show: false },
    splitArea: { show: false }, ...rest,
  });
  return {
    tooltip: {
      formatter: ({ value: [to, from] }) => (
        `<b>${escaped(visibleText(tokens[from]))}</b> attends to <b>${escaped(visibleText(tokens[to]))}</b>: ${(100 * weight(from, to)).toFixed(0)} %`
      ),
    },
    grid: { left: 96, top: 76, right: 8, bottom: 8 },
    xAxis: axis({ position: "top", axisLabel: { ...labels, rotate: 60 } }),
    yAxis: axis({ inverse: true, axisLabel: labels }),
    visualMap: { show: false, min: 0, max: 1, inRange: { color: [color("card"), color("mark")] } },
    series: [{ type: "heatmap", data, itemStyle: { borderWidth: 1, borderColor: color("card") } }],
  };
}

/** Returns a table of the token that each token attends to most. */
function attentionTable(row, head) {
  const weights = row.attention[head];
  const size = row.tokens.length;
  const lines = row.tokens.map((token, from) => {
    const line = row.tokens.map((_, to) => weights[to * size + from]);
    const to = line.indexOf(Math.max(...line));
    return element("tr", {},
      element("td", { class: "text" }, isolated(token)),
      element("td", { class: "text" }, isolated(row.tokens[to])),
      element("td", {}, `${line[to]} %`));
  });
  const titles = element("tr", {}, element("th", { class: "text" }, "token"), element("th", { class: "text" }, "attends most to"), element("th", {}, "weight"));
  return element("details", {}, element("summary", {}, "As a table"),
    element("div", { class: "scroll long" }, element("table", {}, element("thead", {}, titles), element("tbody", {}, ...lines))));
}

/** Returns the part of the chosen head's panel that shows its attention over the tokens of a row with tokens. */
function attentionPanel(head, row) {
  const title = element("h4", {}, `Attention over the tokens of ${explanations.name(row.index)}`);
  if (!row.attention[head]) {
    const stored = Object.keys(row.attention);
    const button = (other) => element("button", { type: "button", onclick: () => setState({ head: other }) }, other);
    const text = stored.length ? "The attention of this head is not stored for this row. Stored heads: " : "The attention of this row is not stored.";
    return element("div", {}, title, element("p", { class: "controls" }, text, ...stored.map(button)));
  }
  const shown = Math.min(row.tokens.length, maxAttentionTokens);
  const label = `Attention of ${headName(head)} from token to token; the table has the largest weights`;
  const place = attentionChart.show(() => attentionOption(row, head), label, 110 + 24 * shown, 88 + 20 * shown);
  const cut = row.tokens.length > shown ? ` The first ${shown} of ${row.tokens.length} tokens.` : "";
  return element("div", {}, title,
    element("p", { class: "soft" }, `Rows attend to columns; a stronger color is a larger weight. Special tokens are dimmed.${cut}`),
    element("div", { class: "scroll" }, place),
    attentionTable(row, head));
}
