// The operator's tab: load, queue, throughput; keys and audit where this key may see them.

import { get } from "./api.js";
import { showFigures } from "./canvas.js";

let timer = null;
let earlier = null; // [time, tokens] of the last look, for a rate

/** Look at the server every two seconds while its tab is open. */
export function watchServer(open) {
  clearInterval(timer);
  earlier = null;
  if (!open) return;
  look();
  timer = setInterval(look, 2000);
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
        ? "–" : `${Math.round(1000 * mean("vllm:time_to_first_token_seconds"))} ms`,
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
