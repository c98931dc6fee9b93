// The chosen row: which tokens carried its decision, and which heads it needs.
"use strict";

/** Returns the index of the chosen row among the analyzed ones; the first explained row if none is chosen; null if it was not analyzed. */
function chosenIndex() {
  const state = getState("row");
  if (state !== null) return explanations.indexOf(state);
  return explanations.explained[0]?.index ?? 0;
}

/** Chooses a row and shows its panel. */
function chooseRow(index) {
  setState({ row: explanations.stateOf(index) });
  goTo(document.getElementById("chosen-row"));
}

/** Returns a list with a link to the explanation of a row of the predictions; an empty list if it has none. */
function explanationLinks(position) {
  if (!explanations?.indexByPosition.has(position)) return [];
  return [element("p", {}, element("a", { href: "#chosen-row" }, "Which heads and tokens this row depends on"))];
}

rowDetailParts.push(explanationLinks);

/** Returns the score of a row, that of the baseline and the completeness gap, in a sentence. */
function scoreSentence(row) {
  const target = explanations.target(row.index);
  const name = target ? `${explanations.scoreName} “${visibleText(target)}”` : explanations.scoreName;
  const difference = row.score - row.baseline;
  return `Score (${name}): ${signed(row.score)}. Without its words (baseline): ${signed(row.baseline)}. `
    + `The attributions sum to ${signed(difference + row.gap)}; the difference of the scores is ${signed(difference)}, `
    + `so the completeness gap is ${signed(row.gap)}.`;
}

/** Returns a table of the tokens and their attributions. */
function tokenTable(row) {
  const lines = row.tokens.map((token, index) => element("tr", {},
    element("td", {}, String(index)), element("td", { class: "text" }, isolated(token)), element("td", {}, signed(row.attributions[index]))));
  const titles = element("tr", {}, element("th", {}, "position"), element("th", { class: "text" }, "token"), element("th", {}, "attribution"));
  return element("details", {}, element("summary", {}, "Attributions as a table"),
    element("div", { class: "scroll long" }, element("table", {}, element("thead", {}, titles), element("tbody", {}, ...lines))));
}

/** Returns the tokens of a row, colored by attribution, with a line that shows the value under the pointer. */
function tokenPanel(row) {
  const readout = element("p", { class: "head-readout soft" }, "Point at a token for its attribution.");
  const tokens = element("p", { class: "tokens large" }, ...tokenElements(row.tokens, row.attributions));
  tokens.addEventListener("mouseover", ({ target }) => {
    if (target.title) readout.textContent = `${target.textContent}: ${target.title}`;
  });
  return element("div", {}, tokens, readout, element("p", {}, scoreSentence(row)), tokenTable(row));
}

/** Returns a map of the effect of each head on a row, the values scaled to 100. */
function effectMap(effects, name) {
  const largest = Math.max(...effects.flat().map((value) => Math.abs(value ?? 0))) || 1;
  const table = document.getElementById("head-importance").cloneNode(true);
  const cells = effects.map((layer) => layer.map((value) => {
    const level = Math.round((100 * value) / largest);
    return value === null ? null : [String(level), level, 0, `effect ${signed(value)}`];
  }));
  table.removeAttribute("id");
  table.setAttribute("aria-label", `Effect of each head on row ${name}`);
  fillMap(table, { cells });
  return table;
}

/** Returns the panel of the heads that a row needs. */
function effectPanel(index) {
  const effects = explanations.effects(index);
  if (!effects) return element("p", { class: "soft" }, "The effects of the heads on this row are in explanations.parquet, but not in this page, which would become too large.");
  const method = explanations.explainedByIndex.get(index)?.effects ? "exact: each head turned off" : explanations.effectMethod;
  const table = effectMap(effects, explanations.name(index));
  const panel = element("div", {}, element("h4", {}, "Heads that it needs"),
    element("div", { class: "scroll" }, table),
    element("p", { class: "soft" }, `Score with all heads minus score without the head (${method}), scaled so that the largest is 100. Blue: the head supports the label; orange: it speaks against it.`));
  enableHeadMap(table);
  return panel;
}

/** Returns the sentence for a row without tokens. */
function missingTokens() {
  const published = explanations.withTokens.length === 0;
  return element("p", { class: "soft" }, published
    ? "This copy of the report contains no tokens."
    : "The tokens of this row were not explained. To explain more rows, set head_importance.explained_rows and run finetune heads again.");
}

/** Shows the panel of the chosen row. */
async function showChosenRow() {
  const place = document.getElementById("chosen-row");
  const index = chosenIndex();
  place.hidden = false;
  for (const line of document.querySelectorAll("[data-explained]")) {
    line.classList.toggle("best", explanations.withTokens[line.dataset.explained].index === index);
  }
  if (index === null) {
    place.replaceChildren(element("p", { class: "note" }, "The chosen row was not among the rows on which the heads were analyzed. To analyze and explain more rows, raise head_importance.max_samples and head_importance.explained_rows and run finetune heads again."));
    return;
  }
  const row = explanations.explainedByIndex.get(index);
  const target = explanations.target(index);
  const title = `Row ${explanations.name(index)}${target ? `: why “${visibleText(target)}”` : ""}`;
  const text = row?.tokens ? tokenPanel(row) : missingTokens();
  const parts = [element("h3", {}, title), text, effectPanel(index)];
  if (!row?.tokens) {
    const words = await explanations.text(index);
    if (chosenIndex() !== index) return;
    if (words) parts.splice(1, 0, element("p", { class: "words" }, isolated(shortened(words, 1000))));
  }
  place.replaceChildren(...parts);
  watchScrolling(place);
  markChosenHead();
}

/** Makes the names of the explained rows buttons that choose them. */
function linkExplainedRows() {
  for (const line of document.querySelectorAll("[data-explained]")) {
    const { index } = explanations.withTokens[line.dataset.explained];
    const [name] = line.cells;
    name.replaceChildren(element("button", { type: "button", class: "row-link", onclick: () => chooseRow(index) }, name.textContent));
  }
}

onStart(() => {
  if (!explanations) return;
  linkExplainedRows();
  onState(["row"], showChosenRow);
});
