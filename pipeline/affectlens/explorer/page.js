const main = document.getElementById("main"), detail = document.getElementById("detail");
const folder = document.body.dataset.folder, waiting = {}, opened = {}, NONE = 65535, FULL = 4, AROUND = 14, PAGE = 100;
let base, arrays, encoded, starts, wordStarts, serial = 0;

// Blocks: base64 of gzip of a header and arrays, in the page or in scripts of a folder beside it.
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(stream).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const kinds = { Uint8Array, Int8Array, Uint16Array, Uint32Array, Float32Array }, found = {};
  for (const [name, [kind, place, size]] of Object.entries(header.arrays)) found[name] = new kinds[kind](buffer, 4 + length + place, size);
  return { data: header.data, arrays: found };
}
globalThis.receive = (name, text) => waiting[name]?.(text);
function block(name) {
  opened[name] ??= new Promise((resolve, reject) => {
    const inside = document.getElementById(name);
    if (inside) return resolve(inside.textContent);
    waiting[name] = resolve;
    const script = element("script", { src: `${folder}/${name}.js` });
    script.onerror = () => { delete opened[name]; reject(new Error(`${folder}/${name}.js is missing; keep the folder beside this page`)); };
    document.head.append(script);
  }).then(unpack).then((each) => ({ ...each.arrays, data: each.data }));
  return opened[name];
}

const element = (name, properties = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made && key !== "list") made[key] = value; else made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
};
const link = (hash, text) => element("a", { href: hash, textContent: text });
const conceptLink = (name) => link(`#/concept/${encodeURIComponent(name)}`, name);
const featureLink = (number) => link(`#/feature/${number}`, `feature ${number}`);
const number = (value, digits = 3) => (value === null || value === undefined || Number.isNaN(value) ? "–" : value.toFixed(digits).replace("-", "−"));
const signed = (value, digits = 2) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
const share = (value) => (value === NONE ? null : value / 65534);
const percent = (value) => (value >= 0.0995 ? `${(100 * value).toFixed(0)}%` : `${(100 * value).toPrecision(2)}%`);
const svg = (name, properties, ...children) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(properties)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

// Tables: sortable, saved as CSV. A cell is a value, or {key, show}.
function table(caption, columns, rows, { order = null, most = PAGE } = {}) {
  let sorted = rows, page = 1, by = order;
  const head = element("tr"), body = element("tbody"), more = element("button", { type: "button", className: "copy", textContent: "Show more" });
  const key = (cell) => (cell && typeof cell === "object" && "key" in cell ? cell.key : cell);
  const whole = columns.map((_, at) => rows.every((row) => typeof row[at] !== "number" || Number.isInteger(row[at])));
  const fill = () => {
    sorted = by === null ? rows : [...rows].sort((a, b) => {
      const [x, y] = [key(a[by.column]), key(b[by.column])];
      if (x === null || x === undefined || x === "") return 1;
      if (y === null || y === undefined || y === "") return -1;
      return (x < y ? -1 : x > y ? 1 : 0) * by.way;
    });
    body.replaceChildren(...sorted.slice(0, page * most).map((row) => element("tr", {}, ...row.map((cell, at) => {
      const shown = cell && typeof cell === "object" && "show" in cell ? cell.show : cell;
      const made = element("td", { className: columns[at].text ? (columns[at].long ? "text long" : "text") : "" });
      made.append(shown instanceof Node ? shown : shown === null || shown === undefined ? "–" : typeof shown === "number" ? (whole[at] ? String(shown) : number(shown)) : String(shown));
      return made;
    }))));
    more.hidden = sorted.length <= page * most;
    for (const [at, cell] of [...head.children].entries()) cell.setAttribute("aria-sort", by?.column === at ? (by.way > 0 ? "ascending" : "descending") : "none");
  };
  columns.forEach((column, at) => {
    const button = element("button", { type: "button", textContent: column.name, title: column.help ?? "" });
    button.addEventListener("click", () => { by = { column: at, way: by?.column === at ? -by.way : column.text ? 1 : -1 }; fill(); });
    head.append(element("th", { scope: "col", className: column.text ? "text" : "" }, button));
  });
  more.addEventListener("click", () => { page += 1; fill(); });
  const save = element("button", { type: "button", className: "copy", textContent: "Save as CSV" });
  save.addEventListener("click", () => saveTable(caption, [columns.map((column) => column.name), ...sorted.map((row) => row.map(key))]));
  fill();
  return element("div", {}, element("div", { className: "scroll" }, element("table", {}, element("caption", { textContent: caption }), element("thead", {}, head), body)), save, more);
}
function numbers(entries) {
  return element("div", { className: "numbers" }, ...entries.map(([name, value, note]) => element("div", { title: note ?? "" }, element("span", { className: "soft", textContent: name }), element("b", {}, value))));
}
function reply(...children) { main.replaceChildren(...children.flat().filter(Boolean)); }

