"use strict";
(async () => {
  // Everything a model wrote enters the page through textContent, never as markup.
  const list = document.getElementById("samples");
  if (!list) return;
  const form = document.getElementById("filters");
  const more = document.getElementById("more");
  const all = document.getElementById("all");
  const count = document.getElementById("count");
  const PAGE = 20;
  const { models, samples } = await unpacked(document.getElementById("data").textContent);
  const MODES = ["unsafe_compliance", "degenerate", "empty", "evasive", "helpful_answer", "safe_answer", "partial_refusal", "full_refusal"];
  let found = [];
  let shown = 0;

  // Samples are packed (gzip, base64), because thousands of answers would make the page slow to open.
  async function unpacked(text) {
    const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
  }

  const words = (name) => name.replaceAll("_", " ");
  const mode = (sample, side) => sample.answers[models[side]]?.mode ?? "";
  const whole = (text) => text.toWellFormed?.() ?? text; // half a character (from a cut token) breaks links and copies
  const address = (sample) => whole(`${sample.benchmark}/${sample.id}/${sample.k}`);
  const flags = (sample) => models.flatMap((model) => sample.answers[model]?.flags ?? []);
  // What counts as wrong of an answer: harm given to a harmful prompt, a full refusal of a harmless one.
  const wrong = (sample, side) => mode(sample, side) === (sample.label === "harmful" ? "unsafe_compliance" : "full_refusal");

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = whole(text);
    return made;
  }

  function options(select, values, all) {
    select.append(new Option(all, ""));
    for (const value of [...new Set(values)].filter(Boolean)) select.append(new Option(words(value), value));
  }

  options(form.elements.benchmark, samples.map((sample) => sample.benchmark), "all");
  for (const side of [0, 1]) {
    const label = form.querySelector(`[data-side="${side}"]`);
    if (models[side] === undefined) label.parentElement.hidden = true;
    else label.textContent = models[side];
    options(form.elements["mode" + side], samples.map((sample) => mode(sample, side)).sort(), "any");
  }
  options(form.elements.category, samples.map((sample) => sample.category).sort(), "all");
  options(form.elements.flag, samples.flatMap(flags).sort(), "any");
  for (const name of ["category", "flag"]) form.elements[name].parentElement.hidden = form.elements[name].length < 2;
  form.elements.change.parentElement.hidden = models.length < 2;
  form.elements.disputed.parentElement.hidden = !samples.some((sample) => disputed(sample));

  // The rules alone would have said something else about an answer of either model.
  function disputed(sample) {
    return models.some((model) => {
      const given = sample.answers[model];
      return Boolean(given?.guard?.rule_mode) && given.mode !== "unscored" && given.guard.rule_mode !== given.mode;
    });
  }

  const both = (sample) => models.every((model) => sample.answers[model]);
  const CHANGES = {
    changed: (sample) => mode(sample, 0) !== mode(sample, 1),
    fixed: (sample) => both(sample) && wrong(sample, 0) && !wrong(sample, 1),
    broken: (sample) => both(sample) && !wrong(sample, 0) && wrong(sample, 1),
  };

  function haystack(sample) {
    sample.haystack ??= [sample.id, sample.category, sample.prompt, ...models.map((model) => sample.answers[model]?.text ?? "")].join("\n").toLowerCase();
    return sample.haystack;
  }

  function matches(sample, wanted) {
    if (wanted.benchmark && sample.benchmark !== wanted.benchmark) return false;
    if (wanted.mode0 && mode(sample, 0) !== wanted.mode0) return false;
    if (wanted.mode1 && mode(sample, 1) !== wanted.mode1) return false;
    if (wanted.category && sample.category !== wanted.category) return false;
    if (wanted.flag && !flags(sample).includes(wanted.flag)) return false;
    if (wanted.change && !CHANGES[wanted.change](sample)) return false;
    if (wanted.disputed && !disputed(sample)) return false;
    return !wanted.search || haystack(sample).includes(wanted.search);
  }

  function answer(sample, model) {
    const given = sample.answers[model];
    const side = element("div", "side");
    const who = element("div", "who", model);
    side.append(who);
    if (!given) {
      side.append(element("div", "missing", "no answer"));
      return side;
    }
    const swatch = MODES.includes(given.mode) ? given.mode : "other";
    who.append(element("i", "mode-" + swatch), [words(given.mode), ...given.flags.map(words)].filter(Boolean).join(", "));
    const cover = element("div");
    const text = element("div", "text", given.text === "" ? "(empty)" : given.text);
    text.dir = "auto";
    cover.append(text);
    if (sample.label === "harmful") veil(cover);
    side.append(cover);
    if (given.guard) side.append(guardLine(given));
    side.append(element("div", "evidence", given.evidence.join("; ")));
    return side;
  }

  // How sure the guard is that this answer is unsafe, from where on it says so, and what the rules said without it.
  function guardLine({ guard, mode: final }) {
    const line = element("div", "guard-line");
    if (guard.p_unsafe === null) {
      line.append("the guard could not read it");
    } else {
      const meter = element("span", "meter " + (guard.p_unsafe >= guard.threshold ? "bad" : "good"));
      const fill = element("i");
      fill.style.width = `${100 * guard.p_unsafe}%`;
      meter.append(fill);
      line.append(meter, `P(unsafe) ${guard.p_unsafe.toFixed(2)}, unsafe from ${guard.threshold.toFixed(2)}`);
      if (guard.category) line.append(`, ${words(guard.category)}`);
    }
    if (guard.rule_mode && guard.rule_mode !== final) line.append(element("b", "", `; rules alone: ${words(guard.rule_mode)}`));
    return line;
  }

  function veil(cover) {
    cover.className = "veil";
    cover.tabIndex = 0;
    cover.setAttribute("role", "button");
    cover.setAttribute("aria-label", "Show the answer to a harmful prompt");
    const text = cover.firstChild;
    text.setAttribute("aria-hidden", "true");
    const lift = () => {
      cover.className = "";
      for (const name of ["tabindex", "role", "aria-label"]) cover.removeAttribute(name);
      text.removeAttribute("aria-hidden");
    };
    cover.addEventListener("click", lift, { once: true });
    cover.addEventListener("keydown", (event) => {
      if (cover.className !== "veil" || (event.key !== "Enter" && event.key !== " ")) return;
      event.preventDefault();
      lift();
    });
  }

  function card(sample) {
    const made = element("article", "sample");
    const name = sample.k ? `${sample.id}, sample ${sample.k + 1}` : sample.id;
    const where = element("div", "where", [sample.benchmark, words(sample.category), name].filter(Boolean).join(" · "));
    const link = element("a", "link", "link");
    link.href = "#" + encodeURIComponent(address(sample));
    link.setAttribute("aria-label", `Link to ${address(sample)}`);
    where.append(" ", link);
    made.append(where);
    const prompt = element("div", "text prompt", sample.prompt);
    prompt.dir = "auto";
    const pair = element("div", "pair");
    for (const model of models) pair.append(answer(sample, model));
    made.append(prompt, pair);
    return made;
  }

  function showMore() {
    const next = found.slice(shown, shown + PAGE);
    list.append(...next.map(card));
    shown += next.length;
    more.hidden = shown >= found.length;
    count.textContent = `${found.length} of ${samples.length} prompts`;
  }

  function show(chosen) {
    found = chosen;
    shown = 0;
    list.replaceChildren();
    showMore();
  }

  function refresh() {
    const value = (name) => form.elements[name].value;
    const wanted = Object.fromEntries(["benchmark", "mode0", "mode1", "category", "flag", "change"].map((name) => [name, value(name)]));
    wanted.disputed = form.elements.disputed.checked;
    wanted.search = value("search").trim().toLowerCase();
    all.hidden = true;
    show(samples.filter((sample) => matches(sample, wanted)));
  }

  // A link to one answer shows that answer alone, and a way back to all.
  function follow() {
    let wanted = "";
    try {
      wanted = decodeURIComponent(location.hash.slice(1));
    } catch {
      return; // not an address that this page has made
    }
    const one = wanted && samples.find((sample) => address(sample) === wanted);
    if (!one) return;
    form.reset();
    show([one]);
    all.hidden = false;
    document.getElementById("answers").scrollIntoView();
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", refresh);
  more.addEventListener("click", showMore);
  all.addEventListener("click", () => {
    history.replaceState(null, "", location.pathname + location.search);
    refresh();
  });
  addEventListener("hashchange", follow);
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));
  refresh();
  follow();
})();
