// The page: one conversation in two columns, the settings of the next answer, the connection.
//
// What belongs to this tab is in sessionStorage, so that two tabs hold two conversations; settings
// are in localStorage. Nothing leaves the page but calls to the server that it came from.

import { complete, served, watch } from "./server.js";
import { read, write } from "./storage.js";
import { Inspector, Spans, appendSpans, legend } from "./tokens.js";

const COLUMNS = { plain: "Plain", steered: "Steered" };
const SETTINGS = "cmc-local.settings.1";
const CONVERSATION = "cmc-local.conversation.1";

const $ = (id) => document.getElementById(id);
const narrow = matchMedia("(max-width: 700px)");
const dark = matchMedia("(prefers-color-scheme: dark)");
const running = new Map(); // answer -> the AbortController of its stream
const inspector = new Inspector($("turns"), $("popover"));
const settings = { alphas: {}, sampling: {}, system: "", ...read("localStorage", SETTINGS) };
let turns = []; // {question, plain: answer, steered: answer}
let models = []; // {id, base, adapters} each; one of them is asked
let adapters = []; // of that one: {id, alpha}
let model = "";

const saveSettings = () => write("localStorage", SETTINGS, settings);

function saveConversation() {
  const draft = $("question").value;
  // Where storage is full the oldest answers go without their alternatives, half of them at a time.
  for (let whole = turns.length; ; whole >>= 1) {
    const kept = turns.map((turn, i) => (i < turns.length - whole ? withoutTops(turn) : turn));
    if (write("sessionStorage", CONVERSATION, { turns: kept, draft }) || !whole) return;
  }
}

const withoutTops = (turn) =>
  JSON.parse(JSON.stringify(turn, (key, value) => (key === "top_logprobs" ? [] : value)));

// One answer.

const recipe = (alphas) =>
  alphas.map(({ adapter, alpha }) => `${adapter} ${alpha}`).join(" + ") || "no adapter";

const acting = () =>
  adapters
    .map(({ id, alpha }) => ({ adapter: id, alpha: settings.alphas[id] ?? alpha }))
    .filter(({ alpha }) => alpha !== 0);

const textOf = (answer) => answer.spans.map(({ text }) => text).join("");

/** Each column goes on with its own answers; where it gave none, the question is left out as well:
 * chat templates want questions and answers to take turns. */
function messages(turn, column) {
  const said = settings.system ? [{ role: "system", content: settings.system }] : [];
  for (const earlier of turns.slice(0, turns.indexOf(turn))) {
    const content = textOf(earlier[column]);
    if (!content) continue;
    said.push({ role: "user", content: earlier.question }, { role: "assistant", content });
  }
  return [...said, { role: "user", content: turn.question }];
}

async function answerIn(turn, column) {
  const answer = turn[column];
  const stopper = new AbortController();
  const spans = new Spans();
  const began = performance.now();
  const body = {
    model: models.length > 1 ? settings.model : "default",
    messages: messages(turn, column),
    ...answer.sampling,
    stream: true,
    logprobs: true,
    top_logprobs: 5,
    cmc: answer.alphas,
    ...(column === "steered" && { cmc_plain: true }),
  };
  const take = (found) => {
    answer.spans.push(...found);
    appendSpans(turn.views[column].querySelector(".text"), found);
    follow();
  };
  running.set(answer, stopper);
  showAnswer(turn, column);
  try {
    let waits = false;
    const waiting = (what) => showAnswer(turn, column, ((waits = true), what));
    for await (const { text, tokens, finish } of complete(body, stopper.signal, waiting)) {
      answer.tokens += tokens.length;
      if (waits && text) showAnswer(turn, column, ((waits = false), ""));
      answer.finish = finish ?? answer.finish;
      take(spans.add(text, tokens));
    }
    answer.state = "done";
  } catch (error) {
    answer.state = stopper.signal.aborted ? "stopped" : "failed";
    answer.problem = stopper.signal.aborted ? "" : error.message;
    if (error.lost) look();
    else if (error.status) discover().catch(look); // an adapter may have been unloaded
  }
  take(spans.end());
  answer.seconds = (performance.now() - began) / 1000;
  running.delete(answer);
  showAnswer(turn, column);
  saveConversation();
  announce(`${COLUMNS[column]} answer ${answer.state}. ${answer.problem}`);
}

/** Writes the answers of a turn in these columns, anew if they were there. */
function ask(turn, columns) {
  const wrong = document.querySelector("#panel :invalid");
  if (wrong) {
    showPanel(true);
    wrong.reportValidity();
    return false;
  }
  const seed = settings.sampling.seed ?? Math.floor(Math.random() * (2 ** 32 - 1));
  for (const column of columns) {
    turn[column] = {
      alphas: column === "plain" ? [] : acting(),
      sampling: { ...settings.sampling, seed },
      ...{ spans: [], tokens: 0, seconds: 0, finish: null, state: "writing", problem: "" },
    };
    turn.views?.[column].querySelector(".text").replaceChildren();
  }
  inspector.close(); // its token may be gone
  if (!turn.views) showTurn(turn);
  for (const column of columns) answerIn(turn, column);
  if (document.activeElement !== $("question")) $("stop").focus(); // Retry and Send are hidden now
  saveConversation();
  announce("Writing");
  return true;
}