// Where things are.
const documentOf = (token) => {
  let low = 0, high = starts.length - 1;
  while (low < high) { const middle = (low + high + 1) >> 1; if (starts[middle] <= token) low = middle; else high = middle - 1; }
  return { document: low, position: token - starts[low] + base.first };
};
async function feature(index) {
  const found = await block(`features-${Math.floor(index / base.block)}`), at = index % base.block, concepts = base.concepts.length;
  const [from, to] = [found.starts[at], found.starts[at + 1]], tokens = new Uint32Array(to - from);
  let token = 0;
  for (let each = from; each < to; each++) { token += found.steps[each]; tokens[each - from] = token; }
  const neighbours = found.nearest.length / (found.starts.length - 1), words = found.words.length / (found.starts.length - 1);
  const part = (name, width) => found[name].subarray(at * width, (at + 1) * width);
  return { index, tokens, values: found.values.subarray(from, to), largest: arrays.largest[index],
    selection: [...part("selection", concepts)].map(share), heldOut: [...part("heldOut", concepts)].map(share),
    low: share(found.low[at]), high: share(found.high[at]), twin: found.twin[at], twinSelection: [...part("twinSelection", concepts)].map(share),
    words: [...part("words", words)], logits: [...part("logits", words)], nearest: [...part("nearest", neighbours)], cosine: [...part("cosine", neighbours)],
    together: [...part("together", neighbours)], jaccard: [...part("jaccard", neighbours)], lift: [...part("lift", neighbours)] };
}
async function reading(row) {
  const found = await block(`readings-${Math.floor(row / base.rowsInBlock)}`), tokens = arrays.tokens;
  return found.values.subarray((row % base.rowsInBlock) * tokens, (row % base.rowsInBlock + 1) * tokens);
}
const piece = (at) => (base.vocabulary.length ? base.vocabulary[arrays.pieces[at]] : "· ");

// A passage: tokens coloured by values; `value(position)` is in parts of FULL.
function passage(document, from, to, value, say, peak = null) {
  const block = element("div", { className: "tokens" });
  block.setAttribute("role", "group");
  block.setAttribute("aria-label", "Tokens; move with the arrow keys");
  for (let position = from; position < to; position++) {
    const given = value(position), token = element("span", { className: position === peak ? "token peak" : "token", textContent: piece(wordStarts[document] + position), tabIndex: position === (peak ?? from) ? 0 : -1 });
    const strength = Math.round(Math.min(Math.abs(given ?? 0), 1) * 62);
    token.style.background = given ? `color-mix(in srgb, var(--${given < 0 ? "low" : "high"}) ${strength}%, transparent)` : "";
    token.dataset.position = position;
    block.append(token);
  }
  const tell = (event) => {
    const token = event.target.closest(".token");
    if (!token) return;
    detail.hidden = false;
    detail.replaceChildren(element("b", { textContent: JSON.stringify(token.textContent) }), `  ${say(Number(token.dataset.position))}`);
  };
  block.addEventListener("pointerover", tell);
  block.addEventListener("focusin", tell);
  block.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], token = event.target.closest(".token");
    const next = step && token && (step > 0 ? token.nextElementSibling : token.previousElementSibling);
    if (!next) return;
    event.preventDefault();
    token.tabIndex = -1; next.tabIndex = 0; next.focus();
  });
  return block;
}
function where(document) {
  const each = base.documents[document];
  return element("span", { className: "where" }, link(`#/text/${document}`, `text ${document}`), ` ${each.emotion ? `story of ${each.emotion}, topic ${each.topic}` : each.kind} `,
    element("span", { className: each.use === "held out" ? "mark held" : "mark", textContent: each.use === "held out" ? "held-out topic" : each.use }));
}
function areaBar(selection, heldOut, low, high) {
  const bar = element("span", { className: "bar" }), place = (value) => `${100 * Math.max(0, Math.min(1, value))}%`;
  bar.setAttribute("aria-hidden", "true");
  if (low !== null) { const band = element("i", { className: "band" }); band.style.cssText = `left:${place(low)};width:calc(${place(high)} - ${place(low)})`; bar.append(band); }
  const half = element("i", { className: "half" }); half.style.left = "50%"; bar.append(half);
  if (selection !== null) { const dot = element("i", { className: "dot" }); dot.style.left = place(selection); bar.append(dot); }
  if (heldOut !== null) { const ring = element("i", { className: "ring" }); ring.style.left = place(heldOut); bar.append(ring); }
  return bar;
}
const AREAS = "AUROC from 0 to 1: orange mark, topics that choose; ring, held-out topics; grey band, the middle 95% of this feature's AUROCs under permuted labels; line, one half.";

