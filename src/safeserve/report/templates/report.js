"use strict";
(async () => {
  // Everything a model wrote enters the page through textContent, never as markup.
  const list = document.getElementById("samples");
  if (!list) return;
  const form = document.getElementById("filters");
  const more = document.getElementById("more");
  const all = document.getElementById("all");
  const clear = document.querySelector("#clear input");
  const count = document.getElementById("count");
  const printed = document.getElementById("printed");
  const PAGE = 20;
  const MODES = ["unsafe_compliance", "degenerate", "empty", "evasive", "helpful_answer", "safe_answer", "partial_refusal", "full_refusal"];
  const WHERE = "The answers are also in evals/MODEL/BENCHMARK/completions.jsonl.";
  let models;
  let samples;
  let found = [];
  let shown = 0;
  let before = null; // the filters and the length of the list from before a link to one answer was followed

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = whole(text);
    return made;
  }

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

  if (!("DecompressionStream" in window)) {
    list.append(element("p", "missing", `This browser cannot unpack the answers: it has no DecompressionStream (Chrome and Edge 80, Firefox 113, Safari 16.4 or later do). ${WHERE}`));
    return;
  }
  try {
    ({ models, samples } = await unpacked(document.getElementById("data").textContent));
  } catch {
    list.append(element("p", "missing", `The answers in this file are damaged and cannot be shown; write the page anew with safeserve report. ${WHERE}`));
    return;
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
  form.elements.opposed.parentElement.hidden = !samples.some(opposed);
  clear.parentElement.hidden = !samples.some(harmful);
  form.hidden = false;

  function opposed(sample) {
    return models.some((model) => sample.answers[model]?.opposed);
  }

  function harmful(sample) {
    return sample.label === "harmful";
  }

  // Right and wrong were decided as in the table of the comparison; null is an answer that is unscored or missing.
  const right = (sample, side) => sample.answers[models[side]]?.right ?? null;
  const moved = (one, two) => ![one, two].some((name) => name === "" || name === "unscored") && one !== two;
  const CHANGES = {
    changed: (sample) => moved(mode(sample, 0), mode(sample, 1)) || CHANGES.fixed(sample) || CHANGES.broken(sample),
    fixed: (sample) => right(sample, 0) === false && right(sample, 1) === true,
    broken: (sample) => right(sample, 0) === true && right(sample, 1) === false,
  };

  function haystack(sample) {
    sample.haystack ??= [sample.id, sample.category, sample.prompt, ...models.map((model) => sample.answers[model]?.text ?? "")].join("\n").toLowerCase();
    return sample.haystack;
  }

  // A little at a time, before anybody types, so that the first letter of a search need not wait for it.
  function prepare(from) {
    const end = Math.min(from + 200, samples.length);
    for (let index = from; index < end; index++) haystack(samples[index]);
    if (end < samples.length) setTimeout(prepare, 0, end);
  }

  function matches(sample, wanted) {
    if (wanted.benchmark && sample.benchmark !== wanted.benchmark) return false;
    if (wanted.mode0 && mode(sample, 0) !== wanted.mode0) return false;
    if (wanted.mode1 && mode(sample, 1) !== wanted.mode1) return false;
    if (wanted.category && sample.category !== wanted.category) return false;
    if (wanted.flag && !flags(sample).includes(wanted.flag)) return false;
    if (wanted.change && !CHANGES[wanted.change](sample)) return false;
    if (wanted.opposed && !opposed(sample)) return false;
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
    side.append(passage("text cover", given.text === "" ? "(empty)" : given.text, `Answer of ${model}`));
    if (given.guard) side.append(guardLine(given));
    if (given.opposed) side.append(element("div", "guard-line", `unsafe by ${given.opposed.unsafe.join(", ")}; safe by ${given.opposed.safe.join(", ")}`));
    // Free text: a judge may quote what it found.
    if (given.evidence.length) side.append(element("div", "evidence cover", given.evidence.join("; ")));
    return side;
  }

  function passage(className, text, name) {
    const made = element("div", className, text);
    made.dir = "auto";
    made.dataset.name = whole(name);
    return made;
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

  // The prompt, the answers and what judges quote of them, covered or open together.
  function cover(article, covered) {
    article.classList.toggle("veiled", covered);
    for (const part of article.querySelectorAll(".cover")) {
      if (covered) part.setAttribute("aria-hidden", "true");
      else part.removeAttribute("aria-hidden");
    }
    const button = article.querySelector(".reveal");
    button.textContent = covered ? "Show prompt and answers" : "Hide";
    button.setAttribute("aria-expanded", String(!covered));
  }

  function card(sample) {
    const made = element("article", "sample");
    const name = sample.k ? `${sample.id}, sample ${sample.k + 1}` : sample.id;
    const where = element("div", "where", [sample.benchmark, words(sample.category), name].filter(Boolean).join(" · "));
    const link = element("a", "link", "link");
    link.href = "#" + encodeURIComponent(address(sample));
    link.setAttribute("aria-label", `Link to ${address(sample)}`);
    where.append(" ", link);
    const pair = element("div", "pair");
    for (const model of models) pair.append(answer(sample, model));
    made.append(where, passage("text prompt cover", sample.prompt, "Prompt"), pair);
    if (!harmful(sample)) return made;
    const button = element("button", "reveal");
    button.type = "button";
    where.append(" ", button);
    where.after(element("p", "paper missing", "Prompt and answers are hidden: the prompt is a harmful one. They can be shown on screen."));
    cover(made, !clear.checked);
    button.addEventListener("click", () => reveal(made, !made.classList.contains("veiled")));
    made.addEventListener("click", (event) => {
      if (made.classList.contains("veiled") && event.target.closest(".cover")) reveal(made, false);
    });
    return made;
  }

  function reveal(article, covered) {
    cover(article, covered);
    reachable(article);
  }

  // Text that scrolls can be scrolled by keyboard; what is covered or fits is no stop on the way.
  function reachable(part) {
    const texts = [...part.querySelectorAll(".text")];
    const long = texts.map((text) => !text.hasAttribute("aria-hidden") && text.scrollHeight > text.clientHeight + 1);
    texts.forEach((text, index) => {
      const set = (name, value) => (long[index] ? text.setAttribute(name, value) : text.removeAttribute(name));
      set("tabindex", "0");
      set("role", "group");
      set("aria-label", text.dataset.name);
    });
  }

  function showMore() {
    const next = found.slice(shown, shown + PAGE);
    const cards = next.map(card);
    list.append(...cards);
    cards.forEach(reachable);
    shown += next.length;
    more.hidden = shown >= found.length;
    count.textContent = `${found.length} of ${samples.length} prompts`;
    printed.textContent = `Listed here: ${shown} of ${found.length} prompts${chosen()}, of ${samples.length} in all.`;
  }

  // What is listed, in words, since the filters themselves are not printed.
  function chosen() {
    if (before) return " (one answer)";
    const set = [...form.elements].filter((part) => (part.type === "checkbox" ? part.checked : part.value));
    const parts = set.map((part) => {
      if (part.type === "checkbox") return part.parentElement.textContent.trim();
      return `${part.parentElement.firstChild.textContent.trim()}: ${part.selectedOptions?.[0].text ?? part.value}`;
    });
    return parts.length ? ` (${parts.join("; ")})` : "";
  }

  function show(wanted) {
    found = wanted;
    shown = 0;
    list.replaceChildren();
    showMore();
  }

  function refresh() {
    const wanted = state();
    wanted.search = wanted.search.trim().toLowerCase();
    if (before) history.replaceState(null, "", location.pathname + location.search); // no longer one answer
    before = null;
    all.hidden = true;
    show(samples.filter((sample) => matches(sample, wanted)));
  }

  function state() {
    return Object.fromEntries([...form.elements].map((part) => [part.name, part.type === "checkbox" ? part.checked : part.value]));
  }

  // A link to one answer shows that answer alone; going back shows the list as it was.
  function follow() {
    let wanted = "";
    try {
      wanted = decodeURIComponent(location.hash.slice(1));
    } catch {
      return; // not an address that this page has made
    }
    if (!wanted && before) return goBack();
    const one = wanted && samples.find((sample) => address(sample) === wanted);
    if (!one) return;
    before ??= { filters: state(), shown };
    form.reset();
    show([one]);
    all.hidden = false;
    document.getElementById("answers").scrollIntoView();
  }

  function goBack() {
    const { filters, shown: listed } = before;
    for (const part of form.elements) part[part.type === "checkbox" ? "checked" : "value"] = filters[part.name];
    refresh();
    while (shown < listed && !more.hidden) showMore();
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", refresh);
  clear.addEventListener("input", () => list.querySelectorAll("article").forEach((part) => part.querySelector(".reveal") && reveal(part, !clear.checked)));
  more.addEventListener("click", showMore);
  all.addEventListener("click", refresh);
  addEventListener("resize", () => reachable(list));
  addEventListener("hashchange", follow);
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((part) => (part.open = true));
  });
  addEventListener("afterprint", () => closed.forEach((part) => (part.open = false)));
  refresh();
  follow();
  setTimeout(prepare, 0, 0);
})();
