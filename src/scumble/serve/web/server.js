// The operator's tab: load and throughput every two seconds; keys and audit log once, for they are administration, and
// every look at them is itself recorded.

import { get } from "./api.js";
import { duration, showFigures } from "./canvas.js";

let timer = null;
let earlier = null; // [time, tokens] of the last look, for a rate

/** Look at the server every two seconds while its tab is open. */
export function watchServer(open) {
  clearInterval(timer);
  earlier = null;
  if (!open) return;
  look();
  timer = setInterval(look, 2000);
  administration();
}

async function administration() {
  const host = document.getElementById("server-admin");
  try {
    const status = await (await get("admin/status")).json();
    const keys = (await (await get("admin/keys")).json()).data;
    host.replaceChildren(
      heading("Audit log"),
      paragraph(status.audit
        ? `${status.audit.lines} records, texts ${status.audit.keeps_texts ? "kept" : "not kept"}, head ${status.audit.head.slice(0, 16)}…`
        : "Nothing is recorded: the server was started with --no-audit."),
      heading("Keys"),
      status.open ? paragraph("There are none, so whoever reaches this server may use all of it. Make one: scumble keys create.")
        : table(["name", "scopes", "state", "expires", "requests a minute", "tokens a minute"], keys.map((key) => [
          key.name, key.scopes.join(", "), key.state ?? "", key.expires ? new Date(1000 * key.expires).toLocaleDateString() : "never",
          key.requests_per_minute ?? "any", key.tokens_per_minute ?? "any"])),
      heading("Model"),
      paragraph(`${status.model}, digest ${status.digest.slice(0, 16)}…`),
    );
  } catch (problem) {
    host.replaceChildren(paragraph(problem.status === 403 || problem.status === 401
      ? "Keys and audit log need a key with the scope admin." : problem.message));
  }
}

function element(name, text, ...children) {
  const one = document.createElement(name);
  if (text !== undefined) one.textContent = text;
  one.append(...children);
  return one;
}
const heading = (text) => element("h2", text);
const paragraph = (text) => element("p", text);

function table(names, rows) {
  const cells = (kind, values) => element("tr", undefined, ...values.map((value) => element(kind, value)));
  const body = element("tbody", undefined, ...rows.map((row) => cells("td", row)));
  const box = element("div", undefined, element("table", undefined, element("thead", undefined, cells("th", names)), body));
  box.className = "scroll";
  return box;
}

async function look() {
  const figures = document.getElementById("server-figures");
  try {
    const metrics = parse(await (await get("metrics")).text());
    const now = [performance.now() / 1000, metrics["vllm:generation_tokens_total"] ?? 0];
    const rate = earlier ? (now[1] - earlier[1]) / (now[0] - earlier[0]) : 0;
    earlier = now;
    const mean = (name) => {
      const count = metrics[`${name}_count`];
      return count ? metrics[`${name}_sum`] / count : null;
    };
    const number = (value, digits = 0) => (value === null || value === undefined ? "–" : value.toFixed(digits));
    showFigures(figures, {
      "In the making": number(metrics["vllm:num_requests_running"]),
      Waiting: number(metrics["vllm:num_requests_waiting"]),
      Places: number(metrics["scumble:slots"]),
      "Tokens a second, now": number(rate, 1),
      "Tokens written": number(metrics["vllm:generation_tokens_total"]),
      "Passes a canvas": number(mean("scumble:passes_per_canvas"), 1),
      "Tokens a pass": number(mean("scumble:tokens_per_pass"), 1),
      "First text, mean": mean("vllm:time_to_first_token_seconds") === null
        ? "–" : duration(mean("vllm:time_to_first_token_seconds")),
      "Cache in use": number(100 * metrics["vllm:kv_cache_usage_perc"], 1) + " %",
      "Prompts found in the cache": metrics["vllm:prefix_cache_queries_total"]
        ? number(100 * metrics["vllm:prefix_cache_hits_total"] / metrics["vllm:prefix_cache_queries_total"]) + " %" : "–",
      "Clients that left": number(metrics["scumble:cancelled_total"]),
    });
  } catch (problem) {
    clearInterval(timer);
    showFigures(figures, { "Cannot be read": problem.message });
  }
}

/** Prometheus text -> {name: value}, values of the same name summed over their labels. */
function parse(text) {
  const out = {};
  for (const line of text.split("\n")) {
    const match = /^([A-Za-z_:][\w:]*)(\{.*\})? (\S+)$/.exec(line);
    if (match) out[match[1]] = (out[match[1]] ?? 0) + Number(match[3]);
  }
  return out;
}
