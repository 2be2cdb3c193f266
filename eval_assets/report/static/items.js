// Items of an evaluation, or of two: listed, filtered and searched; their texts come in chunks as they are needed.
"use strict";
(() => {
  const PAGE = 50;
  const FLAGS = [[1, "error"], [2, "prompt cut"], [4, "cut off"], [8, "empty"]];
  const root = document.querySelector("[data-items]");
  const kind = root.dataset.items;
  const folder = root.dataset.list.slice(0, root.dataset.list.lastIndexOf("/") + 1);
  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children.filter((child) => child !== null));
    return made;
  };
  const format = (value) => (value === null || value === undefined ? "" : Number.isInteger(value) ? String(value) : value.toFixed(3));

  // -- chunks: scripts that call evalReport with their name and a string of JSON ------------------
  const arrived = new Map();
  const loading = new Map();
  window.evalReport = (name, json) => arrived.set(name, json);
  function load(name) {
    if (!loading.has(name)) {
      loading.set(name, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        const failed = () => { loading.delete(name); reject(new Error(`${name} could not be loaded`)); };
        script.src = folder + name;
        script.onerror = failed;
        script.onload = () => {
          if (!arrived.has(name)) return failed();
          resolve(JSON.parse(arrived.get(name)));
          arrived.delete(name);
          script.remove();
        };
        document.head.append(script);
      }));
    }
    return loading.get(name);
  }

  // -- word by word: Myers 1986, over words, spaces and signs; texts too far apart differ as a whole ------
  const MOST = 1200;
  function differences(before, after) {
    const [a, b] = [before, after].map((text) => text.match(/\s+|[\p{L}\p{M}\p{N}_]+|./gsu) ?? []);
    let start = 0;
    while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
    let end = 0;
    while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end += 1;
    const middle = path(a.slice(start, a.length - end), b.slice(start, b.length - end));
    // Spaces between two changed words belong to the change: "one two" for "six ten" is one change, not two.
    const joined = [[0, a.slice(0, start).join("")]];
    let [gone, come, spaces] = ["", "", ""];
    const close = () => {
      joined.push([-1, gone], [1, come], [0, spaces]);
      [gone, come, spaces] = ["", "", ""];
    };
    for (const [way, word] of middle) {
      if (way < 0) [gone, come, spaces] = [gone + spaces + word, come + spaces, ""];
      else if (way > 0) [gone, come, spaces] = [gone + spaces, come + spaces + word, ""];
      else if ((gone || come) && !word.trim()) spaces += word;
      else {
        close();
        joined.push([0, word]);
      }
    }
    close();
    joined.push([0, a.slice(a.length - end).join("")]);
    return joined.filter(([, words]) => words);
  }
  function path(a, b) {
    const reach = [];
    let furthest = new Map([[1, 0]]);
    for (let distance = 0; distance <= Math.min(a.length + b.length, MOST); distance += 1) {
      reach.push(furthest);
      furthest = new Map(furthest);
      for (let k = -distance; k <= distance; k += 2) {
        const down = k === -distance || (k !== distance && furthest.get(k - 1) < furthest.get(k + 1));
        let x = down ? furthest.get(k + 1) : furthest.get(k - 1) + 1;
        while (x < a.length && x - k < b.length && a[x] === b[x - k]) x += 1;
        furthest.set(k, x);
        if (x >= a.length && x - k >= b.length) return back(a, b, reach);
      }
    }
    return [[-1, a.join("")], [1, b.join("")]];
  }
  function back(a, b, reach) {
    const steps = [];
    let x = a.length;
    let y = b.length;
    for (let distance = reach.length - 1; distance >= 0; distance -= 1) {
      const k = x - y;
      const at = reach[distance];
      const down = k === -distance || (k !== distance && at.get(k - 1) < at.get(k + 1));
      const from = down ? k + 1 : k - 1;
      const [fromX, fromY] = [at.get(from), at.get(from) - from];
      while (x > Math.max(fromX, 0) && y > Math.max(fromY, 0)) steps.push([0, a[(x -= 1, y -= 1, x)]]);
      if (distance > 0) steps.push(down ? [1, b[(y -= 1)]] : [-1, a[(x -= 1)]]);
    }
    return steps.reverse();
  }

  load(root.dataset.list.slice(folder.length)).then(start, (error) => {
    root.replaceChildren(element("p", { className: "note wrong", textContent: `The items can't be shown: ${error.message}.` }));
  });

  function start(list) {
    const { columns, metrics, groups, chunks, sizes } = list;
    const names = list.sides ?? [];
    const total = columns.id.length;
    const first = [];
    sizes.reduce((sum, size) => (first.push(sum), sum + size), 0);
    const chunkOf = (item) => {
      let low = 0;
      let high = first.length - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (first[middle] <= item) low = middle;
        else high = middle - 1;
      }
      return low;
    };
    const itemOf = async (item) => {
      const chunk = chunkOf(item);
      return (await load(chunks[chunk]))[item - first[chunk]];
    };

    // -- controls ---------------------------------------------------------------------------------
    const field = (label, control) => {
      control.id = `items-${label.toLowerCase()}`;
      return [element("div", { className: "field" }, element("label", { htmlFor: control.id, textContent: label }), control), control];
    };
    const choice = (label, options) => field(label, element("select", {}, ...options.map(([value, text]) => new Option(text, value))));
    const [searchLabel, search] = field("Search", element("input", { type: "search", autocomplete: "off", placeholder: "prompts, answers, ids" }));
    const [groupLabel, group] = choice("Group", [["", "all"], ...groups.map((name, index) => [index, name])]);
    const [metricLabel, metric] = choice("Metric", metrics.map((name, index) => [index, name]));
    const [scoreLabel, score] = choice(kind === "pairs" ? "Outcome" : "Score", []);
    const [flagLabel, flag] = choice("Noted", [["", "anything"], ...FLAGS.map(([bit, name]) => [bit, name])]);
    const [orderLabel, order] = choice("Order", kind === "pairs"
      ? [["", "largest difference"], ["index", "as asked"]]
      : [["", "as asked"], ["up", "lowest score first"], ["down", "highest score first"]]);
    const status = element("p");
    status.setAttribute("role", "status");
    const tools = element("div", { className: "tools" }, searchLabel, groups.length ? groupLabel : null,
      kind === "samples" && metrics.length > 1 ? metricLabel : null, scoreLabel, flagLabel, orderLabel, status);
    tools.setAttribute("role", "search");
    tools.setAttribute("aria-label", "Items");
    const results = element("ol");
    const back = element("button", { type: "button", textContent: "Previous" });
    const next = element("button", { type: "button", textContent: "Next" });
    const place = element("span");
    const pager = element("div", { className: "pager" }, back, next, place);
    const paper = element("p", { className: "paper note" });
    root.replaceChildren(tools, paper, results, pager);

    const values = () => columns.scores[Number(metric.value)];
    function offerScores() {
      const kept = score.value;
      let options;
      if (kind === "pairs") options = [["", "all"], ["win", "wins"], ["loss", "losses"], ["same", "same score"]];
      else {
        const seen = new Set(values().filter((value) => value !== null));
        options = [...seen].every((value) => value === 0 || value === 1)
          ? [["", "all"], ["1 1", "1 (right)"], ["0 0", "0 (wrong)"]]
          : [["", "all"], ...ranges([...seen])];
      }
      score.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
      if (options.some(([value]) => value === kept)) score.value = kept;
    }
    function ranges(seen) {
      const low = Math.min(...seen);
      const high = Math.max(...seen);
      return [0, 1, 2, 3].map((quarter) => {
        const ends = [quarter, quarter + 1].map((share) => low + ((high - low) * share) / 4);
        return [ends.join(" "), `${format(ends[0])} to ${format(ends[1])}`];
      });
    }

    // -- filtering: by the columns at once, by text a chunk at a time, so that nothing ever freezes ----
    let matching = [];
    let page = 0;
    let turn = 0;
    const pause = () => new Promise((resolve) => setTimeout(resolve));
    function byColumns() {
      const numbers = kind === "samples" ? values() : null;
      const [low, high] = kind === "samples" && score.value ? score.value.split(" ").map(Number) : [null, null];
      const found = [];
      for (let item = 0; item < total; item += 1) {
        if (group.value !== "" && columns.group[item] !== Number(group.value)) continue;
        if (flag.value !== "" && !(columns.flags[item] & Number(flag.value))) continue;
        if (low !== null && !(numbers[item] !== null && numbers[item] >= low && numbers[item] <= high)) continue;
        if (kind === "pairs" && score.value) {
          const way = columns.difference[item];
          if (score.value !== (way > 0 ? "win" : way < 0 ? "loss" : "same")) continue;
        }
        found.push(item);
      }
      if (kind === "pairs" && order.value === "") return found;
      if (order.value === "up" || order.value === "down") {
        const sign = order.value === "up" ? 1 : -1;
        return found.sort((a, b) => (numbers[a] === null) - (numbers[b] === null) || sign * (numbers[a] - numbers[b]) || a - b);
      }
      return found.sort((a, b) => columns.index[a] - columns.index[b]);
    }
    const texts = new Map();
    async function textOf(item) {
      if (!texts.has(item)) {
        const { prompt, choices = [], references = [], wrong = [], sides } = await itemOf(item);
        const parts = [columns.id[item], prompt ?? "", ...choices, ...references, ...wrong];
        for (const side of sides) parts.push(side.output ?? "", side.error ?? "", ...(side.outputs ?? []).map((one) => one.text));
        texts.set(item, parts.join("\n").toLowerCase());
      }
      return texts.get(item);
    }
    async function filter() {
      const mine = (turn += 1);
      const candidates = byColumns();
      const words = search.value.toLowerCase().trim();
      page = 0;
      if (!words) {
        matching = candidates;
        return show();
      }
      const found = [];
      matching = found;
      let drawn = -1;
      let looked = performance.now();
      for (let position = 0; position < candidates.length; position += 1) {
        try {
          const text = await textOf(candidates[position]);
          if (mine !== turn) return undefined;
          if (text.includes(words)) found.push(candidates[position]);
        } catch (error) {
          return mine === turn ? show("", ` so far; the search ended early, ${error.message}`) : undefined;
        }
        if (performance.now() - looked > 30) {
          const progress = `searched ${position + 1} of ${candidates.length}, `;
          // The list is drawn again only while its first page grows: what somebody has opened there stays.
          if (Math.min(found.length, PAGE) !== drawn) {
            drawn = Math.min(found.length, PAGE);
            await show(progress);
          } else say(progress);
          await pause();
          if (mine !== turn) return undefined;
          looked = performance.now();
        }
      }
      return show();
    }

    // -- the list ---------------------------------------------------------------------------------
    function say(prefix = "", suffix = "") {
      status.textContent = `${prefix}${matching.length.toLocaleString("en")} of ${total.toLocaleString("en")} items${suffix}`;
    }
    async function show(prefix = "", suffix = "") {
      const shown = matching.slice(page * PAGE, page * PAGE + PAGE);
      const mine = turn;
      let items;
      try {
        items = await Promise.all(shown.map(itemOf));
      } catch (error) {
        status.textContent = `The items can't be shown: ${error.message}`;
        return;
      }
      if (mine !== turn) return;
      results.replaceChildren(...items.map((item, position) => entry(shown[position], item)));
      results.hidden = shown.length === 0;
      const pages = Math.max(Math.ceil(matching.length / PAGE), 1);
      say(prefix, suffix);
      const whole = (value) => value.toLocaleString("en");
      const range = shown.length ? `Items ${whole(page * PAGE + 1)} to ${whole(page * PAGE + shown.length)} of ` : "";
      paper.textContent = range + whole(matching.length) + (matching.length < total ? ` that were searched for, of ${whole(total)} in all` : "");
      pager.hidden = pages === 1;
      place.textContent = `Page ${page + 1} of ${pages}`;
      back.disabled = page === 0;
      next.disabled = page + 1 >= pages;
    }
    function turnTo(wanted) {
      page = wanted;
      show().then(() => results.querySelector("summary")?.focus());
    }
    back.addEventListener("click", () => turnTo(page - 1));
    next.addEventListener("click", () => turnTo(page + 1));

    const gist = (text) => (text ?? "").slice(-600).replace(/\s+/g, " ").trim();
    function entry(number, item) {
      const flags = FLAGS.filter(([bit]) => columns.flags[number] & bit).map(([, name]) => element("span", { className: "flag", textContent: name }));
      const prompt = gist(item.prompt);
      const peek = element("span", { className: "peek" }, prompt.length > 180 ? "… " + prompt.slice(-180).replace(/^\S*\s/, "") : prompt, ...flags);
      const difference = kind === "pairs" ? columns.difference[number] : null;
      const value = kind === "pairs" ? difference ? (difference > 0 ? "+" : "\u2212") + format(Math.abs(difference)) : "same" : format(values()[number]);
      const summary = element("summary", {},
        element("span", { className: "at", textContent: columns.index[number] + 1 }),
        element("span", { className: "score" + (difference > 0 ? " v-better" : difference < 0 ? " v-worse" : ""), textContent: value }), peek);
      const details = element("details", {}, summary);
      details.addEventListener("toggle", () => {
        if (details.open && !details.querySelector(".body")) details.append(body(number, item));
      });
      return element("li", {}, details);
    }

    // -- one item ---------------------------------------------------------------------------------
    const text = (content, className = "text") => element("div", { className, textContent: content || "(empty)" });
    const heading = (content) => element("h3", { textContent: content });
    function body(number, item) {
      const made = element("div", { className: "body" });
      if (item.prompt !== undefined) made.append(heading("Prompt"), text(item.prompt));
      if (item.choices && item.sides.some((side) => side.lls)) made.append(heading("Choices"), choices(item));
      if (item.references) made.append(heading(item.references.length > 1 ? "Expected, any of" : "Expected"), ...item.references.map((one) => text(one)));
      if (item.wrong) made.append(heading("Counted as wrong"), ...item.wrong.map((one) => text(one)));
      const outputs = item.sides.some((side) => side.output !== undefined || side.error !== undefined);
      if (outputs) made.append(heading(item.sides.length > 1 ? "Outputs" : "Output"), answers(item));
      if (!item.choices && item.sides.some((side) => side.lls)) {
        made.append(line(item.sides.map((side, index) => `${names[index] ? names[index] + ": " : ""}log-likelihood ${side.lls?.map(format).join(", ")}`)));
      }
      made.append(...item.sides.map((side, index) => line(facts(side, names[index]))));
      made.append(line([`item ${columns.id[number]}`, columns.group[number] === null ? null : groups[columns.group[number]]]));
      return made;
    }
    const line = (parts) => element("p", { className: "facts-line", textContent: parts.filter(Boolean).join(" · ") });
    function facts(side, name) {
      const [prompt, output, cut] = side.counts ?? [];
      return [name, ...Object.entries(side.scores ?? {}).map(([metric, value]) => `${metric} ${format(value)}`),
        prompt ? `${prompt} prompt tokens` : null, output ? `${output} output tokens` : null,
        cut ? `${cut} tokens of the prompt cut` : null, side.end ? `ended by ${side.end}` : null];
    }
    function choices(item) {
      const most = (numbers) => numbers.indexOf(Math.max(...numbers));
      const head = element("tr", {}, ...["", "Choice"].map((content) => column(content)));
      for (const _ of item.sides) head.append(column("log-likelihood", true), column("a character", true), column("probability", true));
      const above = element("tr", {}, element("td", { colSpan: 2 }), ...names.map((name) => Object.assign(column(name, true), { colSpan: 3, scope: "colgroup" })));
      const rows = item.choices.map((content, index) => {
        const right = item.labels ? item.labels[index] === 1 : index === item.target;
        const row = element("tr", { className: right ? "right" : "" });
        row.append(element("td", { textContent: right ? "right" : "" }), element("td", { className: "long", textContent: content }));
        for (const side of item.sides) {
          const lls = (side.lls ?? []).map((value) => value ?? -Infinity);
          const each = lls.map((value, at) => value / Math.max(item.lengths[at], 1));
          const peak = Math.max(...lls);
          const sum = lls.reduce((all, value) => all + Math.exp(value - peak), 0);
          const cells = [[format(side.lls?.[index]), most(lls) === index], [format(each[index]), most(each) === index],
            [lls.length ? (Math.exp(lls[index] - peak) / sum).toFixed(3) : "", false]];
          row.append(...cells.map(([value, best]) => element("td", { className: "number" }, best ? element("strong", { textContent: `${value} ◂` }) : value)));
        }
        return row;
      });
      const table = element("table", {}, element("thead", {}, ...(names.length ? [above] : []), head), element("tbody", {}, ...rows));
      const wide = element("div", { className: "wide" }, table);
      wide.tabIndex = 0;
      wide.setAttribute("role", "region");
      wide.setAttribute("aria-label", "Choices and their log-likelihoods");
      return wide;
    }
    function column(content, number = false) {
      const head = element(content ? "th" : "td", { textContent: content, className: number ? "number" : "" });
      if (content) head.scope = "col";
      return head;
    }
    function answers(item) {
      const sides = item.sides.map((side, index) => {
        const made = element("div");
        if (names[index]) made.append(heading(names[index]));
        if (side.error !== undefined) made.append(element("p", { className: "wrong", textContent: side.error }));
        for (const one of side.outputs ?? []) made.append(text(one.text), line([...Object.entries(one.scores).map(([metric, value]) => `${metric} ${format(value)}`), one.end]));
        if (!side.outputs && side.output !== undefined) made.append(text(side.output));
        return made;
      });
      const [a, b] = item.sides;
      if (item.sides.length === 2 && a.output && b.output && !a.outputs && !b.outputs && a.output !== b.output) {
        const [before, after] = sides.map((side) => side.querySelector(".text"));
        const parts = differences(a.output, b.output);
        before.replaceChildren(...parts.filter(([way]) => way <= 0).map(([way, words]) => (way ? element("del", { textContent: words }) : words)));
        after.replaceChildren(...parts.filter(([way]) => way >= 0).map(([way, words]) => (way ? element("ins", { textContent: words }) : words)));
      }
      return element("div", { className: "sides" }, ...sides);
    }

    // -- what was chosen is in the address ------------------------------------------------------------
    const controls = { q: search, group, metric, score, flag, order };
    const state = new URLSearchParams(location.hash.slice(1));
    if (state.get("metric") && state.get("metric") < metrics.length) metric.value = state.get("metric");
    offerScores();
    for (const [name, control] of Object.entries(controls)) {
      const value = state.get(name);
      if (value !== null && (control === search || [...control.options].some((option) => option.value === value))) control.value = value;
    }
    function changed() {
      for (const [name, control] of Object.entries(controls)) {
        if (control.value && !(name === "metric" && control.value === "0")) state.set(name, control.value);
        else state.delete(name);
      }
      history.replaceState(null, "", "#" + state);
      filter();
    }
    let typed;
    search.addEventListener("input", () => { clearTimeout(typed); typed = setTimeout(changed, 150); });
    metric.addEventListener("change", () => { offerScores(); changed(); });
    for (const control of [group, score, flag, order]) control.addEventListener("change", changed);
    filter().then(() => { root.dataset.ready = "yes"; });
  }
})();
