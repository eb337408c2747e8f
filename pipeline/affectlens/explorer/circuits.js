// Heads and circuits, where the study has looked for them. Heads are numbered layer by layer.
const headName = (flat) => `L${Math.floor(flat / base.circuits.heads)}H${flat % base.circuits.heads}`;
const headLink = (flat) => link(`#/head/${headName(flat)}`, headName(flat));
const circuitAddress = (name) => `#/circuit/${encodeURIComponent(name)}`;
const nats = (value, digits = 3) => (value === null || Number.isNaN(value) ? "–" : signed(value, digits));
const small = (p) => (p === null || Number.isNaN(p) ? "–" : p >= 0.095 ? p.toFixed(2) : p.toPrecision(2));
const known = (value) => (value === null || Number.isNaN(value) ? null : value);
const yes = (value) => (value === null ? "not measured" : value ? "yes" : "no");
function headNumber(name) {
  const found = /^L?(\d+)[H.](\d+)$/i.exec(name.trim());
  if (!found || !base.circuits) return -1;
  const [layer, head] = [Number(found[1]), Number(found[2])];
  return layer < base.circuits.layers && head < base.circuits.heads ? layer * base.circuits.heads + head : -1;
}
// A circuit by the name that a reader gives: `circuit afraid`, `circuit of afraid`, `pooled circuit`.
function circuitNamed(query) {
  const found = /^circuits?(?:\s+of)?\s+(.+)$/i.exec(query)?.[1] ?? (/^(pooled circuit|all concepts)$/i.test(query) ? base.circuits?.all : null);
  return base.circuits?.names.find((name) => name.toLowerCase() === found?.toLowerCase()) ?? null;
}
async function circuitry() {
  const found = await block("circuits"), units = base.circuits.layers * base.circuits.heads;
  const at = (name) => found.data.concepts.indexOf(name), circuit = (name) => found.data.circuits.find((each) => each.row.concept === name);
  const rowsOf = (name) => { const { columns, rows } = found.data.tables[name]; return rows.map((row) => Object.fromEntries(columns.map((column, place) => [column.name, row[place]]))); };
  return { ...found, units, at, circuit, rowsOf, written: found.data.written_layers * base.circuits.heads, limit: largest(found.effect) };
}
const largest = (values) => values.reduce((most, value) => (Number.isNaN(value) ? most : Math.max(most, Math.abs(value))), 0) || 1;
function signedBar(value, limit) {
  const bar = element("span", { className: "bar signed" }), half = element("i", { className: "half" }), mark = element("i", { className: "dot" });
  bar.setAttribute("aria-hidden", "true");
  half.style.left = "50%";
  const length = 50 * Math.min(1, Math.abs(value ?? 0) / limit);
  mark.style.cssText = `left:${value < 0 ? 50 - length : 50}%;width:${length}%;margin:0;background:var(--${value < 0 ? "low" : "high"})`;
  bar.append(half, mark);
  return bar;
}
// Layers down, heads across: a sign for the effect, a mark for what is in the circuit. Arrow keys go from head to head.
function headMap(caption, values, members, say) {
  const { layers, heads } = base.circuits, limit = largest(values), inside = new Set(members), body = element("tbody");
  for (let layer = layers - 1; layer >= 0; layer--) {
    const row = element("tr", {}, element("th", { scope: "row", textContent: `L${layer}` }));
    for (let head = 0; head < heads; head++) {
      const flat = layer * heads + head, value = values[flat], cell = element("td", { className: inside.has(flat) ? "in" : "" });
      const mark = element("a", { href: `#/head/${headName(flat)}`, tabIndex: flat === 0 ? 0 : -1, textContent: inside.has(flat) ? "●" : Math.abs(value) < limit / 20 || Number.isNaN(value) ? "·" : value < 0 ? "−" : "+" });
      mark.setAttribute("aria-label", `${headName(flat)}: ${say(flat)}`);
      mark.dataset.flat = flat;
      mark.style.background = Number.isNaN(value) ? "" : `color-mix(in srgb, var(--${value < 0 ? "low" : "high"}) ${Math.round((62 * Math.abs(value)) / limit)}%, transparent)`;
      cell.append(mark);
      row.append(cell);
    }
    body.append(row);
  }
  const across = element("tr", {}, element("td", {}), ...Array.from({ length: heads }, (_, head) => element("th", { scope: "col", textContent: `H${head}` })));
  const grid = element("table", { className: "map" }, element("caption", { textContent: caption }), element("thead", {}, across), body);
  const tell = (event) => {
    const mark = event.target.closest("a[data-flat]");
    if (!mark) return;
    detail.hidden = false;
    detail.replaceChildren(element("b", { textContent: headName(Number(mark.dataset.flat)) }), `  ${say(Number(mark.dataset.flat))}`);
  };
  grid.addEventListener("pointerover", tell);
  grid.addEventListener("focusin", tell);
  grid.addEventListener("keydown", (event) => {
    const mark = event.target.closest("a[data-flat]"), flat = Number(mark?.dataset.flat), step = { ArrowRight: 1, ArrowLeft: -1, ArrowUp: heads, ArrowDown: -heads }[event.key];
    const next = mark && step && grid.querySelector(`a[data-flat="${flat + step}"]`);
    if (!next) return;
    event.preventDefault();
    mark.tabIndex = -1; next.tabIndex = 0; next.focus();
  });
  return element("div", { className: "scroll" }, grid);
}
const MAP = "Layers down, heads across. ● is in the circuit; elsewhere + speaks for the words, − against them, · hardly either. Colour repeats the sign and says how much.";
// Kept alone, and left without: the circuit with its interval, beside what it has to be held against.
function beside(row) {
  const groups = [["Kept alone", "ratio", "low", "high", "random, best", "random_ratio", "wrong_ratio", "any_ratio"], ["Left without it", "left", "left_low", "left_high", "random, least left", "random_left", "wrong_left", "any_left"]];
  return element("div", { className: "grid" }, ...groups.map(([title, own, low, high, random, hardest, wrong, any]) => {
    const some = [["this circuit", row[own], row[low], row[high]], [random, row[hardest], null, null], ["other concepts' circuits", row[wrong], null, null], ...(row.concept === base.circuits.all ? [] : [["pooled circuit", row[any], null, null]])];
    const ends = some.flatMap(([, ...values]) => values).filter((value) => value !== null), least = Math.min(0, ...ends), most = Math.max(1, ...ends), place = (value) => (value - least) / (most - least);
    return table(`${title}, as a share of the contrast; lines at 0 and 1`, [{ name: "Of", text: true }, { name: "Share" }, { name: "Value" }, { name: "95% from" }, { name: "to" }],
      some.map(([name, value, from, to]) => [name, { key: value, show: shareBar(place, value, from, to) }, value, from, to]));
  }));
}
function shareBar(place, value, low, high) {
  const bar = element("span", { className: "bar" }), at = (each) => `${100 * place(each)}%`;
  bar.setAttribute("aria-hidden", "true");
  for (const line of [0, 1]) { const mark = element("i", { className: "half" }); mark.style.left = at(line); bar.append(mark); }
  if (low !== null && high !== null) { const band = element("i", { className: "band" }); band.style.cssText = `left:${at(low)};width:${100 * (place(high) - place(low))}%`; bar.append(band); }
  if (value !== null) { const dot = element("i", { className: "dot" }); dot.style.left = at(value); bar.append(dot); }
  return bar;
}
const LINES = { "signed effect": ["var(--direction)", "", "solid line"], "size of effect": ["var(--feature)", "9 4", "dashed line"], activation: ["var(--control)", "2 4", "dotted line"] };
// One chart of circuits by size. It shows what the rankings reach; where random circuits go beyond, its band is cut off.
function curve(rows, key, low, high, title) {
  const mine = rows.filter((row) => row[key] !== null), random = mine.filter((row) => row.ranking === "random"), ranked = mine.filter((row) => row.ranking !== "random");
  if (!ranked.length) return null;
  const values = ranked.map((row) => row[key]), logs = mine.map((row) => Math.log(row.share)), margin = 0.25;
  const [least, most, first, last] = [Math.min(0, ...values) - margin, Math.max(1, ...values) + margin, Math.min(...logs), Math.max(...logs)], width = chartWidth();
  const x = (share) => 34 + ((width - 60) * (Math.log(share) - first)) / (last - first || 1), y = (value) => 210 - (200 * (Math.max(least, Math.min(most, value)) - least)) / (most - least);
  const picture = svg("svg", { viewBox: `0 0 ${width} 250`, role: "img", "aria-label": `${title} by the share of all heads; the figures are in the table below` });
  const beyond = random.filter((row) => row[low] < least || row[high] > most);
  if (random.length) picture.append(svg("polygon", { points: [...random.map((row) => `${x(row.share)},${y(row[high])}`), ...[...random].reverse().map((row) => `${x(row.share)},${y(row[low])}`)].join(" "), fill: "var(--band)" }));
  for (const at of [0, 0.5, 1]) picture.append(svg("line", { x1: 34, x2: width - 26, y1: y(at), y2: y(at), stroke: "var(--axis)", "stroke-width": at === 0.5 ? 0.3 : 0.8 }), svg("text", { x: 28, y: y(at) + 4, "text-anchor": "end" }, String(at)));
  for (const share of new Set(mine.map((row) => row.share))) picture.append(svg("text", { x: x(share), y: 229, "text-anchor": "middle" }, percent(share)));
  picture.append(svg("text", { x: width / 2, y: 246, "text-anchor": "middle" }, "share of all heads"));
  const drawn = Object.entries(LINES).filter(([name]) => ranked.some((row) => row.ranking === name));
  for (const [name, [stroke, dashes]] of drawn) {
    const some = ranked.filter((row) => row.ranking === name);
    picture.append(svg("polyline", { points: some.map((row) => `${x(row.share)},${y(row[key])}`).join(" "), fill: "none", stroke, "stroke-width": 2.5, "stroke-dasharray": dashes }), ...some.map((row) => svg("circle", { cx: x(row.share), cy: y(row[key]), r: 3.5, fill: stroke })));
  }
  const legend = drawn.map(([name, [, , words]]) => `${words}: ranked by ${name}`).join("; ");
  return element("div", {}, element("h3", { textContent: title }), picture, element("p", { className: "soft", textContent: `${legend[0].toUpperCase()}${legend.slice(1)}. Grey: from the least to the largest random circuit${beyond.length ? `, which goes beyond the picture (${beyond.map((row) => `${number(row[low], 1)} to ${number(row[high], 1)} at ${percent(row.share)}`).join(", ")})` : ""}.` }));
}
function circuitTable(found, only = null) {
  const name = (row) => ({ key: row.concept, show: link(circuitAddress(row.concept), row.concept) });
  const rows = found.data.circuits.map((each) => each.row).filter((row) => only === null || only.includes(row.concept));
  return table("Circuits", [{ name: "Circuit of", text: true }, { name: "Verdict", text: true }, { name: "Contrast", help: "nats, of the own words against the others'" }, { name: "Kept alone", help: "share of the contrast" }, { name: "Best random" }, { name: "Left without" }, { name: "Random, least left" }, { name: "p, corrected", help: "that its own heads hurt its words no more than other concepts' heads" }],
    rows.map((row) => [name(row), row.verdict, row.contrast, row.ratio, row.random_ratio, row.left, row.random_left, { key: row.p_adjusted, show: small(row.p_adjusted) }]), { most: 200 });
}
function headTable(found, caption, flats, more = () => [], extra = [], order = null) {
  return table(caption, [{ name: "Head", text: true }, { name: "Effect", help: "loss of the contrast, nats, exact" }, { name: "95% from" }, { name: "to" }, { name: "p, corrected" }, { name: "By gradient", help: "nats" }, ...extra],
    flats.map((flat) => [{ key: flat, show: headLink(flat) }, known(found.effect[flat]), known(found.low[flat]), known(found.high[flat]), { key: known(found.p_adjusted[flat]), show: small(found.p_adjusted[flat]) }, known(found.gradient[flat]), ...more(flat)]), { order: order ?? { column: 1, way: -1 }, most: 25 });
}
const none = () => lost("The study has looked for no circuits. Set `circuits.run: true`, and run the stage circuits.");