// Explanations in words: of every run of `affectlens explain`, those of a feature.
const explanations = (index) => base.explained.flatMap((run) => run.features.filter((each) => each.feature === index).map((each) => ({ ...each, planted: run.planted })));
function able(planted, test) {
  const mine = planted.filter((each) => each.test === test && each.kind !== "random");
  return mine.length ? `${test} ${number(mine.reduce((sum, each) => sum + each.auroc, 0) / mine.length, 2)}${mine[0].able ? "" : " (not able)"}` : null;
}
function inWords(index) {
  const found = explanations(index);
  if (!found.length) return [];
  return [element("h2", { textContent: "In words" }), ...found.flatMap((each) => [
    element("blockquote", { textContent: each.text || "No explanation was written." }),
    element("p", {}, element("b", { textContent: each.verdict }), `. Written by ${each.author || "nobody"} from ${each.examples} passages of topics that choose, scored by ${each.judge} on ${each.items} passages of other topics. The judge on planted features: ${["detection", "fuzzing"].map((test) => able(each.planted, test)).filter(Boolean).join(", ") || "not asked"}.`),
    each.scores.length ? table(`Scores of the explanation of feature ${index} and of its floors`, [{ name: "Test", text: true, help: "detection: is it active in this passage; fuzzing: are these its tokens; output: are these its words" }, { name: "Description", text: true }, { name: "AUROC" }, { name: "95% from" }, { name: "to" },
      { name: "Balanced accuracy" }, { name: "Questions" }, { name: "Without answer" }], each.scores.map((row) => [row.test, row.description, row.auroc, row.low, row.high, row.balanced_accuracy, row.items, row.failures]), { most: 20 }) : null,
    each.strata.length ? table("Detection against silent passages of one kind", [{ name: "Silent passages", text: true }, { name: "AUROC" }, { name: "How many" }], each.strata.map((row) => [row.stratum, row.auroc, row.items])) : null].filter(Boolean))];
}

