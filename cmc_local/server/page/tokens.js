// Tokens: the text they wrote, the tint that says what steering did to each, and the popover.
//
// Knows nothing of the server and the conversation. What a model says becomes text, never markup.
// A token is an entry of `logprobs.content`: {token, bytes, logprob, top_logprobs}, and with
// `cmc_plain` also {cmc: {logprob, top_logprobs}}, all natural logarithms.

const bytesOf = ({ bytes }) => bytes ?? []; // null: an end token or the like, which writes nothing

const decode = (bytes, options) =>
  new TextDecoder("utf-8", { ignoreBOM: true, ...options }).decode(new Uint8Array(bytes));

/** How many of the tokens, from the first, end with a whole character; 0 when none does yet. */
function wholeCharacter(tokens) {
  const bytes = [];
  for (const [index, token] of tokens.entries()) {
    bytes.push(...bytesOf(token));
    const tail = bytes.slice(-4);
    const lead = tail.findLastIndex((byte) => byte < 0x80 || byte >= 0xc0);
    const size = [0xf0, 0xe0, 0xc0].findIndex((mark) => tail[lead] >= mark);
    const wanted = size < 0 ? 1 : 4 - size;
    if (tail.length - lead >= wanted) return index + 1;
  }
  return 0;
}

/** Cuts a text that grows into spans `{text, tokens}`: what one token wrote, or the several tokens
 * that wrote one character; without tokens where none of them explains the text. */
export class Spans {
  text = "";
  #place = 0; // characters of the text that have a span
  #waiting = []; // tokens whose text has not come yet: it follows them when a stop text might begin

