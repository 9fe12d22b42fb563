"use strict";
// Filters and sorting. Rows and marks with data-configurations are shown while at least one of these configurations passes
// the filters; lines between two marks (data-all) while all of them do. Cells with data-parts show the mean of those left.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("filters");
  const all = (selector, of = document) => [...of.querySelectorAll(selector)];

  function filtered() {
    const wanted = all("fieldset", form).map((set) => [set.dataset.key, new Set(all("input:checked", set).map((box) => box.value))]);
    const passes = ({ values }) => wanted.every(([key, allowed]) => allowed.has(values[key]));
    return new Set(data.configurations.filter(passes).map(({ key }) => key));
  }

  function show(keys) {
    for (const element of all("[data-configurations]")) {
      element.toggleAttribute("hidden", !element.dataset.configurations.split(" ").some((key) => keys.has(key)));
    }
    for (const element of all("[data-all]")) {
      element.toggleAttribute("hidden", !element.dataset.all.split(" ").every((key) => keys.has(key)));
    }
    all("[data-parts]").forEach((cell) => average(cell, keys));
    document.dispatchEvent(new CustomEvent("filtered", { detail: keys }));
    const count = `${keys.size} of ${data.configurations.length} configurations shown`;
    document.getElementById("count").textContent = keys.size ? count : `${count}: none matches all filters`;
  }

  function average(cell, keys) {
    const parts = Object.entries(JSON.parse(cell.dataset.parts)).filter(([key]) => keys.has(key)).map(([, part]) => part);
    const mean = parts.reduce((sum, part) => sum + part, 0) / parts.length;
    cell.textContent = parts.length ? `${mean < 0 ? "" : "+"}${mean.toFixed(data.decimals.SS)}` : "";
    cell.className = !parts.length ? "" : mean < 0 ? "fall" : "rise";
    cell.style.setProperty("--heat", Math.min(1, Math.abs(mean || 0) / 10)); // full colour from 10 points on
  }

  function value(row, column) {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  }

  function sort(button) {
    const header = button.closest("th");
    const body = button.closest("table").tBodies[0];
    const column = header.cellIndex;
    const down = header.getAttribute("aria-sort") === "ascending";
    for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].filter((row) => !row.classList.contains("baseline")); // base models stay on top
    const [full, empty] = [(row) => value(row, column) !== "", (row) => value(row, column) === ""];
    const sorted = rows.filter(full).sort((a, b) => (down ? -1 : 1) * compare(value(a, column), value(b, column)));
    body.append(...sorted, ...rows.filter(empty)); // empty cells come last in both directions
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button?.classList.contains("sort")) sort(button);
    if (button?.classList.contains("all")) {
      for (const box of all("input", button.closest("fieldset"))) box.checked = true;
      show(filtered());
    }
  });
  form.addEventListener("change", () => show(filtered()));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => show(filtered()))); // the event fires before the boxes are reset
  form.hidden = !form.querySelector("fieldset");
  if (matchMedia("(max-width: 40rem)").matches) form.querySelector("details").open = false;
  show(new Set(data.configurations.map((configuration) => configuration.key)));
})();
