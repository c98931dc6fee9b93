// The page: columns of texts, the grid of heads, and the explanations, kept in step.
"use strict";

const EXPLAIN_AFTER = 400; // milliseconds without a change, so that predictions stay live
const EDIT_AFTER = 900; // milliseconds without typing, after which an edit counts as done

let model = null;

/** What the columns, the grid and the address have in common. */
class Page {
  constructor() {
    this.columns = [];
    this.timers = {};
    this.edits = new EditList((name, texts) => this.restore(name, texts));
    this.grid = new HeadGrid(() => this.changed(), (layer, head) => this.chooseHead(layer, head));
    this.head = [0, 0];
    this.target = null; // the label that is explained; null: the most probable one
  }

  start() {
    const saved = (...keys) => keys.map(getState).filter((value) => value !== null);
    const first = saved("a", "a2");
    this.addColumn("A", first.length ? first : model.examples[0]?.texts ?? []);
    if (getState("b") !== null) this.addColumn("B", saved("b", "b2"));
    fillHeadChoice(this);
    const head = [getState("head"), model.rankings[0]?.order.at(-1).join("."), "0.0"].find((key) => this.grid.buttons.has(key));
    this.chooseHead(...head.split(".").map(Number));
    byId("direction").addEventListener("change", () => this.columns.forEach((column) => column.attention.draw()));
    byId("exact").checked = model.exactEffects;
    byId("exact").addEventListener("change", () => this.explainSoon());
    byId("second").addEventListener("click", () => this.toggleSecond());
    fillExamples(this);
    this.grid.setOff((getState("off") ?? "").split(",").filter((key) => this.grid.buttons.has(key)));
  }

  addColumn(name, texts) {
    const column = new Column(name, texts, this);
    this.columns.push(column);
    this.layOut();
    return column;
  }

  layOut() {
    const two = this.columns.length > 1;
    byId("columns").classList.toggle("two", two);
    byId("second").textContent = `${two ? "Remove the second" : "Compare with a second"} ${textWord().toLowerCase()}`;
    for (const column of this.columns) {
      column.heading.textContent = two ? `${textWord()} ${column.name}` : textWord();
      column.attentionName.hidden = !two;
    }
  }

  toggleSecond() {
    if (this.columns.length > 1) {
      this.columns.pop().remove();
      this.edits.forget("B");
      this.layOut();
      this.changed();
      return;
    }
    const column = this.addColumn("B", this.columns[0].texts());
    this.listEdits();
    this.edits.copy("A", "B");
    this.changed();
    column.fields[0].focus();
  }

  /** Predicts all columns, at once; explains them when nothing has changed for a moment. */
  changed() {
    for (const column of this.columns) column.predict();
    this.explainSoon();
  }

  onText(column) {
    column.predict();
    this.explainSoon();
  }

  explainSoon() {
    clearTimeout(this.timers.explain);
    clearTimeout(this.timers.edit);
    this.timers.explain = setTimeout(() => {
      this.keepState();
      for (const column of this.columns) column.explain(this.head);
    }, EXPLAIN_AFTER);
    this.timers.edit = setTimeout(() => {
      this.timers.edit = null;
      this.listEdits();
    }, EDIT_AFTER);
  }

  /** Lists the edits of columns whose prediction is that of their present text. */
  listEdits() {
    for (const column of this.columns) {
      const answered = column.prediction && column.answered;
      if (!answered || column.texts().some((text, index) => text !== answered.texts[index])) continue;
      this.edits.add(column.name, answered.texts, column.prediction, JSON.stringify(answered.off));
    }
  }

  restore(name, texts) {
    const column = this.columns.find((each) => each.name === name);
    if (!column) return;
    column.setTexts(texts);
    this.onText(column);
  }

  /** Replaces the text of the first column by another one, which is no edit. */
  setExample(texts) {
    this.edits.forget("A");
    this.columns[0].setTexts(texts);
    this.onText(this.columns[0]);
  }

