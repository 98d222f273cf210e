// Click on a header: sorts the rows of each block by that column; again: the other way round.
for (const button of document.querySelectorAll("table.results th button"))
  button.addEventListener("click", () => sort(button.closest("th")));

function sort(head) {
  const direction = head.ariaSort === "ascending" ? -1 : 1;
  for (const other of head.parentElement.cells) other.ariaSort = null;
  head.ariaSort = direction > 0 ? "ascending" : "descending";
  for (const body of head.closest("table").tBodies) {
    const rows = [...body.querySelectorAll("tr:not(.block)")];
    body.append(...rows.sort((a, b) => compare(a.cells[head.cellIndex], b.cells[head.cellIndex], direction)));
  }
}

function compare(a, b, direction) {
  const empty = !a.textContent.trim() - !b.textContent.trim(); // last, whichever way
  if (empty) return empty;
  const [x, y] = [a.dataset.key, b.dataset.key];
  const order = x && y ? x - y : a.textContent.localeCompare(b.textContent, "en", { numeric: true });
  return direction * order;
}
