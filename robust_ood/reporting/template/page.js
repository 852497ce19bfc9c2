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
        table.classList.add("ranked");
        heads.forEach((sorted) => sorted.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
      });
    });
  }

  // Rows of long tables can be chosen by words of their names and cells.
  for (const table of document.querySelectorAll("table.sortable")) {
    const rows = [...table.tBodies[0].rows];
    if (rows.length < 8) { continue; }
    const tools = document.createElement("div");
    tools.className = "tools";
    const label = document.createElement("label");
    const input = document.createElement("input");
    const count = document.createElement("span");
    input.type = "search";
    input.placeholder = "aloe far, or -msp";
    count.setAttribute("role", "status");
    label.append("Filter ", input);
    tools.append(label, count);
    table.parentElement.before(tools);
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter((word) => word && word !== "-");
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => (word.startsWith("-") ? !text.includes(word.slice(1)) : text.includes(word)));
        shown += row.hidden ? 0 : 1;
      }
      count.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
    });
  }

  // Names stay in view while numbers scroll, as far as they leave half of the width to these.
  const pin = (box) => {
    const table = box.querySelector("table");
    box.querySelectorAll(".pinned, .edge").forEach((cell) => { cell.classList.remove("pinned", "edge"); cell.style.left = ""; });
    const overflows = box.scrollWidth > box.clientWidth + 1;
    const before = box.previousElementSibling;
    if (before?.classList.contains("hint")) { before.remove(); }
    box.classList.toggle("scrolled", overflows && box.scrollLeft > 0);
    if (!overflows) { return; }
    const hint = document.createElement("p");
    hint.className = "hint";
    hint.textContent = table ? "Scroll sideways for more columns" : "Scroll sideways";
    box.before(hint);
    if (!table) { return; }
    const first = table.tBodies[0].rows[0];
    if (!first) { return; }
    const names = [...first.cells].filter((cell) => cell.tagName === "TH");
    let left = 0;
    names.forEach((name, column) => {
      const width = name.getBoundingClientRect().width;
      if (column && left + width > box.clientWidth / 2) { left = Infinity; return; }
      const last = column === names.length - 1 || left + width + names[column + 1].getBoundingClientRect().width > box.clientWidth / 2;
      for (const row of table.rows) {
        const cell = row.cells[column];
        if (!cell || row.className === "heads") { continue; }
        cell.classList.add("pinned");
        cell.classList.toggle("edge", last);
        cell.style.left = `${left}px`;
      }
      left += width;
    });
  };
  const boxes = [...document.querySelectorAll(".scroll")];
  const pinAll = () => boxes.forEach(pin);
  boxes.forEach((box) => box.addEventListener("scroll", () => box.classList.toggle("scrolled", box.scrollLeft > 0), { passive: true }));
  addEventListener("resize", pinAll);
  document.querySelectorAll("details").forEach((details) => details.addEventListener("toggle", pinAll));
  pinAll();

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((details) => { details.open = true; });
  });
  addEventListener("afterprint", () => { opened.forEach((details) => { details.open = false; }); });
})();
