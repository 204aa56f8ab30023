// What goes over the wire: calls, answers as they are written, and the server's health.
//
// Knows nothing of the page. Every path is relative, so nothing reaches another host.

/** What went wrong, in one line for the reader; `lost` when the server may be gone. */
export class Failure extends Error {
  constructor(message, { lost = false, status = 0, code = null, after = 1 } = {}) {
    super(message);
    Object.assign(this, { lost, status, code, after });
  }
}

const GONE = "The server does not answer.";
const NOT_READY = {
  loading: "The model is being loaded.",
  draining: "The server is shutting down.",
  stuck: "The model has not moved for too long.",
  failed: "The model has failed: the server must be started again.",
};
const STEADY = 10_000; // milliseconds between looks at a server that is well
const SOONEST = 500; // the first look after a failure; doubles up to STEADY

/** Calls the server; `Failure` unless it answers with success. */
export async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(GONE, { lost: true });
  }
  if (response.ok) return response;
  const { status } = response;
  const { error = null } = await response.json().catch(() => ({}));
  const said = error?.message ?? error;
  const after = Number(response.headers.get("Retry-After")) || 1;
  const why = { 429: "The server has too much to do", 503: "The server cannot answer now" }[status];
  const message = typeof said === "string" ? said : response.statusText;
  throw new Failure(`${why ?? `The server refused (${status})`}: ${message}`, { status, code: error?.code, after });
}

async function* lines(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value = "", done } = await reader.read();
    rest += value;
    // A \r at the end of a chunk may be the first half of \r\n.
    const found = rest.split(done ? /\r\n|\r|\n/ : /\r\n|\n|\r(?!$)/);
    rest = found.pop();
    yield* found;
    if (done) return;
  }
}

/** The data of each server-sent event; chunks may end inside a line or a character. */
async function* events(stream) {
  let data = [];
  for await (const line of lines(stream)) {
    if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
    if (line === "" && data.length) {
      yield data.join("\n");
      data = [];
    }
  }
}

/** The base models: `{id, base, adapters}`, the whole name, the model's own, what steers it. */
export async function served() {
  const list = async (path) => (await (await call(path)).json()).data;
  const [names, loaded] = await Promise.all([list("v1/models"), list("v1/adapters")]);
  const first = names.filter(({ base }, i) => names.findIndex((one) => one.base === base) === i);
  return first.map(({ id, base, alphas }) => ({
    id,
    base: base ?? id,
    // Those of a model that is not loaded are named with it alone.
    adapters: alphas ? Object.entries(alphas).map(([id, alpha]) => ({ id, alpha })) : loaded,
  }));
}

/** An answer's beginning; while its model is being loaded it is asked for again and again. */
async function begun(body, signal, waiting) {
  for (;;) {
    try {
      return await call("v1/chat/completions", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(body),
        signal,
      });
    } catch (error) {
      if (error.code !== "loading") throw error;
      waiting("the model is being loaded");
      await new Promise((done) => setTimeout(done, 1000 * error.after));
    }
  }
}

/** Asks for one answer: `{text, tokens, finish}` as they come. `waiting` is told what is waited for. */
export async function* complete(body, signal, waiting) {
  const response = await begun(body, signal, waiting);
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const { error, choices = [] } = JSON.parse(data);
      if (error) throw new Failure(`The server gave up: ${error.message}`);
      for (const { delta, logprobs, finish_reason: finish } of choices) {
        if (delta?.reasoning_content) waiting("thinking");
        yield { text: delta?.content ?? "", tokens: logprobs?.content ?? [], finish };
      }
    }
  } catch (error) {
    if (error instanceof Failure || signal.aborted) throw error;
    throw new Failure("The connection broke.", { lost: true });
  }
  throw new Failure("The connection ended before the answer did.", { lost: true });
}

async function health() {
  try {
    const options = { cache: "no-store", signal: AbortSignal.timeout(5000) };
    const response = await fetch("health", options);
    const { status, waiting } = await response.json();
    const problem = response.ok ? "" : (NOT_READY[status] ?? "The server is not ready.");
    return { problem, waiting };
  } catch {
    return { problem: GONE, waiting: 0 };
  }
}

/** Tells `{problem, waiting}` of the server now and then, often while it is away; no problem is "".
 * Returns the function that looks at once. */
export function watch(tell) {
  let delay = STEADY;
  let timer = 0;
  const look = async () => {
    clearTimeout(timer);
    const found = await health();
    if (!found.problem) delay = STEADY;
    else delay = delay === STEADY ? SOONEST : Math.min(2 * delay, STEADY - 1);
    tell(found);
    clearTimeout(timer); // of a look that began later and ended sooner
    timer = setTimeout(() => document.hidden || look(), delay);
  };
  document.addEventListener("visibilitychange", () => document.hidden || look());
  look();
  return look;
}
