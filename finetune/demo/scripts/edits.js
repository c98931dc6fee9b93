// The list of edits: what was changed in the text, and what it changed in the prediction.
"use strict";

const SHOWN_EDITS = 12;

/** Returns the words and the spaces of a text. */
const wordsOf = (text) => text.split(/(\s+)/);

/** Returns the changed part of two texts: [common start, removed, inserted, common end], cut at words. */
function changedPart(before, after) {
  const [old, current] = [wordsOf(before), wordsOf(after)];
  const shorter = Math.min(old.length, current.length);
  let start = 0, end = 0;
  while (start < shorter && old[start] === current[start]) start++;
  while (end < shorter - start && old.at(-1 - end) === current.at(-1 - end)) end++;
  const middle = (words) => words.slice(start, words.length - end).join("");
  return [old.slice(0, start).join(""), middle(old), middle(current), old.slice(old.length - end).join("")];
}

/** Returns an edit of texts as an element: a few words around it, the removed words struck out. */
function editElement(before, after) {
  const place = element("span", { dir: "auto" });
  before.forEach((text, index) => {
    if (text === after[index]) return;
    const [start, removed, inserted, end] = changedPart(text, after[index]);
    const short = (words) => (words.length > 120 ? `${words.slice(0, 60)} … ${words.slice(-50)}` : words);
    place.append(start.length > 30 ? `…${start.slice(-30)}` : start);
    if (removed) place.append(element("del", {}, short(removed)));
    if (removed && inserted) place.append(" ");
    if (inserted) place.append(element("ins", {}, short(inserted)));
    place.append(end.length > 30 ? `${end.slice(0, 30)}…` : end, " ");
  });
  return place;
}

/** Returns the labels that moved most, with probabilities before and after. */
function movedElement(before, after) {
  const values = (prediction) => prediction.heads_off;
  const changes = values(after).map((value, label) => ({ label, change: value - values(before)[label] }));
  changes.sort((first, second) => Math.abs(second.change) - Math.abs(first.change));
  const place = element("span");
  const two = model.problemType === "single_label_classification" && model.labels.length === 2;
  const shown = changes.slice(0, two ? 1 : 3).filter(({ change }, index) => index === 0 || Math.abs(change) >= 0.001);
  shown.forEach(({ label, change }) => {
    const word = model.problemType === "regression" ? "" : `${model.labels[label]} `;
    const number = (prediction) => (word ? percent(values(prediction)[label]) : values(prediction)[label].toFixed(3));
    place.append(element("div", {}, `${word}${number(before)} → ${number(after)} `, differenceElement(change)));
  });
  return place;
}

/** The edits of a text since the page was opened, newest first. */
class EditList {
  constructor(onRestore) {
    Object.assign(this, { onRestore, last: new Map() });
    this.table = document.getElementById("edits");
    this.table.append(element("tr", {}, ...["Text", "Edit", "Prediction", ""].map((name) => element("th", {}, name))));
  }

  /** Lists what changed since the text before in the column `name`; with other heads, nothing is compared. */
  add(name, texts, prediction, off) {
    const before = this.last.get(name);
    this.last.set(name, { texts, prediction, off });
    if (!before || before.off !== off || before.texts.every((text, index) => text === texts[index])) return;
    const restore = element("button", { type: "button", onclick: () => this.onRestore(name, before.texts) }, "Undo");
    const cells = [name, editElement(before.texts, texts), movedElement(before.prediction, prediction), restore];
    this.table.hidden = false;
    document.getElementById("edits-note").hidden = true;
    this.table.rows[0].after(element("tr", {}, ...cells.map((cell) => element("td", {}, cell))));
    if (this.table.rows.length > SHOWN_EDITS + 1) this.table.deleteRow(-1);
  }

  /** Starts a column from the text of another one. */
  copy(name, newName) {
    if (this.last.has(name)) this.last.set(newName, this.last.get(name));
  }

  /** Forgets the last text of a column, because the next one is not an edit of it. */
  forget(name) {
    this.last.delete(name);
  }
}