// Views.
const views = {
  ...circuitViews,
  home() {
    const found = base.tables["match/concepts"], directions = base.tables["directions/concepts"];
    const column = (table, name) => table.columns.findIndex((each) => each.name === name);
    const rowOf = (table, concept) => table.rows.find((row) => row[column(table, "concept")] === concept) ?? [];
    const verdict = (concept, vector) => causal(concept).find((row) => row.vector === vector);
    const rows = base.concepts.map((concept, at) => {
      const [mine, direction] = [rowOf(found, concept), rowOf(directions, concept)];
      const says = verdict(concept, "direction");
      return [{ key: concept, show: conceptLink(concept) }, direction[column(directions, "auroc_test")], mine[column(found, "auroc_test")], mine[column(found, "auroc_random_sae")],
        { key: arrays.chosen[at], show: featureLink(arrays.chosen[at]) }, says ? (says.specific ? "specific" : says.sufficient ? "own words" : "not shown") : null];
    });
    const count = base.features, dead = arrays.active.reduce((sum, each) => sum + (each === 0), 0);
    const show = element("div"), kinds = element("select", { id: "kinds" }, new Option("all that were active", "alive"), new Option("active at 1 in 10 tokens or less", "sparse"), new Option("above the best random feature's band on held-out topics", "held"), new Option("never active", "dead"));
    const told = new Map(base.explained.flatMap((run) => run.features.filter((each) => each.text).map((each) => [each.feature, each.text])));
    const draw = () => {
      const rows = [];
      for (let each = 0; each < count; each++) {
        const active = arrays.active[each] / arrays.encodedTokens, held = share(arrays.bestHeldOut[each]);
        const kept = { alive: active > 0, sparse: active > 0 && active <= 0.1, held: held !== null && held > 0.9, dead: active === 0 }[kinds.value];
        if (kept) rows.push([{ key: each, show: featureLink(each) }, { key: base.concepts[arrays.best[each]], show: conceptLink(base.concepts[arrays.best[each]]) }, share(arrays.bestSelection[each]), held,
          { key: active, show: percent(active) }, { key: wordsOf(each).join(" "), show: wordsOf(each).join(" ") }, ...(base.explained.length ? [told.get(each) ?? null] : [])]);
      }
      show.replaceChildren(table(`${rows.length} features`, [{ name: "Feature" , text: true }, { name: "Best concept", text: true }, { name: "AUROC, selection", help: "within the topics that choose; the largest of all concepts, so it is large by chance too" },
        { name: "AUROC, held out", help: "of the same concept within the ablated topics" }, { name: "Active", help: "share of tokens" }, { name: "Raises", text: true, long: true, help: "tokens whose logits its decoder row raises most" },
        ...(base.explained.length ? [{ name: "In words", text: true, long: true, help: "an explanation; its page says what it scores" }] : [])], rows, { order: { column: 2, way: -1 } }));
    };
    kinds.options[2].textContent = "AUROC above 0.9 on held-out topics";
    kinds.addEventListener("change", draw);
    draw();
    reply(element("h1", { textContent: `${base.concepts.length} concepts, ${count.toLocaleString("en")} features, ${base.documents.length.toLocaleString("en")} texts` }),
      element("p", { textContent: `${dead ? `${dead} features are active in none of these texts.` : "Every feature is active in some of these texts."} The best of ${count.toLocaleString("en")} features looks good by chance: believe the held-out column.` }),
      base.circuits ? element("p", {}, link("#/circuits", `Heads and circuits: ${base.circuits.layers * base.circuits.heads} heads, ${base.circuits.names.length} circuits`)) : null,
      element("h2", { textContent: "Concepts" }),
      table("Concepts of the study", [{ name: "Concept", text: true }, { name: "Direction reads", help: "AUROC of difference of means within left-out topics" }, { name: "Best feature reads", help: "AUROC of the feature chosen without the topic that is read" }, { name: "Random SAE", help: "the same search in random SAEs" },
        { name: "Feature", help: "chosen on all topics but the ablated ones", text: true }, { name: "Direction causes", text: true, help: "verdict of stage causal" }], rows, { most: 200 }),
      element("h2", { textContent: "Features" }), element("p", { className: "choices" }, element("label", { htmlFor: "kinds", textContent: "Show" }), kinds), show);
  },

  async feature(name) {
    const index = Number(name);
    if (!Number.isInteger(index) || index < 0 || index >= base.features || name === "") return lost(`The SAE has features 0 to ${base.features - 1}.`);
    const each = await feature(index), active = each.tokens.length / arrays.encodedTokens;
    const value = (at) => (each.values[at] / 255) * each.largest;
    const best = arrays.best[index], chosenBy = base.concepts.filter((concept, at) => arrays.chosen[at] === index);
    const areas = base.concepts.map((concept, at) => [{ key: concept, show: conceptLink(concept) }, { key: each.selection[at], show: areaBar(each.selection[at], each.heldOut[at], each.low, each.high) },
      each.selection[at], each.heldOut[at], base.twins ? each.twinSelection[at] : null, each.selection[at] === null ? null : each.selection[at] > each.high ? "above" : each.selection[at] < each.low ? "below" : "inside"]);
    const title = element("h1", { textContent: `Feature ${index}` });
    const step = element("p", {}, index > 0 ? link(`#/feature/${index - 1}`, "previous") : null, " ", index + 1 < base.features ? link(`#/feature/${index + 1}`, "next") : null);
    const heading = [title, step, numbers([["Active at", percent(active), "share of encoded tokens"], ["Largest activation", number(each.largest, 2)], ["Best concept", conceptLink(base.concepts[best])],
      ["AUROC, selection", number(each.selection[best])], ["AUROC, held out", number(each.heldOut[best])], ["95% under permuted labels", `${number(each.low, 2)} to ${number(each.high, 2)}`]])];
    if (chosenBy.length) heading.push(element("p", {}, "Chosen as the feature of ", ...chosenBy.flatMap((concept, at) => [at ? ", " : "", conceptLink(concept)]), chosenBy.length > 1 ? ": one feature for several concepts." : "."));
    if (!each.tokens.length) return reply(heading, element("p", { textContent: "It is active at no token of these texts." }));
    const detection = [element("h2", { textContent: "What it detects" }), element("p", { textContent: AREAS }),
      table(`AUROC of feature ${index}`, [{ name: "Concept", text: true }, { name: "AUROC" }, { name: "Selection" }, { name: "Held out" }, { name: "Random twin", help: `feature ${each.twin} of a random SAE, active in the nearest share of texts` }, { name: "Of its band", text: true }], areas, { order: { column: 2, way: -1 }, most: 12 })];
    const causes = [];
    for (const concept of chosenBy) for (const row of causal(concept)) if (row.vector === "feature") causes.push(element("p", { textContent: `${concept}: ${row.words}` }));
    const words = each.words.map((word, at) => ({ word: base.words[word], logit: each.logits[at] })), way = base.wordsEachWay;
    const listed = (some, title) => table(title, [{ name: "Token", text: true }, { name: "Logit" }], some.map(({ word, logit }) => [{ key: word, show: element("code", { textContent: JSON.stringify(word) }) }, { key: logit, show: signed(logit) }]), { most: 8 });
    reply(heading, ...detection,
      element("h2", { textContent: "How strongly it is active" }), histogram(each, value), element("h2", { textContent: "Where it is active" }), await passages(each, value),
      ...inWords(index), causes.length ? [element("h2", { textContent: "What injecting it does" }), ...causes] : [],
      element("h2", { textContent: "What it writes" }), element("p", { textContent: `Logits added per unit of norm. A random unit vector raises its best token by ${number(base.chance.logit, 2)} on average; a feature of a middle layer need not write words at all.` }),
      element("div", { className: "grid" }, listed(words.slice(0, way), "Raised most"), listed(words.slice(way), "Lowered most")),
      element("h2", { textContent: "Neighbours" }),
      element("div", { className: "grid" },
        table("By decoder row", [{ name: "Feature", text: true }, { name: "Cosine", help: `the nearest of as many random rows has ${number(base.chance.cosine)}` }, { name: "Best concept", text: true }], each.nearest.map((other, at) => [{ key: other, show: featureLink(other) }, { key: each.cosine[at], show: number(each.cosine[at]) }, base.concepts[arrays.best[other]]])),
        table("By the tokens at which both are active", [{ name: "Feature", text: true }, { name: "Jaccard" }, { name: "Lift", help: "times as often as independent features" }], each.together.map((other, at) => [{ key: other, show: featureLink(other) }, { key: each.jaccard[at], show: number(each.jaccard[at]) }, { key: each.lift[at], show: number(each.lift[at], 1) }]))),
      element("p", { className: "soft", textContent: `By chance the nearest of ${base.features.toLocaleString("en")} random rows has a cosine of ${number(base.chance.cosine)}.` }));
  },

  async concept(name) {
    const at = base.concepts.indexOf(name);
    if (at < 0) return lost(`The study has no concept “${name}”.`);
    const ranks = arrays.ranked.length / base.concepts.length, mine = [...arrays.ranked.subarray(at * ranks, (at + 1) * ranks)];
    const found = await Promise.all(mine.map(feature));
    const told = described("directions/concepts", name), matched = described("match/concepts", name);
    const row = base.confusions[at], order = base.concepts.map((concept, other) => [concept, row[other]]).sort((a, b) => (b[1] ?? -9) - (a[1] ?? -9));
    const samples = (base.samples[name] ?? []).map((sample) => element("div", { className: "passage" }, element("p", { className: "where", textContent: `${sample.source}: ${sample.family}, strength ${sample.strength}; ${sample.prompt}` }), element("p", { textContent: sample.text })));
    reply(element("h1", { textContent: name }), element("p", {}, link(`#/direction/${encodeURIComponent(name)}`, "Its direction on stories"), base.circuits?.names.includes(name) ? [" · ", link(circuitAddress(name), "Its circuit of heads")] : null),
      element("h2", { textContent: "Features that detect it best" }), element("p", { textContent: AREAS }),
      table(`Features for ${name}`, [{ name: "Feature", text: true }, { name: "AUROC" }, { name: "Selection" }, { name: "Held out" }, { name: "Active" }, { name: "Raises", text: true, long: true }],
        found.map((each) => [{ key: each.index, show: featureLink(each.index) }, { key: each.selection[at], show: areaBar(each.selection[at], each.heldOut[at], each.low, each.high) }, each.selection[at], each.heldOut[at],
          { key: each.tokens.length, show: percent(each.tokens.length / arrays.encodedTokens) }, wordsOf(each.index).join(" ")]), { most: 10 }),
      element("div", { className: "grid" },
        element("div", {}, element("h2", { textContent: "Stories that its direction reads" }), table(`Mean reading of each concept's stories by the direction of ${name}`, [{ name: "Stories of", text: true }, { name: "Reading", help: "standard deviations over the stories of a topic that did not build the direction" }], order.map(([concept, value]) => [{ key: concept, show: conceptLink(concept) }, { key: value, show: value === null ? "–" : signed(value) }]), { most: 10 })),
        element("div", {}, element("h2", { textContent: "In figures" }), told, matched)),
      causal(name).length ? [element("h2", { textContent: "What injecting does" }), ...causal(name).map((row) => element("p", { textContent: `${row.vector}: ${row.words}` }))] : [],
      samples.length ? [element("h2", { textContent: "Texts sampled under its vectors" }), ...samples] : []);
  },

  async direction(name) {
    const row = base.rows.indexOf(name);
    if (row < 0) return lost(`There is no direction of “${name}”.`);
    const values = await reading(row), means = base.documents.map((each, document) => {
      let sum = 0;
      for (let at = wordStarts[document] + base.first; at < wordStarts[document + 1]; at++) sum += values[at];
      return { document, mean: sum / 20 / Math.max(1, arrays.lengths[document] - base.first), own: each.emotion === name, story: each.emotion !== "" };
    });
    const stories = means.filter((each) => each.story).sort((a, b) => b.mean - a.mean);
    const show = (each) => element("div", { className: "passage" }, where(each.document), ` mean ${signed(each.mean)} sd`,
      passage(each.document, base.first, arrays.lengths[each.document], (position) => values[wordStarts[each.document] + position] / 20 / FULL, (position) => `${name} ${signed(values[wordStarts[each.document] + position] / 20)} sd`));
    const own = stories.filter((each) => each.own);
    reply(element("h1", {}, "Direction of ", base.concepts.includes(name) ? conceptLink(name) : name), element("p", { textContent: `Values are in standard deviations of ${base.neutralTokens.toLocaleString("en")} tokens of neutral text; green is above their mean, purple below. The direction was built on the stories marked selection.` }),
      spread(stories, name), described("directions/layers", null),
      element("h2", { textContent: "Highest stories" }), ...stories.slice(0, 4).map(show), own.length ? [element("h2", { textContent: "Its own stories that read lowest" }), ...own.slice(-2).map(show)] : []);
  },

  async text(name) {
    const document = Number(name);
    if (!Number.isInteger(document) || document < 0 || document >= base.documents.length || name === "") return lost(`There are texts 0 to ${base.documents.length - 1}.`);
    const each = base.documents[document], select = element("select", { id: "rows" }, ...base.rows.map((row) => new Option(row, row)));
    const input = element("input", { id: "number", type: "number", min: 0, max: base.features - 1, placeholder: "number" }), place = element("div"), bars = element("div");
    const wanted = new URLSearchParams(location.hash.split("?")[1] ?? "");
    select.value = base.rows.includes(wanted.get("row")) ? wanted.get("row") : base.rows.includes(each.emotion) ? each.emotion : base.rows[0];
    input.value = wanted.get("feature") ?? "";
    const draw = async () => {
      const mine = ++serial;
      let value, say;
      if (input.value !== "" && Number(input.value) < base.features && Number(input.value) >= 0) {
        const shown = await feature(Math.floor(Number(input.value))), by = new Map();
        shown.tokens.forEach((token, at) => { if (token >= starts[document] && token < starts[document] + encoded[document]) by.set(token - starts[document] + base.first, shown.values[at]); });
        value = (position) => (by.get(position) ?? 0) / 255;
        say = (position) => (position < base.first ? "before the first encoded token" : `feature ${shown.index}: ${number(((by.get(position) ?? 0) / 255) * shown.largest, 2)} of at most ${number(shown.largest, 2)}`);
      } else {
        const values = await reading(base.rows.indexOf(select.value));
        value = (position) => values[wordStarts[document] + position] / 20 / FULL;
        say = (position) => `${select.value} ${signed(values[wordStarts[document] + position] / 20)} sd`;
      }
      if (mine !== serial) return;
      place.replaceChildren(passage(document, 0, arrays.lengths[document], value, say));
    };
    select.addEventListener("change", () => { input.value = ""; draw(); });
    input.addEventListener("input", draw);
    const means = await Promise.all(base.rows.map(async (row, at) => {
      const values = await reading(at);
      let sum = 0;
      for (let token = wordStarts[document] + base.first; token < wordStarts[document + 1]; token++) sum += values[token];
      return [row, sum / 20 / Math.max(1, arrays.lengths[document] - base.first)];
    }));
    bars.append(table("Mean over the text, from the first encoded token on", [{ name: "Row", text: true }, { name: "Mean, sd" }], means.map(([row, mean]) => [{ key: row, show: link(`#/direction/${encodeURIComponent(row)}`, row) }, { key: mean, show: signed(mean) }]), { order: { column: 1, way: -1 }, most: 12 }));
    if (!folder || base.features <= 20000) bars.append(await strongest(document));
    await draw();
    reply(element("h1", { textContent: `Text ${document}` }), element("p", {}, where(document), " ", document > 0 ? link(`#/text/${document - 1}`, "previous") : null, " ", document + 1 < base.documents.length ? link(`#/text/${document + 1}`, "next") : null),
      element("p", { className: "choices" }, element("label", { htmlFor: "rows", textContent: "Coloured by" }), select, element("label", { htmlFor: "number", textContent: "or by feature" }), input), place, bars);
  },
};
function lost(words) { reply(element("h1", { textContent: "Nothing there" }), element("p", {}, words, " ", link("#/", "To the start"))); }
function wordsOf(index) {
  const each = arrays.raised.length / base.features;
  return [...arrays.raised.subarray(index * each, (index + 1) * each)].slice(0, 5).map((word) => base.words[word].trim()).filter(Boolean);
}
function causal(concept) {
  const { columns, rows } = base.tables["causal/verdicts"];
  return rows.map((row) => Object.fromEntries(columns.map((column, at) => [column.name, row[at]]))).filter((row) => row.concept === concept);
}
function described(name, concept, from = base) {
  const { columns, rows } = from.tables[name], at = columns.findIndex((column) => column.name === "concept");
  const mine = concept === null ? rows : rows.filter((row) => row[at] === concept);
  if (!mine.length) return null;
  if (concept === null) return table(name, columns.map((column) => ({ name: column.name, help: column.help, text: typeof mine[0][columns.indexOf(column)] === "string" })), mine);
  return table(`${name}: ${concept}`, [{ name: "What", text: true, long: true }, { name: "Value", text: true, long: true }], columns.map((column, place) => [{ key: column.help || column.name, show: column.help || column.name }, Array.isArray(mine[0][place]) ? mine[0][place].join(" ") : mine[0][place]]).filter(([what]) => what.key !== "the emotion"), { most: 60 });
}
async function strongest(document) {
  const found = [];
  for (let index = 0; index < base.features; index += base.block) {
    const mine = await block(`features-${index / base.block}`);
    for (let at = 0; at + 1 < mine.starts.length; at++) {
      let token = 0, sum = 0;
      for (let each = mine.starts[at]; each < mine.starts[at + 1]; each++) {
        token += mine.steps[each];
        if (token >= starts[document] + encoded[document]) break;
        if (token >= starts[document]) sum += mine.values[each];
      }
      if (sum) found.push([index + at, sum / 255 / encoded[document]]);
    }
  }
  found.sort((a, b) => b[1] - a[1]);
  return table("Features most active here, in parts of their largest activation", [{ name: "Feature", text: true }, { name: "Mean" }, { name: "Best concept", text: true }, { name: "Raises", text: true, long: true }],
    found.slice(0, 60).map(([index, mean]) => [{ key: index, show: featureLink(index) }, { key: mean, show: number(mean) }, { key: base.concepts[arrays.best[index]], show: conceptLink(base.concepts[arrays.best[index]]) }, wordsOf(index).join(" ")]), { most: 12 });
}
const chartWidth = () => Math.min(640, Math.max(280, main.clientWidth - 40)); // letters keep their size on a phone
function histogram(each, value) {
  const bins = 12, counts = Array.from({ length: bins }, () => new Map());
  each.tokens.forEach((token, at) => {
    const emotion = base.documents[documentOf(token).document].emotion || "neutral text", bin = counts[Math.min(bins - 1, Math.floor(value(at) / each.largest * bins))];
    bin.set(emotion, (bin.get(emotion) ?? 0) + 1);
  });
  const totals = new Map();
  for (const bin of counts) for (const [emotion, count] of bin) totals.set(emotion, (totals.get(emotion) ?? 0) + count);
  const leading = [...totals].sort((a, b) => b[1] - a[1]).slice(0, 3).map(([emotion]) => emotion), styles = ["var(--feature)", "var(--direction)", "var(--high)", "var(--band)"];
  const sums = counts.map((bin) => [...bin.values()].reduce((a, b) => a + b, 0)), tallest = Math.max(...sums), width = chartWidth(), height = 150;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height + 30}`, role: "img", "aria-label": "Histogram of activation; the table below has the counts" });
  counts.forEach((bin, at) => {
    let top = height;
    [...leading, null].forEach((emotion, place) => {
      const count = emotion ? bin.get(emotion) ?? 0 : sums[at] - leading.reduce((sum, name) => sum + (bin.get(name) ?? 0), 0), tall = height * count / tallest;
      top -= tall;
      picture.append(svg("rect", { x: at * width / bins + 2, y: top, width: width / bins - 4, height: tall, fill: styles[place], stroke: "var(--bg)", "stroke-width": 0.5 }));
    });
    picture.append(svg("text", { x: at * width / bins + 2, y: height + 15 }, number(at * each.largest / bins, 1)));
  });
  return element("div", {}, element("p", { className: "soft", textContent: `Tokens by activation, tallest bar ${tallest}; from below: ${[...leading, "all others"].join(", ")}.` }), picture,
    table("Tokens by activation", [{ name: "From", text: true }, ...leading.map((name) => ({ name })), { name: "all others" }], counts.map((bin, at) => [{ key: at * each.largest / bins, show: number(at * each.largest / bins, 2) }, ...leading.map((name) => bin.get(name) ?? 0), sums[at] - leading.reduce((sum, name) => sum + (bin.get(name) ?? 0), 0)]), { most: bins }));
}
function spread(stories, name) {
  const width = chartWidth(), own = stories.filter((each) => each.own), low = stories.at(-1).mean, high = stories[0].mean, x = (value) => 10 + (width - 20) * (value - low) / (high - low || 1);
  const picture = svg("svg", { viewBox: `0 0 ${width} 80`, role: "img", "aria-label": `Mean reading of every story; ${own.length} of ${name} above, all others below` });
  for (const each of stories) picture.append(svg("line", { x1: x(each.mean), x2: x(each.mean), y1: each.own ? 6 : 36, y2: each.own ? 30 : 56, stroke: each.own ? "var(--feature)" : "var(--control)", "stroke-width": each.own ? 2 : 1 }));
  picture.append(svg("text", { x: 10, y: 74 }, `${signed(low)} sd`), svg("text", { x: width - 60, y: 74 }, `${signed(high)} sd`));
  return element("div", {}, element("p", { className: "soft", textContent: own.length ? `Mean of every story: those of ${name} above, all others below.` : "Mean of every story." }), picture);
}
async function passages(each, value) {
  const strongest = new Map();
  each.tokens.forEach((token, at) => {
    const { document, position } = documentOf(token), before = strongest.get(document);
    if (!before || each.values[at] > before.value) strongest.set(document, { document, position, value: each.values[at], at });
  });
  // One passage a text: its strongest token; so no text fills a list alone.
  const peaks = [...strongest.values()].sort((a, b) => b.value - a.value || a.document - b.document), middle = Math.floor(peaks.length / 2);
  const silent = base.documents.map((_, document) => document).filter((document) => !strongest.has(document));
  const groups = [["Highest", peaks.slice(0, 8)], ["Middle of the texts in which it is active", peaks.slice(Math.max(8, middle - 2), Math.max(8, middle - 2) + 4)], ["Near its threshold", peaks.slice(8).slice(-4)],
    ["Texts in which it is never active", silent.filter((_, at) => at % Math.max(1, Math.floor(silent.length / 3)) === 0).slice(0, 3).map((document) => ({ document, position: base.first + Math.min(AROUND, Math.max(0, encoded[document] - 1)), value: 0, at: null }))]];
  const select = element("select", { id: "coloured" }, new Option("this feature", ""), ...base.rows.map((row) => new Option(`direction of ${row}`, row))), place = element("div");
  const draw = async () => {
    const row = select.value, values = row ? await reading(base.rows.indexOf(row)) : null, mine = new Map();
    each.tokens.forEach((token, at) => mine.set(token, at));
    const own = (document, position) => (position < base.first ? undefined : mine.get(starts[document] + position - base.first));
    place.replaceChildren(...groups.filter(([, found]) => found.length).flatMap(([title, found]) => [element("h3", { textContent: title }), ...found.map((peak) => element("div", { className: "passage" }, where(peak.document), peak.at === null ? "" : ` ${number(value(peak.at), 2)}`,
      passage(peak.document, Math.max(0, peak.position - AROUND), Math.min(arrays.lengths[peak.document], peak.position + AROUND + 1),
        (position) => (values ? values[wordStarts[peak.document] + position] / 20 / FULL : (each.values[own(peak.document, position)] ?? 0) / 255),
        (position) => `feature ${each.index}: ${number(own(peak.document, position) === undefined ? 0 : value(own(peak.document, position)), 2)}${values ? `, ${row} ${signed(values[wordStarts[peak.document] + position] / 20)} sd` : ""}`, peak.at === null ? null : peak.position)))]));
  };
  select.addEventListener("change", draw);
  await draw();
  return element("div", {}, element("p", { className: "choices" }, element("label", { htmlFor: "coloured", textContent: "Coloured by" }), select), element("p", { className: "soft", textContent: "Passages of selection texts chose the feature and flatter it; those marked held-out topic did not." }), place);
}

async function route() {
  const mine = ++serial, [, view = "", name = ""] = location.hash.replace(/^#/, "").split("?")[0].split("/");
  detail.hidden = true;
  document.documentElement.removeAttribute("data-drawn");
  try {
    let given = name;
    try { given = decodeURIComponent(name); } catch { /* a name with a stray percent sign stands for itself */ }
    if (view === "") views.home(); else if (Object.hasOwn(views, view)) await views[view](given); else lost("There is no such page.");
  } catch (error) { reply(element("h1", { textContent: "This part could not be read" }), element("p", { textContent: error.message })); }
  document.title = `${main.querySelector("h1")?.textContent ?? "Explorer"} · AffectLens`;
  document.documentElement.dataset.drawn = String(mine);
  window.scrollTo(0, 0);
}
// A number is a feature, a concept's name its page; anything else is looked for in the words and in the texts.
function search(query) {
  const asked = query.trim(), lower = asked.toLowerCase();
  if (!asked) return;
  if (/^(feature\s*)?\d+$/i.test(asked)) return void (location.hash = `#/feature/${asked.match(/\d+/)[0]}`);
  if (headNumber(asked) >= 0) return void (location.hash = `#/head/${headName(headNumber(asked))}`);
  if (base.circuits && /^(circuits|heads)$/.test(lower)) return void (location.hash = "#/circuits");
  if (circuitNamed(asked) !== null) return void (location.hash = circuitAddress(circuitNamed(asked)));
  const concept = base.rows.find((row) => row.toLowerCase() === lower);
  if (concept) return void (location.hash = base.concepts.includes(concept) ? `#/concept/${encodeURIComponent(concept)}` : `#/direction/${encodeURIComponent(concept)}`);
  const width = arrays.raised.length / base.features, ids = new Set(base.words.flatMap((word, at) => (word.trim().toLowerCase() === lower ? [at] : []))), features = [];
  for (let at = 0; at < arrays.raised.length; at++) if (ids.has(arrays.raised[at])) features.push([Math.floor(at / width), at % width + 1]);
  const texts = [];
  for (let document = 0; document < base.documents.length && texts.length < 200 && base.vocabulary.length; document++) {
    let whole = "";
    for (let at = wordStarts[document]; at < wordStarts[document + 1]; at++) whole += piece(at);
    const found = whole.toLowerCase().indexOf(lower);
    if (found >= 0) texts.push([{ key: document, show: where(document) }, `${found > 40 ? "…" : ""}${whole.slice(Math.max(0, found - 40), found + 80)}…`]);
  }
  const near = base.rows.filter((row) => row.toLowerCase().includes(lower));
  const said = base.explained.flatMap((run) => run.features.filter((each) => each.text.toLowerCase().includes(lower)));
  detail.hidden = true;
  reply(element("h1", { textContent: `“${asked}”` }), near.length ? element("p", {}, "Concepts: ", ...near.flatMap((row, at) => [at ? ", " : "", base.concepts.includes(row) ? conceptLink(row) : link(`#/direction/${row}`, row)])) : null,
    features.length ? table("Features that raise it among their first words", [{ name: "Feature", text: true }, { name: "Place", help: "among the tokens that it raises most" }, { name: "Best concept", text: true }], features.map(([index, place]) => [{ key: index, show: featureLink(index) }, place, base.concepts[arrays.best[index]]]), { order: { column: 1, way: 1 } }) : element("p", { textContent: "No feature raises it among its first words." }),
    said.length ? table("Features whose explanation has it", [{ name: "Feature", text: true }, { name: "In words", text: true, long: true }, { name: "What its scores say", text: true, long: true }], said.map((each) => [{ key: each.feature, show: featureLink(each.feature) }, each.text, each.verdict])) : null,
    texts.length ? table("Texts with it", [{ name: "Text", text: true }, { name: "Passage", text: true, long: true }], texts) : element("p", { textContent: "No text has it." }));
  document.documentElement.dataset.drawn = String(++serial);
}

