// Tables that sort, the leaderboard's filters and its pinned version, and charts. Everything is readable without it.
"use strict";
(() => {
  const number = (value) => {
    const size = Math.abs(value);
    if (size < 100) return value.toFixed(3);
    return size < 1e6 ? value.toLocaleString("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 }) : value.toPrecision(3);
  };
  const signed = (value) => {
    const text = number(Math.abs(value));
    return Number(text.replaceAll(",", "")) === 0 ? text : (value > 0 ? "+" : "\u2212") + text;
  };
  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };

  // What a person has chosen is in the address, so that it can be sent to somebody else.
  const state = new URLSearchParams(location.hash.slice(1));
  const remember = (name, value) => {
    if (value) state.set(name, value);
    else state.delete(name);
    history.replaceState(null, "", "#" + state);
  };

  function sortable(table, moved = () => {}) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const collator = new Intl.Collator("en", { numeric: true });
    const key = (row, column) => {
      const cell = row.cells[column];
      if (cell.tagName === "TH") return cell.textContent.trim();
      return cell.dataset.v === undefined ? null : Number(cell.dataset.v);
    };
    function sort(column, direction) {
      const sign = direction === "ascending" ? 1 : -1;
      const rows = [...body.rows].map((row) => [key(row, column), row]);
      rows.sort(([a, rowA], [b, rowB]) => {
        if (a === null || b === null) return (a === null) - (b === null) || rowA.dataset.row - rowB.dataset.row;
        const order = typeof a === "string" ? collator.compare(a, b) : a - b;
        return sign * order || rowA.dataset.row - rowB.dataset.row;
      });
      body.append(...rows.map(([, row]) => row));
      heads.forEach((head, position) => {
        if (head.hasAttribute("aria-sort")) head.setAttribute("aria-sort", position === column ? direction : "none");
      });
      moved(column, direction);
    }
    [...body.rows].forEach((row, position) => { row.dataset.row ??= position; });
    heads.forEach((head, column) => {
      head.querySelector("button")?.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const best = head.dataset.up === "0" || !head.classList.contains("number") ? "ascending" : "descending";
        const other = best === "ascending" ? "descending" : "ascending";
        sort(column, now === best ? other : best);
      });
    });
    return sort;
  }

  function leaderboard(table) {
    const rows = [...table.tBodies[0].rows];
    const names = rows.map((row) => row.cells[0].querySelector("a").textContent);
    const heads = [...table.tHead.rows[0].cells];
    const versions = document.getElementById("versions");
    const benchmarks = document.getElementById("benchmarks");
    const pin = document.getElementById("pin");
    const status = document.getElementById("status");
    let pinned = null;

    const sort = sortable(table, (column, direction) => {
      remember("sort", `${column} ${direction}`);
      if (pinned !== null) table.tBodies[0].prepend(rows[pinned]);
    });

    function filter() {
      const words = versions.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, position) => {
        const name = names[position].toLowerCase();
        row.hidden = position !== pinned && !words.every((word) => name.includes(word));
        shown += !row.hidden;
      });
      const wanted = benchmarks.value.toLowerCase().split(/\s+/).filter(Boolean);
      const hidden = heads.map((head) => Boolean(head.dataset.name && wanted.length && !wanted.some((word) => head.dataset.name.toLowerCase().includes(word))));
      for (const row of [table.tHead.rows[0], ...rows]) hidden.forEach((hide, column) => { row.cells[column].hidden = hide; });
      const columns = hidden.filter((hide, column) => !hide && heads[column].dataset.name).length;
      status.textContent = `${shown} of ${rows.length} versions, ${columns} of ${heads.length - 2} benchmarks`;
      remember("versions", versions.value);
      remember("benchmarks", benchmarks.value);
    }

    // The difference of two independent estimates from their own intervals: Newcombe 1998, Zou and Donner 2008.
    function unpaired(cell, base) {
      const [v, l, h, bv, bl, bh] = [cell.v, cell.l, cell.h, base.v, base.l, base.h].map(Number);
      if ([l, h, bl, bh].some(Number.isNaN)) return null;
      const d = v - bv;
      return [d, d - Math.hypot(v - l, bh - bv), d + Math.hypot(h - v, bv - bl)];
    }
    const verdicts = { better: 1, worse: -1 };
    function compared(cell, base, row, up) {
      if (cell.v === undefined || base.v === undefined) return null;
      const own = Number(cell.b) === pinned ? [cell, 1] : Number(base.b) === row ? [base, -1] : null;
      if (own === null) {
        const found = unpaired(cell, base);
        if (found === null) return { d: cell.v - base.v, way: 0, how: "no interval" };
        const way = found[1] > 0 ? up : found[2] < 0 ? -up : 0;
        return { d: found[0], low: found[1], high: found[2], way, how: "from both intervals" };
      }
      const [from, sign] = own;
      const way = (verdicts[from.k] ?? 0) * sign;
      if (from.d === undefined) return { d: cell.v - base.v, way, how: "verdict item by item" };
      const ends = [from.dl * sign, from.dh * sign].sort((a, b) => a - b);
      return { d: from.d * sign, low: ends[0], high: ends[1], way, how: "item by item" };
    }

    function difference(cell, found) {
      const link = cell.querySelector("a");
      const text = [element("b", { textContent: signed(found.d) })];
      if (found.way) {
        const better = found.way > 0;
        const sign = element("i", { textContent: better ? "▲ better" : "▼ worse", className: `v-${better ? "better" : "worse"}` });
        text.push(" ", sign);
      }
      const interval = found.low === undefined ? "no interval" : `${signed(found.low)} to ${signed(found.high)}`;
      link.replaceChildren(...text, element("small", { textContent: interval }), element("small", { textContent: found.how }));
      cell.classList.toggle("up", found.way > 0);
      cell.classList.toggle("down", found.way < 0);
      cell.classList.toggle("same", found.way === 0);
    }

    const scores = new Map();
    function choose() {
      pinned = pin.value === "" ? null : Number(pin.value);
      table.classList.toggle("differences", pinned !== null);
      for (const [cell, before] of scores) {
        cell.querySelector("a").replaceChildren(...before);
        cell.classList.remove("up", "down", "same");
      }
      scores.clear();
      rows.forEach((row, position) => {
        row.classList.toggle("pinned", position === pinned);
        if (pinned === null || position === pinned) return;
        heads.forEach((head, column) => {
          const cell = row.cells[column];
          if (!head.dataset.name || cell.dataset.v === undefined) return;
          const found = compared(cell.dataset, rows[pinned].cells[column].dataset, position, head.dataset.up === "0" ? -1 : 1);
          if (found === null) return;
          scores.set(cell, [...cell.querySelector("a").childNodes]);
          difference(cell, found);
        });
      });
      remember("from", pinned === null ? "" : names[pinned]);
      if (pinned !== null) table.tBodies[0].prepend(rows[pinned]);
      filter();
    }

    const order = names.map((_, position) => position).sort((a, b) => new Intl.Collator("en", { numeric: true }).compare(names[a], names[b]));
    pin.append(...order.map((position) => new Option(names[position], position)));
    versions.value = state.get("versions") ?? "";
    benchmarks.value = state.get("benchmarks") ?? "";
    const [column, direction] = (state.get("sort") ?? "").split(" ");
    if (Number(column) < heads.length && ["ascending", "descending"].includes(direction)) sort(Number(column), direction);
    const from = names.indexOf(state.get("from"));
    if (from >= 0) pin.value = from;
    versions.addEventListener("input", filter);
    benchmarks.addEventListener("input", filter);
    pin.addEventListener("change", choose);
    if (from >= 0) choose();
    else filter();
  }

  function charts() {
    for (const place of document.querySelectorAll("[data-chart]")) {
      const options = { ast: true, actions: false, renderer: "svg", defaultStyle: false, tooltip: { disableDefaultStyle: true } };
      // Vega's interpreter (ast) needs no eval, and the page's own styles take the place of those that it would inject.
      vegaEmbed(place, JSON.parse(place.dataset.chart), options).then((result) => {
        place.dataset.drawn = result.spec ? "yes" : "no";
      });
    }
  }

  for (const table of document.querySelectorAll("table.sortable")) sortable(table);
  const table = document.getElementById("leaderboard");
  if (table) leaderboard(table);
  if (window.vegaEmbed) charts();
  document.documentElement.dataset.ready = "yes";
})();
