"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0], written = [...body.rows];
  const value = (row, index) => row.cells[index].dataset.value ?? row.cells[index].textContent.trim();
  heads.forEach((head, index) => head.querySelector("button.sort").addEventListener("click", () => {
    const next = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort") || "none"];
    for (const other of heads) other.removeAttribute("aria-sort");
    if (next !== "none") head.setAttribute("aria-sort", next);
    const sign = next === "descending" ? -1 : 1;
    const compare = (a, b) => {
      const x = value(a, index), y = value(b, index);
      if (x === "" || y === "") return (x === "") - (y === "");  // what is not known stays below
      return sign * (x - y || (Number.isNaN(x - y) ? x.localeCompare(y) : 0));
    };
    body.append(...(next === "none" ? written : [...written].sort(compare)));
  }));
}
