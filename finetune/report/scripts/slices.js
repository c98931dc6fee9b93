// The slice bar: the rows of the page by split, label, prediction, outcome, confidence, length and text.
//
// Every choice is a key of the state, so a copied address shows the same rows.
"use strict";

const sliceKeys = ["split", "label", "predicted", "outcome", "confidence", "length", "text"];
const wordCharacter = "[\\p{L}\\p{N}_]";
const wordBoundary = `(?:(?<=${wordCharacter})(?!${wordCharacter})|(?<!${wordCharacter})(?=${wordCharacter}))`;
const confidenceRounding = 1e-4; // of the embedded probabilities
let sliceRequests = 0;

/** Returns [lowest, highest] of a state such as "10-20", "10-" or "-20". */
function rangeOf(text) {
  const [, low, high] = /^([\d.]*)-([\d.]*)$/.exec(text ?? "") ?? [];
  return [low ? Number(low) : -Infinity, high ? Number(high) : Infinity];
}

/** Returns a regular expression that ignores case; \b is the boundary of words of any script. Throws SyntaxError. */
function textExpression(source) {
  return new RegExp(source.replace(/\\(.)/gsu, (escape, letter) => (letter === "b" ? wordBoundary : escape)), "iu");
}

/** Returns a test of one position per condition of a choice (values of the state by key), that of the split first and without that of the text. */
function sliceConditions(choice) {
  const split = rows.splits.indexOf(choice.split ?? rows.shownSplit);
  const conditions = [(position) => choice.split === "all" || rows.split[position] === split];
  for (const key of ["label", "predicted"]) {
    if (choice[key] === null || rows.problemType === "regression") continue;
    const label = rows.labels.indexOf(choice[key]);
    const sets = key === "label" ? (position) => rows.labelSets(position) : (position) => rows.predictedSets(position);
    conditions.push(rows.label ? (position) => rows[key][position] === label : (position) => sets(position).includes(label));
  }
  if (choice.outcome && rows.problemType !== "regression") {
    conditions.push((position) => rows.correct(position) === (choice.outcome === "right"));
  }
  if (choice.confidence && rows.confidence) {
    const [low, high] = rangeOf(choice.confidence).map((percent, end) => percent / 100 + confidenceRounding * (2 * end - 1));
    conditions.push((position) => rows.confidence[position] >= low && rows.confidence[position] <= high);
  }
  if (choice.length) {
    const [low, high] = rangeOf(choice.length);
    conditions.push((position) => rows.length[position] >= low && rows.length[position] <= high);
  }
  return conditions;
}

/** Returns the positions, among `positions`, that fulfill a condition. */
function filtered(positions, condition) {
  const result = new Uint32Array(positions.length);
  let count = 0;
  for (const position of positions) if (condition(position)) result[count++] = position;
  return result.subarray(0, count);
}

/** Returns the values of the state that choose the slice, by key; null where a key is not set. */
function sliceChoice() {
  return Object.fromEntries(sliceKeys.map((key) => [key, getState(key)]));
}

/** Returns the expression of a choice; null if there is none or if it is invalid, which is shown beside the field. */
function chosenExpression(choice) {
  let problem = "";
  let expression = null;
  try {
    if (choice.text) expression = textExpression(choice.text);
  } catch (error) {
    problem = `This is not a valid regular expression, and is ignored: ${error.message.split(": ").at(-1)}.`;
  }
  if (slowExpressions.has(choice.text)) {
    expression = null;
    problem = "The search for this expression takes too long, so it is ignored.";
  }
  const place = document.getElementById("slice-text-problem");
  if (place) place.textContent = problem;
  document.getElementById("slice-text")?.setAttribute("aria-invalid", String(problem !== ""));
  return expression;
}

/** Selects the rows of the state and makes them the slice; a later call replaces one that is still running. */
async function updateSlice() {
  const request = ++sliceRequests;
  const choice = sliceChoice();
  const expression = chosenExpression(choice);
  const all = Uint32Array.from({ length: rows.count }, (_, position) => position);
  const [inSplit, ...conditions] = sliceConditions(choice);
  const total = filtered(all, inSplit);
  let positions = conditions.reduce(filtered, total);
  if (expression) positions = await matching(positions, expression);
  if (request !== sliceRequests) return;
  if (!positions) {
    slowExpressions.add(choice.text);
    return updateSlice();
  }
  showSliceSize(positions.length, total.length, choice);
  setSlice(positions);
}

