// A column of the page: a text or a pair, its prediction, and its explanations.
"use strict";

/** Returns an element of the page by its id. */
const byId = (id) => document.getElementById(id);

/** Returns what a column holds. */
const textWord = () => (model.textColumns.length > 1 ? "Pair" : "Text");

/** One text of the page, or one pair of texts. */
class Column {
  /**
   * @param {string} name "A" or "B"
   * @param {string[]} texts the first content
   * @param {{grid: HeadGrid, onPrediction: (column: Column) => void, onExplanation: (column: Column) => void}} page
   */
  constructor(name, texts, page) {
    Object.assign(this, { name, page, prediction: null, explanation: null, showAll: false });
    this.fields = model.textColumns.map((_, index) => this.field(texts[index] ?? "", index));
    this.build();
    const report = (message) => this.report(message);
    this.predicting = new Caller("predict", (answer, question) => this.showPrediction(answer, question), report);
    this.explaining = new Caller("explain", (answer, question) => this.showExplanation(answer, question), report);
    this.attending = new Caller("attention", (answer) => this.attention.show(answer), (message) => this.attention.fail(message));
  }

  field(text, index) {
    const field = element("textarea", {
      dir: "auto", rows: 3, spellcheck: "false", "data-field": `${this.name}${index}`,
      placeholder: "Type a text", "aria-label": `Text ${this.name}: ${model.textColumns[index]}`,
      oninput: () => this.page.onText(this),
    });
    field.value = text;
    return field;
  }

  build() {
    this.status = element("p", { class: "soft small", role: "status" });
    this.problem = element("p", { class: "note", role: "alert", hidden: "" });
    this.result = element("div");
    this.more = element("button", { type: "button", hidden: "", onclick: () => this.toggleAll() });
    this.heading = element("h2");
    const fields = this.fields.flatMap((field, index) =>
      this.fields.length > 1 ? [element("span", { class: "field" }, model.textColumns[index]), field] : [field]);
    this.attributions = element("div");
    this.card = element("section", { "data-column": this.name },
      this.heading, ...fields, this.status, this.problem, this.result, this.more, this.attributions);
    const attention = element("div");
    this.attentionName = element("h3", { hidden: "" }, `${textWord()} ${this.name}`);
    this.attentionPlace = element("div", {}, this.attentionName, attention);
    this.attention = new AttentionView(attention);
    byId("columns").append(this.card);
    byId("attention").append(this.attentionPlace);
  }

  remove() {
    for (const place of [this.card, this.attentionPlace]) place.remove();
    for (const caller of [this.predicting, this.explaining, this.attending]) caller.drop();
    this.removed = true;
  }

  /** Returns the texts; half of a surrogate pair, which JSON cannot carry, is replaced. */
  texts() {
    return this.fields.map(({ value }) => value.toWellFormed?.() ?? value);
  }

  isEmpty() {
    return this.texts().some((text) => !text.trim());
  }

  setTexts(texts) {
    this.fields.forEach((field, index) => { field.value = texts[index] ?? ""; });
  }

  question() {
    return { texts: this.texts(), off: this.page.grid.pairs() };
  }

  /** Predicts again, now. */
  predict() {
    this.problem.hidden = true;
    if (this.isEmpty()) {
      this.clear();
      return;
    }
    this.started = performance.now();
    this.predicting.ask(this.question());
  }

  /** Explains again: token attributions and effects of heads, and the attention of the chosen head. */
  explain(head) {
    if (this.isEmpty()) return;
    this.explaining.ask({ ...this.question(), exact: byId("exact").checked, target: this.page.target });
    this.attend(head);
  }

  attend(head) {
    if (!this.isEmpty()) this.attending.ask({ ...this.question(), head });
  }

  clear() {
    for (const caller of [this.predicting, this.explaining, this.attending]) caller.drop();
    Object.assign(this, { prediction: null, explanation: null });
    this.status.textContent = model.textColumns.length > 1 ? "Type both texts." : "Type a text.";
    for (const place of [this.result, this.attributions, this.attention.place]) place.replaceChildren();
    this.attention.answer = null;
    this.more.hidden = true;
    this.page.onPrediction(this);
  }

  report(message) {
    this.problem.textContent = message;
    this.problem.hidden = false;
  }

  showPrediction(answer, question) {
    if (this.removed || this.isEmpty()) return;
    this.prediction = answer;
    this.answered = question;
    this.drawPrediction();
    const cut = answer.truncated ? `Longer than ${model.maxLength} tokens: the model reads the first ${answer.tokens}` : `${answer.tokens} tokens`;
    this.status.textContent = `${cut}. Predicted in ${Math.round(performance.now() - this.started)} ms.`;
    for (const place of [this.attributions, this.attention.place]) place.classList.add("stale");
    this.page.onPrediction(this);
  }

  drawPrediction() {
    const { target } = this.page;
    const focused = [...this.result.querySelectorAll("button")].indexOf(document.activeElement);
    this.result.replaceChildren(predictionElement(
      this.prediction, this.answered.off.length > 0, this.showAll, target, (label) => this.page.chooseTarget(label),
    ));
    if (focused >= 0) this.result.querySelectorAll("button")[focused]?.focus();
    this.more.hidden = model.labels.length <= SHOWN_LABELS;
    this.more.textContent = this.showAll ? "Show fewer labels" : `Show all ${model.labels.length} labels`;
    this.result.dataset.off = this.answered.off.map((pair) => pair.join(".")).join(",");
  }

  toggleAll() {
    this.showAll = !this.showAll;
    this.drawPrediction();
  }

  showExplanation(answer) {
    if (this.removed || this.isEmpty()) return;
    this.explanation = answer;
    this.page.onExplanation(this);
  }

  /** Draws the attributions; tokens that `other` does not have are marked. */
  drawAttributions(other) {
    const changed = other ? changedTokens(this.explanation.tokens, other.explanation.tokens) : new Set();
    this.attributions.replaceChildren(
      element("h3", {}, "Which tokens carried the decision"),
      element("p", { class: "small" }, ...legend(`for ${targetWords(this.explanation)}`, "against it")),
      attributionElement(this.explanation, changed),
    );
    this.attributions.classList.remove("stale");
  }
}
