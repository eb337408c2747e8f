"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const rows = data.rows, width = rows.length, FULL = 4, LISTED = 8;
const texts = data.texts.map((text) => {
  const bytes = Uint8Array.from(atob(text.values), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return { ...text, at: (token, row) => view.getInt16(2 * (token * width + row), true) / 100 };
});
const select = { row: document.getElementById("row"), first: document.getElementById("first"),
  second: document.getElementById("second") };
const panels = document.getElementById("panels"), detail = document.getElementById("detail");
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function colour(value) {
  const share = Math.round(Math.min(Math.abs(value) / FULL, 1) * 62);
  return `color-mix(in srgb, var(--${value < 0 ? "low" : "high"}) ${share}%, transparent)`;
}

function mean(text, row, start, end) {
  let sum = 0;
  for (let token = start; token < end; token++) sum += text.at(token, row);
  return sum / Math.max(1, end - start);
}

function bar(value, limit) {
  const share = Math.min(Math.abs(value) / limit, 1) * 50;
  const fill = element("i");
  fill.style.cssText = `${value < 0 ? "right" : "left"}:50%;width:${share}%;background:var(--${value < 0 ? "low" : "high"})`;
  const track = element("span", { className: "track" }, fill);
  track.setAttribute("aria-hidden", "true");
  return track;
}

function bars(entries, limit) {
  const list = element("div", { className: "bars" });
  for (const { name, row, value } of entries) {
    let label = element("span", { className: "name", textContent: name });
    if (row !== undefined) {
      label = element("button", { type: "button", textContent: name, className: "name" });
      label.setAttribute("aria-pressed", String(row === Number(select.row.value)));
      label.addEventListener("click", () => { select.row.value = String(row); draw(); });
    }
    list.append(label, bar(value, limit), element("span", { className: "value", textContent: signed(value) }));
  }
  return list;
}

function tell(text, token) {
  const values = rows.map((row, index) => [row.name, text.at(token, index)]).sort((a, b) => b[1] - a[1]);
  const chosen = Number(select.row.value);
  detail.replaceChildren(element("b", { textContent: JSON.stringify(text.tokens[token]) }),
    `  ${rows[chosen].name} ${signed(text.at(token, chosen))} · highest: ` +
    values.slice(0, 4).map(([name, value]) => `${name} ${signed(value)}`).join(", "));
}

function words(text, start, end, chosen) {
  const block = element("div", { className: "tokens" });
  block.setAttribute("role", "group");
  block.setAttribute("aria-label", "Tokens; move with the arrow keys");
  for (let token = start; token < end; token++) {
    const value = text.at(token, chosen);
    const word = element("span", { className: "token", textContent: text.tokens[token], tabIndex: token === start ? 0 : -1 });
    word.style.background = colour(value);
    word.dataset.token = token;
    word.dataset.value = value.toFixed(2);
    if (text.alarms && text.alarms.some(([at, row]) => at - 1 === token && row === chosen)) word.classList.add("alarmed");
    block.append(word);
  }
  const at = (event) => event.target.closest(".token");
  block.addEventListener("pointerover", (event) => at(event) && tell(text, Number(at(event).dataset.token)));
  block.addEventListener("focusin", (event) => at(event) && tell(text, Number(at(event).dataset.token)));
  block.addEventListener("click", (event) => at(event) && at(event).focus());
  block.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next = step && at(event) && (step > 0 ? at(event).nextElementSibling : at(event).previousElementSibling);
    if (!next) return;
    event.preventDefault();
    at(event).tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  return block;
}

// An answer that was watched: the chosen row along its tokens, its threshold, its alarms, and the rivals beside it.
function trace(text, chosen) {
  const width = 600, height = 150, tokens = text.tokens.length, limit = text.thresholds[chosen];
  const series = [[chosen, "line"], ...rows.flatMap((row, index) => row.kind === "rival" ? [[index, "rival"]] : [])];
  const all = series.flatMap(([row]) => text.tokens.map((_, token) => text.at(token, row))).concat(limit ?? 0, 0);
  const low = Math.min(...all), high = Math.max(...all, low + 1);
  const x = (token) => 4 + token / Math.max(1, tokens - 1) * (width - 8), y = (value) => 6 + (high - value) / (high - low) * (height - 12);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("class", "trace");
  svg.setAttribute("role", "img");
  const begun = text.alarms.filter(([, row]) => row === chosen);
  svg.setAttribute("aria-label", `${rows[chosen].name} along ${tokens} tokens, ${begun.length} alarms`);
  const draws = (name, attributes, kind) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries({ ...attributes, class: kind })) made.setAttribute(key, value);
    svg.append(made);
  };
  for (const [row, kind] of series.reverse()) {
    draws("polyline", { points: text.tokens.map((_, token) => `${x(token)},${y(text.at(token, row))}`).join(" ") }, kind);
  }
  if (limit !== null && limit !== undefined) draws("line", { x1: 0, x2: width, y1: y(limit), y2: y(limit) }, "threshold");
  for (const [token] of begun) draws("circle", { cx: x(Math.max(0, token - 1)), cy: y(text.at(Math.max(0, token - 1), chosen)), r: 5 }, "alarm");
  const rivals = rows.filter((row) => row.kind === "rival").map((row) => row.name).join(", ");
  return element("figure", {}, svg, element("figcaption", { textContent: `${rows[chosen].name}: thick line` +
    (limit === null || limit === undefined ? "; it has no threshold" : `; threshold ${signed(limit)}: dashed; ${begun.length} alarms: circles`) +
    (rivals ? `; ${rivals}: thin lines, in nats` : "") }));
}

