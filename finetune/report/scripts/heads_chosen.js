// The chosen head: its values by every method, the rows that need it, which label it serves.
"use strict";

/** Returns a table of the chosen head's value in every map. */
function valuesTable(head) {
  const rows = [...headData.maps, ...headData.changes].map((map) => {
    const cell = cellOf(map, head);
    return cell && element("tr", {}, element("th", { scope: "row", class: "text" }, map.name), element("td", { class: "text" }, cell[3]));
  });
  return element("table", { class: "values" }, element("tbody", {}, ...rows.filter(Boolean)));
}

/** Shows the panel of the chosen head. */
function showChosenHead() {
  const head = chosenHead();
  const place = document.getElementById("chosen-head");
  place.hidden = head === null;
  if (head === null) return;
  const name = headName(head);
  place.replaceChildren(
    element("h3", {}, name.charAt(0).toUpperCase() + name.slice(1)),
    element("div", { class: "scroll" }, valuesTable(head)),
  );
}

onStart(() => {
  if (headData) onState(["head"], showChosenHead);
});
