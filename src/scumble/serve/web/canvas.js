// A canvas on the page: drawn pass by pass, then replayed with a slider; figures stand below.
//
// A frame is what one pass showed: { committed, tokens, text, accepted, entropy?, pass, canvas }. Committed text stands in
// front of it. Screen readers hear committed text only; noise is hidden from them.

const HALF_CHARACTERS = 4; // a character of several tokens is in the text once, and in none of the tokens
const SURE = 3; // nats of entropy at which a token counts as pure noise

export class CanvasView {
  constructor(host) {
    this.host = host;
    host.innerHTML = `
      <div class="canvas" aria-hidden="true"></div>
      <p class="said skip" aria-live="polite"></p>
      <div class="replay" hidden>
        <button type="button">Replay</button>
        <input type="range" min="0" aria-label="Pass to show">
        <output class="quiet"></output>
      </div>
      <p class="legend quiet" hidden><span><i class="noise"></i>unsure</span><span><i class="new"></i>changed in this pass</span></p>
      <dl class="figures"></dl>`;
    this.canvas = host.querySelector(".canvas");
    this.said = host.querySelector(".said");
    this.replay = host.querySelector(".replay");
    this.legend = host.querySelector(".legend");
    this.slider = host.querySelector("input");
    this.label = host.querySelector("output");
    this.figures = host.querySelector(".figures");
    this.slider.addEventListener("input", () => this.show(Number(this.slider.value)));
    host.querySelector("button").addEventListener("click", () => this.play());
    this.reset();
  }

  reset(before = "", after = "") {
    clearInterval(this.timer);
    this.host.classList.remove("folded");
    Object.assign(this, { frames: [], committed: "", before, after, started: performance.now(), first: null });
    this.replay.hidden = this.legend.hidden = true;
    this.said.textContent = "";
    this.figures.replaceChildren();
    this.draw(null);
  }

  /** A draft: candidate 0 is drawn, the others are only counted. */
  draft(draft) {
    if (draft.candidate) return;
    this.frames.push({ ...draft, text: draft.draft, committed: this.committed });
    this.draw(this.frames.length - 1);
  }

  commit(text) {
    if (text && this.first === null) this.first = performance.now() - this.started;
    this.committed += text;
    this.draw(null);
  }

  /** The answer is over. extension: what the server says of it, or undefined. */
  finish(extension, tokens) {
    const seconds = extension?.seconds ?? (performance.now() - this.started) / 1000;
    const passes = (extension?.passes ?? []).reduce((sum, one) => sum + one, 0);
    this.said.textContent = this.committed;
    showFigures(this.figures, {
      Tokens: tokens ?? "–",
      Passes: passes || "–",
      "Tokens a pass": passes && tokens ? (tokens / passes).toFixed(1) : "–",
      "Tokens a second": tokens ? (tokens / seconds).toFixed(1) : "–",
      "First text after": duration(extension?.first_text_seconds ?? (this.first ?? 0) / 1000),
      Seed: extension?.seed ?? "–",
    });
    if (!this.frames.length) return this.draw(null);
    this.frames.push({ committed: this.committed, tokens: [], text: "", accepted: [], last: true });
    this.slider.max = this.frames.length - 1;
    this.replay.hidden = this.legend.hidden = false;
    this.show(this.frames.length - 1);
  }

  show(index) {
    this.host.classList.remove("folded");
    this.slider.value = index;
    const frame = this.frames[index];
    this.label.textContent = frame.last ? "done" : `canvas ${frame.canvas + 1}, pass ${frame.pass + 1}`;
    this.draw(index);
  }

  play() {
    clearInterval(this.timer);
    let index = 0;
    const step = () => {
      this.show(index++);
      if (index >= this.frames.length) clearInterval(this.timer);
    };
    step();
    this.timer = setInterval(step, Math.max(60, Math.min(400, 6000 / this.frames.length)));
  }

  draw(index) {
    const frame = index === null ? null : this.frames[index];
    const before = this.frames[index - 1];
    const earlier = before && !before.last && before.canvas === frame?.canvas ? before.tokens : null;
    this.canvas.replaceChildren(span("given", this.before), document.createTextNode(frame ? frame.committed : this.committed));
    let shown = 0; // characters of the draft's text that stand already
    (frame?.tokens ?? []).forEach((token, position) => {
      const at = frame.text.indexOf(token, shown); // pads, and all behind the end, are not in the text
      if (at < 0 || at > shown + HALF_CHARACTERS) return this.canvas.append(span("beyond", "·"));
      const one = span("token live", token);
      shown = at + token.length;
      one.style.setProperty("--sure", certainty(frame, position).toFixed(2));
      if (earlier && earlier[position] !== token) one.classList.add("changed");
      this.canvas.append(one);
    });
    this.canvas.append(span("given", this.after));
    this.canvas.hidden = !this.canvas.textContent; // an empty box says nothing
  }
}

function certainty(frame, position) {
  if (frame.entropy) return 1 - Math.min(1, frame.entropy[position] / SURE);
  return frame.accepted[position] ? 1 : 0.15;
}

function span(kind, text) {
  const one = document.createElement("span");
  one.className = kind;
  one.textContent = text;
  return one;
}

/** Seconds, in words short enough for a figure. */
export const duration = (seconds) => (seconds < 1 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(1)} s`);

/** Name and value pairs into a <dl>. */
export function showFigures(list, figures) {
  list.replaceChildren(...Object.entries(figures).map(([name, value]) => {
    const box = document.createElement("div");
    const [term, text] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = name;
    text.textContent = value;
    box.append(term, text);
    return box;
  }));
}