const stop = () => running.forEach((stopper) => stopper.abort());

// What is shown.

const announce = (text) => ($("status").textContent = text);

const copyOf = (template) => $(template).content.firstElementChild.cloneNode(true);

function showTurn(turn) {
  const section = copyOf("turn-template");
  section.querySelector(".question").textContent = turn.question;
  const views = {};
  for (const [column, name] of Object.entries(COLUMNS)) {
    const view = (views[column] = copyOf("answer-template"));
    view.classList.add(column);
    view.ariaLabel = `${name} answer`;
    view.querySelector(".whose").textContent = name;
    view.querySelector(".copy").onclick = ({ target }) => copy(textOf(turn[column]), target);
    view.querySelector(".retry").onclick = () => ask(turn, [column]);
    section.querySelector(".pair").append(view);
  }
  // Not part of what is stored.
  Object.defineProperty(turn, "views", { value: views, enumerable: false });
  $("turns").append(section);
  for (const column of Object.keys(COLUMNS)) {
    appendSpans(views[column].querySelector(".text"), turn[column].spans);
    showAnswer(turn, column);
  }
  follow(true);
}

function showAnswer(turn, column, waiting = "") {
  const view = turn.views[column];
  const { alphas, spans, tokens, seconds, state, finish, problem } = turn[column];
  const facts = column === "steered" ? [recipe(alphas)] : [];
  if (tokens) facts.push(`${tokens} ${tokens === 1 ? "token" : "tokens"}`);
  const speed = tokens / seconds;
  if (state === "done" && tokens) facts.push(`${speed.toFixed(speed < 100 ? 1 : 0)}/s`);
  if (state === "stopped") facts.push("stopped");
  if (waiting) facts.push(waiting);
  if (finish === "length") facts.push("cut: no more tokens allowed");
  view.querySelector(".facts").textContent = facts.join(" · ");
  Object.assign(view.querySelector(".problem"), { textContent: problem, hidden: !problem });
  view.querySelector(".copy").hidden = !spans.length;
  view.dataset.state = state;
  view.ariaBusy = String(state === "writing");
  showState();
  showRecipe();
}

function showState() {
  const stopHadFocus = document.activeElement === $("stop");
  $("send").disabled = !model;
  $("send").hidden = running.size > 0;
  $("stop").hidden = running.size === 0;
  if (stopHadFocus && $("stop").hidden) $("send").focus();
  $("empty").hidden = turns.length > 0;
  $("export").disabled = turns.length === 0;
}

let following = true;
let planned = 0;

/** Keeps the end in sight, unless the reader has scrolled away from it. */
function follow(anyway = false) {
  following ||= anyway;
  if (!following || planned) return;
  planned = requestAnimationFrame(() => {
    planned = 0;
    $("scroll").scrollTop = $("scroll").scrollHeight;
  });
}

function showAdapters() {
  const views = adapters.map(({ id, alpha: own }) => {
    const view = copyOf("adapter-template");
    const [number, slider] = view.querySelectorAll("input");
    const set = (value, from) => {
      for (const input of [number, slider]) if (input !== from) input.value = value;
      slider.ariaValueText = Number(value) ? value : "0, off";
      view.classList.toggle("off", !Number(value));
    };
    view.querySelector("label").textContent = id;
    view.querySelector("label").htmlFor = slider.id = `alpha-${id}`;
    number.ariaLabel = `${id}, alpha as a number`;
    for (const input of [number, slider]) {
      input.addEventListener("input", () => {
        if (!input.validity.valid) return;
        settings.alphas[id] = Number(input.value);
        set(input.value, input);
        showRecipe();
        saveSettings();
      });
    }
    set(String(settings.alphas[id] ?? own));
    return view;
  });
  $("adapters").replaceChildren(...views);
  if (!views.length) $("adapters").textContent = "None is loaded: start the server with --adapter.";
  showRecipe();
}

/** The strengths of the next answer; Retry stands out where the last one had others. */
function showRecipe() {
  const next = recipe(acting());
  $("recipe").textContent = next;
  const last = turns.at(-1);
  if (last) last.views.steered.dataset.stale = recipe(last.steered.alphas) !== next;
}

function showPanel(open) {
  document.body.dataset.panel = open ? "open" : "closed";
  $("panel-button").ariaExpanded = String(open);
  $("panel-button").textContent = open && narrow.matches ? "Done" : "Settings";
  document.querySelector("main").inert = open && narrow.matches; // it lies over the conversation
}

