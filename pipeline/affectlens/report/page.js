(() => {
  const root = document.documentElement;
  const coarse = matchMedia("(pointer: coarse)").matches;
  const frames = [...document.querySelectorAll("[data-chart]")];
  const { template, figures: specs } = JSON.parse(document.getElementById("charts").textContent);

  // Colours in the specifications are CSS variables: they follow the scheme that is in force when a figure is drawn.
  const inked = (value, style) => {
    if (typeof value === "string") {
      return value.replace(/var\((--[a-z]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
    }
    if (Array.isArray(value)) return value.map((item) => inked(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, inked(item, style)]));
    }
    return value;
  };

  const draw = (frame) => {
    const spec = inked(specs[frame.dataset.chart], getComputedStyle(root));
    spec.layout.template = inked(template, getComputedStyle(root));
    if (coarse) spec.layout.dragmode = false;
    return Plotly.react(frame, spec.data, spec.layout, {
      displayModeBar: coarse ? false : "hover",
      displaylogo: false,
      responsive: true,
      modeBarButtons: [spec.layout.dragmode ? ["zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"] : ["toImage"]],
      toImageButtonOptions: { format: "svg", filename: frame.dataset.chart },
    });
  };
  const drawAll = async () => {
    for (const frame of frames) await draw(frame);
  };

  const unpack = async () => {
    const packed = document.getElementById("plotly").textContent.trim();
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  };

  const start = async () => {
    if (typeof DecompressionStream === "undefined") {
      for (const frame of frames) frame.textContent = "This browser cannot draw the figure; the tables hold its numbers.";
      return;
    }
    await unpack();
    await drawAll();
    root.dataset.drawn = "yes";
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
    addEventListener("beforeprint", () => {
      root.dataset.paper = root.dataset.theme;
      root.dataset.theme = "light";
      frames.forEach(draw);
    });
    addEventListener("afterprint", () => {
      root.dataset.theme = root.dataset.paper;
      frames.forEach(draw);
    });
  };

  document.getElementById("scheme").addEventListener("click", () => {
    const dark = root.dataset.theme === "dark" ||
      (root.dataset.theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
    root.dataset.theme = dark ? "light" : "dark";
    if (root.dataset.drawn) drawAll();
  });

  // Tables: a click on a heading sorts by it; what is not known stays last in either direction.
  const keyOf = (row, column) => row.cells[column].dataset.key;
  for (const table of document.querySelectorAll("table.sortable")) {
    table.tHead.addEventListener("click", (event) => {
      const heading = event.target.closest("th");
      if (!heading) return;
      const column = heading.cellIndex;
      const numeric = heading.dataset.sort === "number";
      const before = heading.getAttribute("aria-sort");
      const upwards = before ? before === "descending" : !numeric;
      const sign = upwards ? 1 : -1;
      const compare = (a, b) => {
        const [x, y] = [keyOf(a, column), keyOf(b, column)];
        if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
        return sign * (numeric ? x - y : x.localeCompare(y));
      };
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", upwards ? "ascending" : "descending");
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  }

  // Every table can be saved, in the order in which it stands: numbers in full, intervals as they are written.
  for (const table of document.querySelectorAll("table.sortable")) {
    const region = table.closest(".scroll"), button = document.createElement("button");
    Object.assign(button, { type: "button", className: "save", textContent: "Save as CSV" });
    const headings = [...table.tHead.rows[0].cells];
    const value = (cell, at) => (headings[at].dataset.sort === "number" && !cell.textContent.includes("[") ? cell.dataset.key ?? "" : cell.textContent);
    button.addEventListener("click", () => saveTable(region.getAttribute("aria-label"), [
      headings.map((heading) => heading.textContent.trim()),
      ...[...table.tBodies[0].rows].map((row) => [...row.cells].map((cell, at) => value(cell, at).trim())),
    ]));
    region.after(button);
  }

  const filter = document.getElementById("filter");
  filter?.addEventListener("input", () => {
    const wanted = filter.value.trim().toLowerCase();
    for (const card of document.querySelectorAll(".concept")) card.hidden = !card.dataset.concept.includes(wanted);
  });

  // Sampled texts: chosen by what they were sampled under, listed a few at a time, never as markup.
  const held = document.getElementById("sampled");
  if (held) {
    const rows = JSON.parse(held.textContent), form = document.getElementById("sought");
    const list = document.getElementById("sought-texts"), count = document.getElementById("sought-count");
    const more = document.getElementById("sought-more"), step = 20;
    const said = (row, name) => (row[name] === undefined || row[name] === "" ? "none" : String(row[name]));
    const selects = [...form.querySelectorAll("select")];
    for (const select of selects) {
      const values = [...new Set(rows.map((row) => said(row, select.name)))];
      values.sort((a, b) => Number(a) - Number(b) || a.localeCompare(b));
      for (const value of values) select.append(new Option(value, value));
      select.parentElement.hidden = values.length < 2;
    }
    let shown = step;
    const show = () => {
      const words = form.elements.words.value.trim().toLowerCase();
      const found = rows.filter((row) => selects.every(({ name, value }) => !value || said(row, name) === value)
        && (row.text + " " + row.prompt).toLowerCase().includes(words));
      count.textContent = `${found.length} of ${rows.length} texts`;
      list.replaceChildren(...found.slice(0, shown).map((row) => {
        const block = document.createElement("blockquote"), text = document.createElement("p");
        const footer = document.createElement("footer");
        text.textContent = row.text;
        footer.textContent = [row.source, row.family, row.concept, row.strength ? `strength ${row.strength}` : "", row.prompt,
          row.grade === undefined ? "" : `verdict ${row.grade}`, row.nats === undefined ? "" : `${row.nats.toFixed(2)} nats a token`,
        ].filter(Boolean).join(" \u00b7 ");
        block.append(text, footer);
        return block;
      }));
      more.hidden = found.length <= shown;
    };
    form.addEventListener("input", () => { shown = step; show(); });
    form.addEventListener("submit", (event) => event.preventDefault());
    more.addEventListener("click", () => { shown += step; show(); });
    show();
  }

  // A link to a concept's card opens it.
  const unfold = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target instanceof HTMLDetailsElement) {
      target.open = true;
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", unfold);
  unfold();

  // The table of contents marks the section that is being read.
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      const link = links.get(entry.target.id);
      link?.setAttribute("aria-current", "true");
      if (link) link.closest("ol").scrollLeft = link.offsetLeft - link.closest("ol").offsetLeft - 20;
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  document.querySelectorAll("main > section").forEach((section) => watch.observe(section));

  start();
})();