  add(text, tokens) {
    this.text += text;
    this.#waiting.push(...tokens);
    const found = [];
    for (let count; (count = wholeCharacter(this.#waiting)); ) {
      const group = this.#waiting.slice(0, count);
      let said = decode(group.flatMap(bytesOf));
      const rest = this.text.slice(this.#place);
      // An answer's first space is not part of its text.
      if (!this.#place && /^\S/.test(rest)) said = said.trimStart();
      if (said !== rest && said.startsWith(rest)) return found;
      this.#waiting.splice(0, count);
      const gap = said ? rest.indexOf(said) : -1; // -1: an end token, which writes nothing
      if (gap > 0) found.push(this.#take(gap, []));
      if (gap >= 0) found.push(this.#take(said.length, group));
    }
    return this.#waiting.length ? found : [...found, ...this.end()];
  }

  end() {
    const length = this.text.length - this.#place;
    return length ? [this.#take(length, [])] : [];
  }

  #take(length, tokens) {
    const text = this.text.slice(this.#place, (this.#place += length));
    return { text, tokens };
  }
}

/** Natural logarithm of how many times as likely steering made a span; null where unknown. */
function shiftOf({ tokens }) {
  if (!tokens.length || tokens.some(({ cmc, logprob }) => cmc?.logprob == null || logprob == null))
    return null;
  // The chance of a character is the product of those of its tokens.
  return tokens.reduce((sum, { logprob, cmc }) => sum + logprob - cmc.logprob, 0);
}

const FULL = Math.log(100); // the shift with the deepest tint
const LEAST = 0.05; // shifts below it leave a token as it is

function tint(element, shift) {
  if (Math.abs(shift) < LEAST) return;
  element.classList.add(shift > 0 ? "more" : "less");
  element.style.setProperty("--depth", Math.min(1, Math.abs(shift) / FULL).toFixed(3));
}

/** Swatches of the tint. */
export function legend() {
  return [1 / 100, 1 / 10, 1, 10, 100].map((ratio) => {
    const text = ratio === 1 ? "same" : ratio < 1 ? `÷${Math.round(1 / ratio)}` : `×${ratio}`;
    const item = make("li", { text });
    tint(item, Math.log(ratio));
    return item;
  });
}

/** Appends the elements of spans to an answer's text; a token's carries its span as `span`. */
export function appendSpans(answer, spans) {
  for (const span of spans) {
    const element = make("span", { text: span.text });
    if (span.tokens.length) {
      element.className = span.text.startsWith("\n") ? "token newline" : "token";
      element.tabIndex = answer.querySelector(".token") ? -1 : 0; // one stop for Tab in an answer
      element.span = span;
      tint(element, shiftOf(span) ?? 0);
    }
    answer.append(element);
  }
}

const percent = (logprob) => {
  const share = 100 * Math.exp(logprob);
  return share < 0.1 ? "< 0.1 %" : `${share.toFixed(share < 99.95 ? 1 : 0)} %`;
};

/** A shift in words. */
function inWords(shift) {
  const ratio = Math.exp(Math.abs(shift));
  if (ratio < 1.05) return "as likely as plain";
  const times = ratio < 10 ? ratio.toFixed(1) : Math.round(ratio);
  const count = ratio < 1000 ? `${times} times` : "over 1,000 times";
  return shift > 0 ? `${count} as likely as plain` : `${count} less likely than plain`;
}

/** A token's text with its spaces shown, its bytes where they are a part of a character, its
 * name where it writes nothing. */
function shown(token) {
  const bytes = bytesOf(token);
  if (!bytes.length) return token.token;
  try {
    return decode(bytes, { fatal: true })
      .replace(/ /g, "␣")
      .replace(/\n/g, "↵")
      .replace(/\t/g, "⇥");
  } catch {
    return bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
  }
}

/** Rows of the table: the token itself and the most likely others, best first. A log-probability
 * that the server did not say is known to be at most that of the last one it did. */
function alternatives(token) {
  const rows = new Map();
  const enter = (one, column) => {
    const key = JSON.stringify([one.token, one.bytes]);
    if (!rows.has(key)) rows.set(key, { name: shown(one) });
    rows.get(key)[column] ??= one.logprob;
  };
  const steered = token.top_logprobs ?? [];
  const plain = token.cmc?.top_logprobs ?? [];
  enter(token, "after");
  rows.values().next().value.own = true;
  if (token.cmc) enter({ ...token, logprob: token.cmc.logprob }, "before");
  for (const one of steered) enter(one, "after");
  for (const one of plain) enter(one, "before");
  const list = [...rows.values()];
  const order = ({ before = -Infinity, after = -Infinity }) => Math.max(before, after);
  return {
    rows: list.sort((a, b) => (b.after ?? -99) - (a.after ?? -99) || order(b) - order(a)),
    most: { before: plain.at(-1)?.logprob, after: steered.at(-1)?.logprob },
  };
}

function make(name, { text, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

function share(logprob, most) {
  const cell = make("td");
  if (logprob === undefined) {
    const text = most === undefined ? "" : percent(most).replace(/^(?:< )?/, "< ");
    cell.append(make("span", { text, className: "unsaid" }));
    return cell;
  }
  const bar = make("i");
  bar.style.setProperty("--share", Math.exp(logprob).toFixed(3));
  cell.append(make("span", { text: percent(logprob) }), bar);
  return cell;
}

function table(token) {
  const { rows, most } = alternatives(token);
  const columns = token.cmc ? { before: "Plain", after: "Steered" } : { after: "Probability" };
  const heads = Object.values(columns).map((text) => make("th", { text, scope: "col" }));
  const body = rows.map((row) => {
    const cells = Object.keys(columns).map((column) => share(row[column], most[column]));
    const name = make("th", { text: row.name, scope: "row" });
    return make("tr", { className: row.own ? "own" : "" }, name, ...cells);
  });
  const corner = make("th", { text: "Token", scope: "col" });
  const head = make("thead", {}, make("tr", {}, corner, ...heads));
  return make("table", {}, head, make("tbody", {}, ...body));
}

/** The popover beside a token under the pointer or in focus, and the keys between tokens. */
export class Inspector {
  #popover;
  #timer = 0;
  #of = null;

  constructor(root, popover) {
    this.#popover = popover;
    root.addEventListener("pointerover", ({ target, pointerType }) => {
      if (target.span && pointerType === "mouse") this.#later(() => this.show(target), 80);
    });
    root.addEventListener("pointerout", () => this.#later(() => this.#rest(), 200));
    root.addEventListener("focusin", ({ target }) => target.span && this.#enter(target));
    root.addEventListener("focusout", () => this.close());
    root.addEventListener("keydown", (event) => this.#move(event));
    popover.addEventListener("pointerenter", () => clearTimeout(this.#timer));
    popover.addEventListener("pointerleave", () => this.#later(() => this.#rest(), 200));
    addEventListener("scroll", () => this.#of && this.#place(), { capture: true, passive: true });
  }

  get isOpen() {
    return this.#of !== null;
  }

  show(element) {
    clearTimeout(this.#timer);
    if (this.#of === element) return;
    this.close();
    this.#of = element;
    const shift = shiftOf(element.span);
    const { tokens } = element.span;
    const notes = tokens.length > 1 ? [`${tokens.length} tokens write this character`] : [];
    if (shift !== null) notes.push(inWords(shift));
    const note = notes.length ? [make("p", { text: notes.join(", ") })] : [];
    this.#popover.replaceChildren(...note, ...tokens.map(table));
    this.#popover.showPopover();
    this.#place();
    element.setAttribute("aria-describedby", this.#popover.id);
    element.classList.add("looked-at");
  }

  close() {
    clearTimeout(this.#timer);
    this.#of?.removeAttribute("aria-describedby");
    this.#of?.classList.remove("looked-at");
    this.#of = null;
    this.#popover.hidePopover();
  }

  #later(action, delay) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(action, delay);
  }

  /** Where the pointer has left: back to the token in focus, if there is one. */
  #rest() {
    const focused = document.activeElement;
    if (focused?.span && focused.matches(":focus-visible")) this.show(focused);
    else this.close();
  }

  #place() {
    const token = this.#of.getClientRects()[0];
    const { offsetWidth: width, offsetHeight: height, style } = this.#popover;
    const below = token.bottom + 6;
    const fits = below + height < innerHeight;
    style.top = `${fits ? below : Math.max(4, token.top - height - 6)}px`;
    style.left = `${Math.max(4, Math.min(token.left, innerWidth - width - 4))}px`;
  }

  #enter(element) {
    for (const other of element.parentElement.querySelectorAll("[tabindex='0']")) {
      other.tabIndex = -1;
    }
    element.tabIndex = 0;
    this.show(element);
  }

  #move(event) {
    const { target, key, altKey, ctrlKey, metaKey } = event;
    if (!target.span || altKey || ctrlKey || metaKey) return;
    const all = [...target.parentElement.querySelectorAll(".token")];
    const here = all.indexOf(target);
    const line = (step) => {
      const { left, top } = target.getClientRects()[0];
      const beside = (one) => one.getClientRects()[0];
      const there = all.filter((one) => step * (beside(one).top - top) > 4);
      const next = Math.min(...there.map((one) => step * beside(one).top));
      const row = there.filter((one) => Math.abs(step * beside(one).top - next) < 4);
      const far = (one) => Math.abs(beside(one).left - left);
      return row.sort((a, b) => far(a) - far(b))[0];
    };
    const next = {
      ArrowLeft: () => all[here - 1],
      ArrowRight: () => all[here + 1],
      ArrowUp: () => line(-1),
      ArrowDown: () => line(1),
      Home: () => all[0],
      End: () => all.at(-1),
    }[key];
    if (!next) return;
    event.preventDefault();
    next()?.focus();
  }
}