(async () => {
  ({ data: base, arrays } = await unpack(document.getElementById("base").textContent));
  const lengths = [...arrays.lengths];
  encoded = lengths.map((length) => length - base.first);
  starts = [0]; wordStarts = [0];
  lengths.forEach((length, at) => { starts.push(starts[at] + encoded[at]); wordStarts.push(wordStarts[at] + length); });
  arrays.encodedTokens = starts.at(-1); arrays.tokens = wordStarts.at(-1);
  starts.pop();
  if (base.circuits) document.querySelector("label[for=query]").textContent = "Feature number, head (L12H3), circuit, concept, word, explanation or text";
  document.getElementById("names").append(...base.rows.map((row) => new Option(row)), ...(base.circuits ? [new Option("circuits"), ...base.circuits.names.map((name) => new Option(`circuit of ${name}`))] : []));
  document.getElementById("search").addEventListener("submit", (event) => { event.preventDefault(); search(document.getElementById("query").value); });
  document.addEventListener("keydown", (event) => { if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) { event.preventDefault(); document.getElementById("query").focus(); } });
  addEventListener("hashchange", route);
  await route();
})().catch((error) => reply(element("h1", { textContent: "The explorer could not be opened" }), element("p", { textContent: `${error.message}. Open it in a browser of 2023 or later.` })));