// ---- The bar

/** Shows how many rows are in the slice, and which conditions it has. */
function showSliceSize(count, total, choice) {
  const place = document.getElementById("slice-size");
  if (!place) return;
  const chosen = sliceKeys.filter((key) => key !== "split" && choice[key]);
  place.textContent = `${count.toLocaleString("en")} of ${total.toLocaleString("en")} rows`;
  document.getElementById("slice-conditions").textContent = chosen.map((key) => `${key}: ${choice[key]}`).join(", ");
  document.getElementById("slice-reset").disabled = !chosen.length && !choice.split;
}

/** Fills a choice with options; the first one, with an empty value, removes the condition. */
function fillSelect(select, first, names) {
  select.append(element("option", { value: "" }, first), ...names.map((name) => element("option", { value: name }, name)));
}

/** Sets a key of the state from the two fields of a range. */
function setRange(key) {
  const [low, high] = ["low", "high"].map((end) => document.getElementById(`slice-${key}-${end}`).value);
  setState({ [key]: low || high ? `${low}-${high}` : null, page: null });
}

/** Shows the state in the fields of the bar, except in the one that the reader is typing into. */
function showSliceState() {
  for (const key of sliceKeys) {
    const [low, high] = /^([\d.]*)-([\d.]*)$/.exec(getState(key) ?? "")?.slice(1) ?? ["", ""];
    const value = getState(key) ?? (key === "split" ? rows.shownSplit : "");
    for (const [name, content] of [[key, value], [`${key}-low`, low], [`${key}-high`, high]]) {
      const field = document.getElementById(`slice-${name}`);
      if (field && field !== document.activeElement) field.value = content;
    }
  }
}

/** Returns whether the page has the texts of some rows and not of all. */
function hasSomeTexts() {
  return rows.texts.fields > 0 && rows.texts.embedded < rows.count;
}

/** Fills the fields of the bar, hides those that the rows have no values for, and connects them with the state. */
function startSliceBar(bar) {
  const field = (name) => document.getElementById(`slice-${name}`);
  fillSelect(field("label"), "any", rows.labels);
  fillSelect(field("predicted"), "any", rows.labels);
  field("split").append(
    ...rows.splits.map((name) => element("option", { value: name }, name)),
    element("option", { value: "all" }, "all splits"),
  );
  const missing = [["split", rows.splits.length < 2], ["text", !rows.texts.fields]];
  for (const key of ["label", "predicted", "outcome", "confidence"]) missing.push([key, !rows.confidence]);
  for (const [key, isMissing] of missing) bar.querySelector(`[data-field="${key}"]`).hidden = isMissing;
  for (const key of ["split", "label", "predicted", "outcome"]) {
    const unset = key === "split" ? rows.shownSplit : "";
    field(key).addEventListener("change", ({ target }) => {
      setState({ [key]: target.value === unset ? null : target.value, page: null });
    });
  }
  for (const key of ["confidence", "length"]) {
    for (const end of ["low", "high"]) field(`${key}-${end}`).addEventListener("change", () => setRange(key));
  }
  let timer = 0;
  field("text").addEventListener("input", ({ target }) => {
    clearTimeout(timer);
    timer = setTimeout(() => setState({ text: target.value, page: null }), 200);
  });
  field("reset").addEventListener("click", () => {
    setState(Object.fromEntries([...sliceKeys, "page"].map((key) => [key, null])));
    bar.querySelector("summary").focus({ preventScroll: true }); // the button is disabled now
  });
  if (hasSomeTexts()) {
    field("texts").textContent = `The text search covers the ${rows.texts.embedded.toLocaleString("en")} rows whose text is in this page. `
      + "Those of wrong predictions come first, so the scores of rows chosen by a text are lower than those of all such rows.";
  }
  if (matchMedia("(max-width: 820px)").matches) bar.querySelector("details").open = false;
  onState(sliceKeys, showSliceState);
  // A link to a section scrolls to below the bar.
  new ResizeObserver(() => { document.documentElement.style.scrollPaddingTop = `${bar.offsetHeight + 64}px`; }).observe(bar);
}

onStart(async () => {
  rows = await Rows.load();
  const bar = document.getElementById("slice");
  if (!rows) return;
  if (bar) startSliceBar(bar);
  let first = null;
  onState(sliceKeys, () => {
    const running = updateSlice();
    first ??= running;
  });
  await first;
});
