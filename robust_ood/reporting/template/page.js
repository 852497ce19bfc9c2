"use strict";
(() => {
  const root = document.documentElement;
  const remember = (value) => { try { localStorage.setItem("robust-ood-theme", value); } catch { /* no storage here */ } };
  const remembered = () => { try { return localStorage.getItem("robust-ood-theme"); } catch { return null; } };
  const chooser = document.querySelector(".theme");
  const choose = (name) => {
    if (name === "auto") { delete root.dataset.theme; } else { root.dataset.theme = name; }
    for (const button of chooser.children) { button.setAttribute("aria-pressed", String(button.dataset.theme === name)); }
  };
  chooser.hidden = false;
  chooser.addEventListener("click", (event) => {
    const name = event.target.dataset.theme;
    if (name) { choose(name); remember(name); }
  });
  const before = remembered();
  if (["light", "dark"].includes(before)) { choose(before); }

  const valueOf = (cell) => (cell.dataset.value === undefined ? null : Number(cell.dataset.value));
  const compare = (a, b) => {
    const [x, y] = [valueOf(a), valueOf(b)];
    if (x !== null && y !== null) { return x - y; }
    if (x !== null || y !== null) { return x === null ? 1 : -1; }
    return a.textContent.localeCompare(b.textContent, "en", { numeric: true });
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    heads.forEach((head, column) => {
      if (body.rows.length && [...body.rows].some((row) => row.cells[column].dataset.value !== undefined)) { head.classList.add("numeric"); }
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        const rows = [...body.rows].map((row, index) => ({ row, index, cell: row.cells[column] }));
        rows.sort((a, b) => (down ? compare(b.cell, a.cell) : compare(a.cell, b.cell)) || a.index - b.index);
        body.append(...rows.map(({ row }) => row));
        heads.forEach((sorted) => sorted.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
      });
    });
  }

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((details) => { details.open = true; });
  });
  addEventListener("afterprint", () => { opened.forEach((details) => { details.open = false; }); });
})();