  chooseHead(layer, head) {
    this.head = [layer, head];
    this.grid.show(layer, head);
    showHeadChoice(layer, head);
    for (const column of this.columns) column.attend(this.head);
  }

  /** Explains a label, or the most probable one if it was explained already. */
  chooseTarget(label) {
    this.target = label === this.target ? null : label;
    for (const column of this.columns) if (column.prediction) column.drawPrediction();
    this.explainSoon();
  }

  onPrediction() {
    if (this.timers.edit === null) this.listEdits(); // the server was slower than the wait
    const [first] = this.columns;
    if (!first?.prediction) {
      byId("verdict").textContent = "";
      return;
    }
    const verdicts = this.columns.filter((column) => column.prediction).map((column) => verdict(column.prediction));
    const all = verdict(first.prediction, "AllHeads");
    byId("verdict").textContent = verdicts.join("  |  ") + (verdicts.length === 1 && this.grid.off.size ? ` (all heads: ${all})` : "");
  }

  onExplanation() {
    const explained = this.columns.filter((column) => column.explanation);
    explained.forEach((column) => column.drawAttributions(explained.find((other) => other !== column)));
    const [first] = explained;
    this.grid.color(first.explanation.effects);
    const kind = first.explanation.exact ? "Hover over a head for its effect: the score with it, minus the score without it." :
      "Hover over a head for its effect, estimated from the gradient of the score.";
    byId("grid-legend").replaceChildren(...legend(`for ${targetWords(first.explanation)}`, "against it"), element("br"),
      element("span", { class: "soft" }, `${explained.length > 1 ? `Effects for ${textWord().toLowerCase()} A. ` : ""}${kind}`));
  }

  /** Writes texts and heads into the address, so that a view can be sent to someone or opened again. */
  keepState() {
    const [a, b] = this.columns.map((column) => column.texts());
    const short = [a, b].flat().every((text) => (text ?? "").length <= 1000);
    const texts = short ? { a: a[0], a2: a[1] ?? null, b: b?.[0] ?? null, b2: b?.[1] ?? null } : { a: null, a2: null, b: null, b2: null };
    setState({ ...texts, off: [...this.grid.off].join(","), head: headKey(...this.head) });
  }
}

/** Returns what an explanation is about, in words. */
function targetWords(explanation) {
  return model.problemType === "regression" ? "a higher value" : `“${model.labels[explanation.target]}”`;
}

/** Returns the two colors with what they mean. */
function legend(positive, negative) {
  const swatch = (name) => element("span", { class: `swatch ${name}` });
  return [swatch("positive"), ` ${positive} \u2003`, swatch("negative"), ` ${negative}`];
}

/** Fills the list of rows of the run. */
function fillExamples(page) {
  const select = byId("examples");
  if (!model.examples.length) {
    select.closest("label").hidden = true;
    return;
  }
  select.append(element("option", { value: "" }, "of the run’s rows ..."));
  model.examples.forEach((example, index) => {
    const text = example.texts.join(" ⏐ ");
    const mark = example.label === example.predicted ? "✓" : "✗";
    const words = `${mark} ${example.label}: ${text.length > 70 ? `${text.slice(0, 70)}…` : text}`;
    select.append(element("option", { value: index }, words));
  });
  select.addEventListener("change", () => select.value && page.setExample(model.examples[select.value].texts));
}

/** Fills the two lists that choose the head whose attention is shown. */
function fillHeadChoice(page) {
  byId("layer").append(...model.numHeads.map((_, layer) => element("option", { value: layer }, String(layer))));
  byId("layer").addEventListener("change", () => page.chooseHead(Number(byId("layer").value), 0));
  byId("head").addEventListener("change", () => page.chooseHead(page.head[0], Number(byId("head").value)));
}

function showHeadChoice(layer, head) {
  const options = [...Array(model.numHeads[layer]).keys()].map((number) => element("option", { value: number }, String(number)));
  byId("head").replaceChildren(...options);
  byId("layer").value = layer;
  byId("head").value = head;
}

onStart(async () => {
  model = await unpackJson("model");
  new Page().start();
});