const circuitViews = {
  async circuits() {
    if (!base.circuits) return none();
    const found = await circuitry(), { layers, heads, contexts, topics } = base.circuits, pooled = found.circuit(base.circuits.all);
    const significant = found.p_adjusted.reduce((sum, p) => sum + (p <= 0.05), 0), all = Array.from({ length: found.units }, (_, flat) => flat);
    reply(element("h1", { textContent: `${layers} layers of ${heads} heads${found.data.circuits.length ? `, ${found.data.circuits.length} circuits` : ""}` }),
      element("p", { textContent: `Of ${found.units} heads ${significant || "none"} ${significant > 1 ? "change" : "changes"} the contrast between the words of a story's concept and those of the others when it is taken out (p at most 0.05 after correction; ${contexts} stories of ${topics} topics).` }),
      found.data.circuits.length ? [element("h2", { textContent: "Circuits" }), circuitTable(found)] : element("p", { textContent: "The stage circuits is not finished, so that no circuit was tried." }),
      element("h2", { textContent: "Heads" }), element("p", { className: "soft", textContent: MAP }), headMap(pooled ? "The pooled circuit" : "All heads", found.effect, pooled?.members ?? [], (flat) => `effect ${nats(found.effect[flat])} nats, corrected p ${small(found.p_adjusted[flat])}${pooled?.members.includes(flat) ? ", in the pooled circuit" : ""}`),
      headTable(found, "All heads", all, (flat) => [known(found.others[flat])], [{ name: "Other words", help: "what its ablation costs words of the other concepts, most affected one, nats" }]));
  },

  async head(name) {
    if (!base.circuits) return none();
    const flat = headNumber(name);
    if (flat < 0) return lost(`There are heads L0H0 to ${headName(base.circuits.layers * base.circuits.heads - 1)}.`);
    const found = await circuitry(), own = headName(flat), writes = flat < found.written, { topics, contexts } = base.circuits;
    const pick = (array, at, width = found.units) => known(array[at * width + flat]);
    const limit = largest(found.data.concepts.map((_, at) => pick(found.concept_effect, at) ?? 0)), most = largest(found.data.concepts.map((_, at) => (writes ? pick(found.direct, at, found.written) ?? 0 : 0)));
    const effects = found.data.concepts.map((concept, at) => [{ key: concept, show: conceptLink(concept) }, { key: pick(found.concept_effect, at), show: signedBar(pick(found.concept_effect, at), limit) }, { key: pick(found.concept_effect, at), show: nats(pick(found.concept_effect, at)) },
      { key: pick(found.concept_elsewhere, at), show: nats(pick(found.concept_elsewhere, at)) }, { key: pick(found.concept_p, at), show: small(pick(found.concept_p, at)) }, { key: pick(found.concept_p_adjusted, at), show: small(pick(found.concept_p_adjusted, at)) }]);
    const written = writes ? found.data.concepts.map((concept, at) => { const direct = pick(found.direct, at, found.written); return [{ key: concept, show: conceptLink(concept) }, { key: direct, show: signedBar(direct, most) }, { key: direct, show: nats(direct, 4) },
      { key: pick(found.direct_low, at, found.written), show: nats(pick(found.direct_low, at, found.written), 4) }, { key: pick(found.direct_high, at, found.written), show: nats(pick(found.direct_high, at, found.written), 4) }, found.reading[at] ? direct / found.reading[at] : null, { key: pick(found.total, at, found.written), show: nats(pick(found.total, at, found.written), 4) }]; }) : [];
    const inside = found.data.circuits.filter((each) => each.members.includes(flat)), members = found.rowsOf("circuits/members").find((row) => row.layer * base.circuits.heads + row.head === flat);
    const edges = found.rowsOf("circuits/edges"), above = edges.filter((row) => row.source === own), below = edges.filter((row) => row.target === own);
    const edgeTable = (caption, rows, end) => table(caption, [{ name: "Head", text: true }, { name: "Weight", help: "nats, mean over contexts" }, { name: "95% from" }, { name: "to" }], rows.map((row) => [{ key: row[end], show: link(`#/head/${row[end]}`, row[end]) }, { key: row.weight, show: nats(row.weight) }, { key: row.low, show: nats(row.low) }, { key: row.high, show: nats(row.high) }]), { order: { column: 1, way: -1 } });
    reply(element("h1", { textContent: `Head ${own}` }), element("p", {}, link("#/circuits", "all heads"), " ", flat > 0 ? link(`#/head/${headName(flat - 1)}`, "previous") : null, " ", flat + 1 < found.units ? link(`#/head/${headName(flat + 1)}`, "next") : null),
      numbers([["Effect on the words, nats", nats(found.effect[flat]), "loss of the contrast when the head has its reference values: exact"], ["95% interval", `${nats(found.low[flat])} to ${nats(found.high[flat])}`, "over topics"], ["p, corrected", small(found.p_adjusted[flat]), `sign flips, at least ${found.data.p_floor}; Benjamini-Hochberg over ${found.units} heads`],
        ["By gradient, nats", nats(found.gradient[flat]), "integrated gradients"], ["Other concepts' words, nats", nats(found.others[flat]), "the most affected one"]]),
      element("p", { className: "soft", textContent: `The effect is what the words of a story's concept lose against the others' when the head is given the topic's mean values, over ${contexts} stories of ${topics} topics. Gradients of early layers can miss it by much, and err in its sign.` }),
      element("h2", { textContent: "Effect by concept" }),
      table(`Effect of ${own} by concept`, [{ name: "Concept", text: true }, { name: "Effect", help: "bar; purple to the left is negative" }, { name: "Own words, nats", help: "in its own stories" }, { name: "In other stories, nats", help: "the same words, in the other concepts' stories: what is there is no sign of the concept" }, { name: "p" }, { name: "p, corrected", help: "over heads and concepts" }], effects, { order: { column: 2, way: -1 }, most: 12 }),
      element("h2", { textContent: "What it writes along each concept's direction" }),
      writes ? [element("p", { className: "soft", textContent: "In mean residual norms, in the concept's own stories less the topic's mean, up to the study's layer. Direct: its own output. Behind: with what units above it read from it, by integrated gradients." }), table(`What ${own} writes`, [{ name: "Direction of", text: true }, { name: "Direct", help: "bar; purple to the left is negative" }, { name: "Norms" }, { name: "95% from" }, { name: "to" }, { name: "Of the reading", help: "share" }, { name: "Behind" }], written, { order: { column: 2, way: -1 }, most: 12 })]
        : element("p", { textContent: `Its layer lies above layer ${found.data.written_layers - 1}, at which directions are read: it writes nothing that they see.` }),
      found.data.circuits.length ? [element("h2", { textContent: "Circuits with it" }), inside.length ? circuitTable(found, inside.map((each) => each.row.concept)) : element("p", { textContent: "None." }),
        members ? element("p", { textContent: `The pooled circuit loses ${number(members.without, 2)} of its contrast without it; 95% of heads add at most ${number(members.null, 2)} to random circuits. Needed: ${yes(members.needed)}.` }) : null] : [],
      above.length || below.length ? [element("h2", { textContent: "Edges" }), element("p", { className: "soft", textContent: "How much of a head's effect passes through a head above it, in the pooled circuit." }), element("div", { className: "grid" }, above.length ? edgeTable("To heads above", above, "target") : null, below.length ? edgeTable("From heads below", below, "source") : null)] : []);
  },

  async circuit(name) {
    if (!base.circuits) return none();
    if (!base.circuits.names.includes(name)) return lost(base.circuits.names.length ? `There is no circuit of “${name}”.` : "The stage circuits is not finished.");
    const found = await circuitry(), { row, asked, members } = found.circuit(name), pooled = name === base.circuits.all, at = found.at(name), concepts = found.data.concepts;
    const values = pooled ? found.effect : found.concept_effect.subarray(at * found.units, (at + 1) * found.units), inside = new Set(members);
    const say = (flat) => `effect ${nats(values[flat])} nats${inside.has(flat) ? ", in the circuit" : ""}`;
    const kinds = new Map(found.rowsOf("circuits/members").map((each) => [each.layer * base.circuits.heads + each.head, each])), curves = found.rowsOf("circuits/curves");
    const losses = (caption, take) => table(caption, [{ name: "Concept", text: true }, { name: "Loss", help: "bar; purple to the left is negative" }, { name: "Nats" }], concepts.map((concept, other) => { const loss = known(found.specificity[take(other)]); return [{ key: concept, show: link(circuitAddress(concept), concept) }, { key: loss, show: signedBar(loss, largest(found.specificity)) }, { key: loss, show: nats(loss) }]; }), { order: { column: 2, way: -1 }, most: 12 });
    reply(element("h1", { textContent: `Circuit of ${name}` }), element("p", {}, link("#/circuits", "all circuits"), " ", pooled ? null : conceptLink(name)),
      element("p", {}, element("b", { textContent: row.verdict }), ", by this rule:"),
      table(`Rule for the circuit of ${name}`, [{ name: "Question", text: true }, { name: "Answer", text: true }, { name: "Figures", text: true, long: true }], asked.map((each) => [each.name, each.answer, each.figures])),
      beside(row), element("p", { className: "soft", textContent: "Orange mark: value; grey: 95% interval over topics. Random circuits have as many heads in each layer. Of topics that chose neither heads nor size." }),
      pooled ? [element("h2", { textContent: "How many heads are enough" }), element("div", { className: "grid" }, curve(curves, "ratio", "low", "high", "Kept alone"), curve(curves, "left", "left_low", "left_high", "Left without it")), described("circuits/curves", null, found.data), described("circuits/areas", null, found.data)] : [],
      element("h2", { textContent: "Its heads" }), element("p", { className: "soft", textContent: `${MAP}${pooled ? " A head counts that any division of the topics chose." : " Of all scored stories, as modulation reads the circuit; what is tried above was chosen from each division's own topics."}` }),
      headMap(`${members.length} heads of the circuit of ${name}`, values, members, say),
      headTable(found, `Heads of the circuit of ${name}`, members, (flat) => (pooled ? [kinds.get(flat)?.rotations ?? null, kinds.get(flat)?.without ?? null, yes(kinds.get(flat)?.needed ?? null)] : [known(values[flat])]), pooled ? [{ name: "Divisions", help: "of the topics that chose it" }, { name: "Ratio lost", help: "of the circuit without it" }, { name: "Needed", text: true }] : [{ name: `On ${name}`, help: "effect on the concept's own words, nats" }]),
      pooled ? [] : [element("h2", { textContent: "Whose circuit it is" }), element("div", { className: "grid" }, losses(`What each concept's circuit costs the words of ${name}`, (other) => at * concepts.length + other), losses(`What the circuit of ${name} costs each concept's words`, (other) => other * concepts.length + at))],
      pooled ? [element("h2", { textContent: "Other tests" }), described("circuits/checks", null, found.data)] : []);
  },
};
