// The tokens of a text, colored by how much each carried the decision, or by the attention of a head.
"use strict";

const MAX_GAP = 0.05; // of the difference of the scores, above which the attributions are called rough

const CONTINUED = /^##/; // the token belongs to the word before it
const SPECIAL = /^(\[[A-Z]+\d*\]|<\/?[a-z|]+>)$/;

/** Returns a token as people read it: without the mark of a continued word. */
function tokenText(token) {
  return token.replace(CONTINUED, "").replace(/\n/g, "⏎") || "␣";
}

/** Returns the positions of tokens that are not in the other list, up to moved words: outside common start and end. */
function changedTokens(tokens, others) {
  let start = 0, end = 0;
  const shorter = Math.min(tokens.length, others.length);
  while (start < shorter && tokens[start] === others[start]) start++;
  while (end < shorter - start && tokens.at(-1 - end) === others.at(-1 - end)) end++;
  return new Set(tokens.map((_, index) => index).filter((index) => index >= start && index < tokens.length - end));
}

/** Returns the tokens as elements in a row; `describe(index)` returns the attributes of a token. */
function tokenElements(tokens, tag, describe) {
  return tokens.map((token, index) => {
    const { value = 0, largest = 0, className = "", ...attributes } = describe(index);
    const place = element(tag, { ...attributes }, tokenText(token));
    place.className = `token ${className}`;
    place.classList.toggle("continues", CONTINUED.test(token));
    place.classList.toggle("special", SPECIAL.test(token));
    tint(place, value, largest);
    return place;
  });
}

/** Returns the tokens colored by attribution, with a sentence on how well the attributions add up. */
function attributionElement(answer, changed) {
  const { values, score, baseline_score: baseline, completeness_gap: gap } = answer.attributions;
  const largest = Math.max(...values.map(Math.abs), 0);
  const tokens = tokenElements(answer.tokens, "span", (index) => ({
    value: values[index], largest, title: `${answer.tokens[index]}: ${signed(values[index])}`,
    className: changed.has(index) ? "changed" : "",
  }));
  const sum = values.reduce((total, value) => total + value, 0);
  const name = model.problemType === "regression" ? "value" : "log-odds";
  const note = `With padding in place of the tokens the ${name} is ${signed(baseline)}, with the tokens ${signed(score)}: ` +
    `a difference of ${signed(score - baseline)}. The tokens sum to ${signed(sum)}: completeness gap ${signed(gap)}.`;
  const rough = Math.abs(gap) > MAX_GAP * Math.abs(score - baseline) ? " That is much: the attributions are rough." : "";
  return element(
    "div", {}, element("div", { class: "tokens", dir: "auto" }, ...tokens), element("p", { class: "soft small" }, note, rough),
  );
}

/** The attention of the chosen head over the tokens of a text. */
class AttentionView {
  constructor(place) {
    Object.assign(this, { place, answer: null, chosen: 0 });
  }

  /** Shows an answer of the server: tokens and weights, (S, S). */
  show(answer) {
    this.answer = answer;
    if (this.chosen >= answer.tokens.length) this.chosen = 0;
    this.place.classList.remove("stale");
    this.draw();
  }

  /** Shows why there is no attention, as for a family that returns no weights. */
  fail(message) {
    this.answer = null;
    this.place.replaceChildren(element("p", { class: "soft small" }, message));
  }

  draw() {
    if (!this.answer) return;
    const { tokens, weights } = this.answer;
    const incoming = document.getElementById("direction").value === "to";
    const values = tokens.map((_, other) => (incoming ? weights[other][this.chosen] : weights[this.chosen][other]));
    const hadFocus = this.place.contains(document.activeElement);
    const largest = Math.max(...values);
    const places = tokenElements(tokens, "button", (index) => ({
      value: values[index], largest, type: "button", title: `${tokens[index]}: ${percent(values[index])}`,
      className: index === this.chosen ? "chosen" : "", "aria-pressed": String(index === this.chosen),
      onclick: () => this.choose(index),
    }));
    const strongest = values.indexOf(largest);
    const [source, target] = incoming ? [strongest, this.chosen] : [this.chosen, strongest];
    const note = `Most: “${tokenText(tokens[source])}” attends to “${tokenText(tokens[target])}” with ${percent(largest)} of its attention.`;
    this.place.replaceChildren(
      element("div", { class: "tokens", dir: "auto" }, ...places), element("p", { class: "soft small" }, note),
    );
    if (hadFocus) places[this.chosen].focus();
  }

  choose(index) {
    this.chosen = index;
    this.draw();
  }
}
