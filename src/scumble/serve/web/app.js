// The page: tabs, settings, and one function a tab that asks the server and draws what comes.

import { get, key, stream } from "./api.js";
import { CanvasView } from "./canvas.js";
import { watchServer } from "./server.js";

const $ = (selector, root = document) => root.querySelector(selector);
const error = $("#error");
const settingsForm = $("#settings");
let running = null; // the AbortController of the request in flight
let facts = {};

// --- settings ----------------------------------------------------------------------------------------------------

const NUMBERS = ["max_tokens", "seed", "temperature", "max_denoising_steps", "entropy_bound", "canvas_length"];

/** What the settings say, by the API's names; what is empty is left to the server. */
function settings(decoder) {
  const out = {};
  for (const name of NUMBERS) {
    const value = $(`[name=${name}]`, settingsForm).value;
    if (value !== "") out[name] = Number(value);
  }
  const chosen = decoder ?? $("[name=decoder]", settingsForm).value;
  if (chosen) out.decoder = chosen;
  if (chosen === "autoregressive") for (const name of NUMBERS.slice(3)) delete out[name]; // of canvases
  return out;
}

$("[data-settings]").addEventListener("submit", (event) => event.preventDefault());
$("[name=key]", settingsForm).value = key.get();
$("[name=key]", settingsForm).addEventListener("change", (event) => {
  key.set(event.target.value.trim());
  describe();
});

// --- running one request after the other ---------------------------------------------------------------------------

/** Say what went wrong, where it is seen; without a key the field for it is opened. */
function complain(problem) {
  error.textContent = problem.message;
  error.hidden = false;
  error.scrollIntoView({ block: "nearest" });
  if (problem.status === 401) settingsForm.open = true;
}

/** Run a form's work: one at a time, stoppable, its error shown in words. */
function onSubmit(name, work) {
  const form = $(`[data-form=${name}]`);
  const sends = [...form.querySelectorAll("[type=submit]")];
  const stop = $("[data-stop]", form);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return;
    running = new AbortController();
    error.hidden = true;
    for (const send of sends) send.disabled = true;
    stop.hidden = false;
    try {
      await work(running.signal, event.submitter);
    } catch (problem) {
      if (problem.name !== "AbortError") {
        complain(problem);
      }
    } finally {
      running = null;
      for (const send of sends) send.disabled = false;
      stop.hidden = true;
    }
  });
  stop.addEventListener("click", () => running?.abort());
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit(sends[0]);
  });
}

/** Draw one streamed answer; returns its text. */
async function follow(path, body, view, signal) {
  let text = "", extension, usage;
  const read = (choice) => choice.text ?? choice.delta?.content ?? "";
  for await (const event of stream(path, { ...body, drafts: true, stream_options: { include_usage: true } }, signal)) {
    usage = event.usage ?? usage;
    for (const choice of event.choices ?? []) {
      if (choice.scumble?.draft !== undefined) view.draft(choice.scumble);
      else if (choice.scumble) extension = choice.scumble;
      if (choice.delta?.reasoning_content) view.think?.(choice.delta.reasoning_content);
      if (read(choice)) view.commit(read(choice));
      text += read(choice);
    }
  }
  view.finish(extension, usage?.completion_tokens);
  return text;
}

// --- the tabs --------------------------------------------------------------------------------------------------------

const write = new CanvasView($("#write [data-canvas]"));
onSubmit("write", (signal) => {
  const prompt = $("#write-prompt").value;
  write.reset(prompt);
  return follow("v1/completions", { prompt, ...settings() }, write, signal);
});

const views = Object.fromEntries(["diffusion", "autoregressive"].map(
  (decoder) => [decoder, new CanvasView($(`#compare [data-canvas=${decoder}]`))]));
onSubmit("compare", async (signal) => {
  const prompt = $("#compare-prompt").value;
  for (const view of Object.values(views)) view.reset(prompt);
  for (const [decoder, view] of Object.entries(views)) { // in turns: side by side they would share the machine
    view.started = performance.now();
    await follow("v1/completions", { prompt, ...settings(decoder) }, view, signal);
  }
});

const filled = new CanvasView($("#fill [data-canvas]"));
const fillText = $("#fill-text");
let region = null; // [begin, end, new text] of the last answer

