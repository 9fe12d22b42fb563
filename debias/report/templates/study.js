"use strict";
// Filters act on whatever says which configurations it is about: rows and marks that have data-configurations are shown while one of
// them is chosen, joints that have data-all while all are; the heat map takes its means from the chosen ones.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("filters");
  const all = (selector, of = document) => [...of.querySelectorAll(selector)];

  function chosen() {
    const wanted = all("fieldset", form).map((set) => [set.dataset.key, new Set(all("input:checked", set).map((box) => box.value))]);
    return new Set(data.configurations.filter((configuration) => wanted.every(([key, values]) => values.has(configuration.values[key]))).map((configuration) => configuration.key));
  }

  function show(keys) {
    for (const element of all("[data-configurations]")) {
      element.toggleAttribute("hidden", !element.dataset.configurations.split(" ").some((key) => keys.has(key)));
    }
    for (const element of all("[data-all]")) {
      element.toggleAttribute("hidden", !element.dataset.all.split(" ").every((key) => keys.has(key)));
    }
    heat(keys);
    document.dispatchEvent(new CustomEvent("chosen", { detail: keys }));
    const count = `${keys.size} of ${data.configurations.length} configurations shown`;
    document.getElementById("count").textContent = keys.size ? count : `${count}: no configuration has all that is ticked`;
  }

  function heat(keys) {
    for (const cell of all(".heat td")) {
      const changes = Object.entries(JSON.parse(cell.dataset.changes)).filter(([key]) => keys.has(key)).map(([, change]) => change);
      const mean = changes.reduce((sum, change) => sum + change, 0) / changes.length;
      cell.textContent = changes.length ? `${mean < 0 ? "" : "+"}${mean.toFixed(1)}` : "";
      cell.className = !changes.length ? "" : mean < 0 ? "fall" : "rise";
      cell.style.setProperty("--heat", Math.min(1, Math.abs(mean || 0) / 10)); // 10 points and more have the full colour
    }
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
    body.append(...sorted, ...rows.filter(empty)); // what has no value comes last, either way
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button?.classList.contains("sort")) sort(button);
    if (button?.classList.contains("all")) {
      for (const box of all("input", button.closest("fieldset"))) box.checked = true;
      show(chosen());
    }
  });
  form.addEventListener("change", () => show(chosen()));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => show(chosen()))); // the boxes are ticked after this event
  form.hidden = !form.querySelector("fieldset");
  if (matchMedia("(max-width: 40rem)").matches) form.querySelector("details").open = false;
  show(new Set(data.configurations.map((configuration) => configuration.key)));
})();