function showTheme() {
  const isDark = settings.theme ? settings.theme === "dark" : dark.matches;
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
  $("theme").textContent = isDark ? "Light" : "Dark";
}

// The connection.

async function showHealth({ problem, waiting }) {
  const wasAway = !$("banner").hidden;
  if (!problem && (wasAway || !model)) {
    problem = await discover().then(() => "", ({ message }) => message);
  }
  $("banner").hidden = !problem;
  $("banner").firstElementChild.textContent = problem && `${problem} Trying again by itself.`;
  $("health").textContent = problem ? "away" : waiting ? `busy, ${waiting} waiting` : "ready";
  $("health").dataset.state = problem ? "away" : "ready";
  if (wasAway && !problem) announce("The server is back");
}

async function discover() {
  models = await served();
  $("models").replaceChildren(...models.map(({ base }) => new Option(base)));
  $("models").hidden = models.length < 2;
  chooseModel(settings.model);
}

/** The base model that is asked from now on, with its adapters; the first one for a name unknown. */
function chooseModel(name) {
  const chosen = models.find(({ base }) => base === name) ?? models[0];
  [settings.model, model, adapters] = [chosen.base, chosen.id, chosen.adapters];
  $("models").value = chosen.base;
  $("model").textContent = model;
  showState();
  showAdapters();
}

// What the reader does.

function send() {
  const question = $("question").value.trim();
  if (!question || running.size || !model) return;
  const turn = { question };
  turns.push(turn);
  if (ask(turn, Object.keys(COLUMNS))) $("question").value = "";
  else turns.pop();
}

async function copy(text, button) {
  const done = await navigator.clipboard?.writeText(text).then(() => true, () => false);
  announce((button.textContent = done ? "Copied" : "Not allowed"));
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

function exportConversation() {
  const content = { format: "cmc-local conversation 1", date: new Date(), model, settings, turns };
  const file = new Blob([JSON.stringify(content, null, 1)], { type: "application/json" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = `conversation-${new Date().toISOString().slice(0, 19).replace(/:/g, "-")}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
}

function startAnew() {
  if (turns.length && !confirm("Leave this conversation? Export keeps it.")) return;
  stop();
  inspector.close();
  turns = [];
  $("turns").replaceChildren();
  showState();
  saveConversation();
  $("question").focus();
}

function press(event) {
  if (event.key === "Escape") {
    if (inspector.isOpen) inspector.close();
    else if (narrow.matches && document.body.dataset.panel === "open") showPanel(false);
    else stop();
  } else if (event.altKey && event.code === "KeyR" && turns.length && !running.size) {
    event.preventDefault();
    ask(turns.at(-1), Object.keys(COLUMNS));
  } else if (event.target === $("question") && event.key === "Enter") {
    if (event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  }
}

function listen() {
  const on = (id, event, action) => $(id).addEventListener(event, action);
  on("composer", "submit", (event) => (event.preventDefault(), send()));
  on("stop", "click", stop);
  on("new", "click", startAnew);
  on("export", "click", exportConversation);
  on("models", "change", ({ target }) => (chooseModel(target.value), saveSettings()));
  on("panel-button", "click", () => showPanel(document.body.dataset.panel !== "open"));
  on("theme", "click", () => {
    settings.theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    saveSettings();
    showTheme();
  });
  on("scroll", "scroll", ({ target }) => {
    following = target.scrollHeight - target.scrollTop - target.clientHeight < 40;
  });
  for (const input of $("sampling").querySelectorAll("input")) {
    input.value = settings.sampling[input.name] ?? "";
    input.addEventListener("input", () => {
      if (!input.validity.valid) return;
      if (input.value === "") delete settings.sampling[input.name];
      else settings.sampling[input.name] = Number(input.value);
      saveSettings();
    });
  }
  $("system").value = settings.system;
  on("system", "input", ({ target }) => {
    settings.system = target.value;
    saveSettings();
  });
  $("banner").querySelector("button").onclick = () => look();
  document.addEventListener("keydown", press);
  dark.addEventListener("change", showTheme);
  narrow.addEventListener("change", () => showPanel(!narrow.matches));
  addEventListener("pagehide", () => (stop(), saveConversation()));
}

function restore() {
  const stored = read("sessionStorage", CONVERSATION);
  $("question").value = stored?.draft ?? "";
  for (const turn of stored?.turns ?? []) {
    for (const column of Object.keys(COLUMNS)) {
      if (turn[column].state === "writing") turn[column].state = "stopped";
    }
    turns.push(turn);
    showTurn(turn);
  }
  showState();
}

listen();
showTheme();
$("legend").append(...legend());
showPanel(!narrow.matches);
restore();
const look = watch(showHealth);
$("question").focus({ preventScroll: true });
