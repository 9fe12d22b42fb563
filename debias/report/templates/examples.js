"use strict";
// The example browser: sentence pairs of the configurations shown, searched by words and bias, sorted by change.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("browser");
  if (!form) return;
  const PAGE = 25;
  const body = document.querySelector("#pairs tbody");
  const more = document.getElementById("more");
  let keys = [];
  let shown = PAGE;

  const ORDERS = {
    most: (a, b) => Math.abs(b.change) - Math.abs(a.change),
    fell: (a, b) => a.change - b.change,
    rose: (a, b) => b.change - a.change,
    least: (a, b) => Math.abs(a.change) - Math.abs(b.change),
    after: (a, b) => b.after - a.after,
  };

  function mean(columns, place) {
    const found = columns.map((column) => column[place]).filter((number) => number !== null);
    return found.length ? found.reduce((sum, number) => sum + number, 0) / found.length : null;
  }

  function matching() {
    const { words, bias, benchmark, configuration, order } = Object.fromEntries(new FormData(form));
    const of = configuration ? [configuration] : keys;
    const before = of.map((key) => data.examples.before[data.examples.base[key]]);
    const after = of.map((key) => data.examples.after[key]);
    const wanted = words.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const found = [];
    data.examples.pairs.forEach((pair, place) => {
      const text = `${pair.more} ${pair.less}`.toLowerCase();
      if ((bias && pair.bias !== bias) || (benchmark && pair.benchmark !== benchmark)) return;
      if (!wanted.every((word) => text.includes(word))) return;
      const [first, last] = [mean(before, place), mean(after, place)];
      if (first !== null && last !== null) found.push({ pair, before: first, after: last, change: last - first });
    });
    return found.sort(ORDERS[order]);
  }

  function row({ pair, before, after, change }) {
    const line = document.createElement("tr");
    const cells = [pair.bias, pair.more, pair.less, ...[before, after, change].map((number) => `${number < 0 ? "" : "+"}${number.toFixed(data.decimals.nats)}`)];
    cells.forEach((text, place) => {
      const cell = document.createElement("td");
      cell.textContent = text; // never as HTML: sentences are data
      cell.className = place === 0 ? "text" : place < 3 ? "wrap" : "";
      line.append(cell);
    });
    return line;
  }

  function draw() {
    const found = matching();
    body.replaceChildren(...found.slice(0, shown).map(row));
    more.hidden = found.length <= shown;
    document.getElementById("found").textContent = `${Math.min(shown, found.length)} of ${found.length} pairs shown`;
  }

  function start() {
    shown = PAGE;
    draw();
  }

  document.addEventListener("filtered", (event) => {
    const select = form.elements.configuration;
    const before = select.value;
    keys = data.configurations.map(({ key }) => key).filter((key) => event.detail.has(key) && key in data.examples.after);
    const names = new Map(data.configurations.map(({ key, name }) => [key, name]));
    select.replaceChildren(new Option("mean of those shown", ""), ...keys.map((key) => new Option(names.get(key), key)));
    select.value = keys.includes(before) ? before : "";
    start();
  });
  form.addEventListener("input", start);
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    const next = shown;
    shown += PAGE;
    draw();
    const first = body.rows[next]; // keyboard users stay where they were
    if (first) {
      first.tabIndex = -1;
      first.focus({ preventScroll: true });
    }
  });
  form.hidden = false;
})();
