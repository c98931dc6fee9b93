// The choice of a slice of the rows: by the keys of the state that the reader sets.
"use strict";

/** Returns the positions of the rows of a split; "all" is every split. */
function rowsOfSplit(name) {
  const split = rows.splits.indexOf(name);
  return Uint32Array.from({ length: rows.count }, (_, position) => position)
    .filter((position) => split < 0 || rows.split[position] === split);
}

onStart(async () => {
  rows = await Rows.load();
  if (rows) onState(["split"], () => setSlice(rowsOfSplit(getState("split") ?? rows.shownSplit)));
});