function panel(text, chosen) {
  const said = element("div"), side = element("div", { className: "side" });
  const means = text.messages.map(([, start, end]) => mean(text, chosen, start, end));
  if (text.messages.length > 1) {
    side.append(element("h3", { textContent: `${rows[chosen].name}: mean of each message` }),
      bars(text.messages.map(([role], index) => ({ name: `${index + 1} ${role}`, value: means[index] })),
        Math.max(1, ...means.map(Math.abs))));
  }
  for (const [role, start, end] of text.messages) {
    const message = element("div", { className: `message ${role === "user" || role === "assistant" ? role : ""}` });
    if (role) message.append(element("div", { className: "role", textContent: role }));
    message.append(words(text, start, end, chosen));
    said.append(message);
  }
  if (text.alarms) side.append(trace(text, chosen));
  const whole = rows.map((row, index) => ({ name: row.name, row: index, value: mean(text, index, 0, text.tokens.length) }));
  const listed = whole.filter(({ row }) => ["concept", "row"].includes(rows[row].kind)).sort((a, b) => b.value - a.value);
  const axes = whole.filter(({ row }) => rows[row].kind === "axis");
  const features = whole.filter(({ row }) => rows[row].kind === "feature").sort((a, b) => b.value - a.value);
  const limit = Math.max(1, ...whole.map(({ value }) => Math.abs(value)));
  side.append(element("h3", { textContent: "Highest over the whole text" }), bars(listed.slice(0, LISTED), limit));
  if (listed.length > LISTED + 3) side.append(element("h3", { textContent: "Lowest" }), bars(listed.slice(-3), limit));
  if (axes.length) side.append(element("h3", { textContent: "Axes" }), bars(axes, limit));
  if (features.length) side.append(element("h3", { textContent: "SAE features" }), bars(features.slice(0, LISTED), limit));
  return element("article", {}, element("h2", { textContent: text.name }), said, side);
}

function differences(a, b) {
  const place = document.getElementById("difference");
  place.hidden = !b;
  if (!b) return;
  const entries = rows.map((row, index) => ({ name: row.name, row: index,
    value: mean(b, index, 0, b.tokens.length) - mean(a, index, 0, a.tokens.length) }));
  entries.sort((x, y) => Math.abs(y.value) - Math.abs(x.value));
  place.replaceChildren(element("h2", { textContent: "Largest differences: second text minus first" }),
    bars(entries.slice(0, 10), Math.max(0.5, Math.abs(entries[0].value))));
}

function draw() {
  const chosen = Number(select.row.value);
  const pair = [texts[select.first.value], texts[select.second.value]].filter(Boolean);
  panels.className = pair.length > 1 ? "two" : "";
  panels.replaceChildren(...pair.map((text) => panel(text, chosen)));
  differences(...pair);
  document.documentElement.dataset.drawn = "";
}

for (const [kind, title] of [["concept", "Concepts"], ["axis", "Axes"], ["feature", "SAE features"],
  ["row", "Rows of the card"], ["rival", "Rivals"]]) {
  const group = element("optgroup", { label: title });
  rows.forEach((row, index) => row.kind === kind && group.append(new Option(row.name, index)));
  if (group.children.length) select.row.append(group);
}
texts.forEach((text, index) => {
  select.first.append(new Option(text.name, index));
  select.second.append(new Option(text.name, index));
});
select.second.prepend(new Option("nothing", ""));
select.second.value = "";
select.row.value = String(rows.findIndex((row) => row.name === data.first));
for (const key of document.querySelectorAll(".key")) key.style.background = colour(Number(key.dataset.value));
Object.values(select).forEach((each) => each.addEventListener("change", draw));
document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());
if (texts.length) draw();
