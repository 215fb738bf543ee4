const field = id => document.getElementById(id);
const list = field("rollouts"), key = "rfs " + location.pathname;
const controls = [...document.querySelectorAll(".controls select, .controls input")];

// Rollouts: which are shown, and in which order.
function update() {
  if (!list) return;
  list.className = "by-" + field("colour").value;
  const words = field("search").value.toLowerCase().split(" ").filter(Boolean);
  const kind = field("kind").value, step = field("step").value, run = field("run")?.value ?? "all", order = field("order").value;
  let shown = 0;
  const groups = [...list.querySelectorAll(".group")];
  for (const group of groups) {
    const problem = group.querySelector("header").textContent.toLowerCase();
    const cards = [...group.querySelectorAll(".rollout")];
    let some = false;
    for (const card of cards) {
      const text = problem + card.textContent.toLowerCase();
      const fits = (kind === "all" || card.dataset.kind.split(" ").includes(kind))
        && (step === "all" || card.closest("[data-step]").dataset.step === step)
        && (run === "all" || card.closest("[data-run]").dataset.run.split(" ").includes(run)) && words.every(word => text.includes(word));
      card.hidden = !fits;
      some ||= fits;
      shown += fits;
    }
    group.hidden = !some;
    const sign = order === "length" ? 1 : -1, inside = order === "reward" || order === "length" ? order : "advantage";
    cards.sort((a, b) => sign * (a.dataset[inside] - b.dataset[inside]) || a.dataset.number - b.dataset.number);
    for (const card of cards) card.parentElement.append(card);
    for (const side of group.querySelectorAll(".side")) side.hidden = !side.querySelector(".rollout:not([hidden])");
  }
  const by = order === "spread" ? (a, b) => b.dataset.spread - a.dataset.spread : (a, b) => a.dataset.step - b.dataset.step;
  list.append(...groups.sort((a, b) => by(a, b) || a.dataset.number - b.dataset.number));
  field("shown").textContent = shown + " answers";
}
for (const control of controls) control.addEventListener("input", update);

// Curves: the values at the step under the pointer.
for (const svg of document.querySelectorAll("svg[data-lines]")) {
  const lines = JSON.parse(svg.dataset.lines), [first, last, left, right] = JSON.parse(svg.dataset.frame);
  const cursor = svg.querySelector(".cursor"), output = svg.parentElement.querySelector("output");
  const steps = [...new Set(Object.values(lines).flatMap(line => line[0]))].sort((a, b) => a - b);
  let at = steps.length - 1;
  function show() {
    const step = steps[at], x = last > first ? left + (step - first) / (last - first) * (right - left) : (left + right) / 2;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    const said = Object.entries(lines).filter(([, line]) => line[0].includes(step))
      .map(([name, line]) => name + " " + Number(line[1][line[0].indexOf(step)].toPrecision(4)));
    output.textContent = "step " + step + ": " + said.join(", ");
  }
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const step = first + (x - left) / (right - left) * (last - first);
    at = steps.reduce((best, s, i) => Math.abs(s - step) < Math.abs(steps[best] - step) ? i : best, 0);
    show();
  });
  svg.addEventListener("keydown", event => {
    const move = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (!move) return;
    event.preventDefault();
    at = Math.min(steps.length - 1, Math.max(0, at + move));
    show();
  });
}

// While the run goes on: read the page again, and leave everything where it is.
const seconds = Number(document.body.dataset.refresh);
if (seconds) {
  try {
    const kept = JSON.parse(sessionStorage.getItem(key) || "{}");
    for (const control of controls) if (control.id in kept) control.value = kept[control.id];
    addEventListener("load", () => scrollTo(0, kept.scroll || 0));
  } catch { /* a browser that keeps nothing */ }
  setInterval(() => {
    if (document.activeElement.id === "search" || String(getSelection())) return;
    const state = Object.fromEntries(controls.map(control => [control.id, control.value]));
    try { sessionStorage.setItem(key, JSON.stringify({...state, scroll: scrollY})); } catch { /* as above */ }
    location.reload();
  }, 1000 * seconds);
}
update();