fillText.setSelectionRange(fillText.value.indexOf("    \n") + 4, fillText.value.indexOf("    \n") + 4);
document.addEventListener("selectionchange", () => {
  if (document.activeElement !== fillText) return;
  const [begin, end] = [fillText.selectionStart, fillText.selectionEnd];
  $("#fill-region").textContent = begin === end
    ? `The cursor stands at character ${begin}.` : `${end - begin} characters are selected.`;
  $("#fill-mend").hidden = begin === end || !facts.edit;
});
onSubmit("fill", async (signal, submitter) => {
  const [begin, end, text] = [fillText.selectionStart, fillText.selectionEnd, fillText.value];
  const [prefix, suffix] = [text.slice(0, begin), text.slice(end)];
  const mends = submitter?.id === "fill-mend";
  filled.reset(prefix, suffix);
  $("#fill-take").hidden = true;
  const [path, body] = mends
    ? ["v1/edit/completions", { text, region: codePoints(text, begin, end) }] : ["v1/completions", { prompt: prefix, suffix }];
  const answer = await follow(path, { ...body, ...settings() }, filled, signal);
  region = [begin, end, answer];
  $("#fill-take").hidden = false;
});
/** Offsets as the server counts them: in characters, where JavaScript counts halves of some. */
const codePoints = (text, ...offsets) => offsets.map((offset) => [...text.slice(0, offset)].length);
$("#fill-take").addEventListener("click", () => {
  const [begin, end, text] = region;
  fillText.setRangeText(text, begin, end, "select");
  fillText.focus();
  $("#fill-take").hidden = true;
});

const answer = new CanvasView($("#chat [data-canvas]"));
const turns = $("#chat-turns");
let messages = [];
onSubmit("chat", async (signal) => {
  const box = $("#chat-message");
  if (!box.value.trim()) return;
  const asked = { role: "user", content: box.value };
  const asking = turn("user", box.value);
  let thought = "";
  answer.reset();
  answer.think = (text) => (thought += text);
  try {
    const text = await follow("v1/chat/completions", { messages: [...messages, asked], ...settings() }, answer, signal);
    messages.push(asked, { role: "assistant", content: text });
    turn("assistant", text, thought);
    $("#chat [data-canvas]").classList.add("folded"); // the turn says it; replay opens it again
    box.value = "";
  } catch (problem) {
    asking.remove(); // it stays in the box, to be sent again
    throw problem;
  }
});
$("#chat-new").addEventListener("click", () => {
  messages = [];
  turns.replaceChildren();
  answer.reset();
});

function turn(role, text, thought = "") {
  const item = document.createElement("li");
  item.className = role;
  if (thought) {
    const aside = document.createElement("span");
    aside.className = "thinking";
    aside.textContent = thought.trim();
    item.append(aside);
  }
  item.append(text.trim() ? text : "(an empty answer)");
  turns.append(item);
  return item;
}

// --- tabs, by mouse and by arrow keys ----------------------------------------------------------------------------

const tabs = [...document.querySelectorAll("[role=tab]")];
function open(tab, focus = false) {
  for (const one of tabs) {
    const chosen = one === tab;
    one.setAttribute("aria-selected", chosen);
    one.tabIndex = chosen ? 0 : -1;
    document.getElementById(one.getAttribute("aria-controls")).hidden = !chosen;
  }
  settingsForm.hidden = tab.id === "tab-server";
  error.hidden = true;
  history.replaceState(null, "", `#${tab.getAttribute("aria-controls")}`);
  watchServer(tab.id === "tab-server", facts);
  if (focus) tab.focus();
}
tabs.forEach((tab, index) => {
  tab.addEventListener("click", () => open(tab));
  tab.addEventListener("keydown", (event) => {
    const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: -1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    open(tabs.at(to % tabs.length), true);
  });
});
open(tabs.find((tab) => `#${tab.getAttribute("aria-controls")}` === location.hash) ?? tabs[0]);

// --- what is served ------------------------------------------------------------------------------------------------

async function describe() {
  try {
    const model = (await (await get("v1/models")).json()).data[0];
    facts = model.scumble;
    $("#model").textContent = `${model.id} · canvas of ${facts.canvas_length} · context of ${model.max_model_len}`;
    $("#version").textContent = `Scumble ${(await (await get("version")).json()).version}`;
    error.hidden = true;
  } catch (problem) {
    $("#model").textContent = "";
    complain(problem);
  }
}
describe();
