// One column: a state, or a mixture of two, and the conversation with it.

import { picture, seconds, stream } from "./api.js";

const NONE = "none";

function turn(log, role) {
  const box = document.createElement("div");
  box.className = `turn ${role}`;
  const thought = document.createElement("span");
  thought.className = "thought";
  const said = document.createElement("span");
  box.append(thought, said);
  log.append(box);
  return { box, thought, said };
}

export class Column {
  constructor(template, place, settings) {
    this.element = template.content.firstElementChild.cloneNode(true);
    place.append(this.element);
    this.settings = settings;
    this.messages = [];
    this.find = (name) => this.element.querySelector(name);
    this.log = this.find(".log");
    this.log.dataset.empty = "Answers from this state appear here.";
    for (const name of [".first", ".second"]) this.find(name).addEventListener("change", () => this.changed());
    this.find("input[type=range]").addEventListener("input", () => this.changed());
    this.find(".picture").addEventListener("toggle", () => this.draw());
    this.find("img").hidden = true;
  }

  /** Fills the lists; what was chosen stays, if it is still there. */
  offer(names, first) {
    for (const [name, extra, chosen] of [[".first", [], first], [".second", [["", "nothing"]], ""]]) {
      const list = this.find(name);
      const before = list.value || chosen;
      const options = [...extra, [NONE, "none (the model as it is)"], ...names.map((one) => [one, one])];
      list.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
      list.value = options.some(([value]) => value === before) ? before : options[0][0];
    }
    this.changed();
  }

  /** {name: weight} of what is chosen. */
  get mix() {
    const [first, second] = [this.find(".first").value, this.find(".second").value];
    if (!second || second === first) return { [first]: 1 };
    const weight = Number(this.find("input[type=range]").value) / 100;
    return { [first]: 1 - weight, [second]: weight };
  }

  get state() {
    const names = Object.keys(this.mix);
    if (names.length === 1) return names[0] === NONE ? {} : { state: { name: names[0] } };
    return { state: { mix: this.mix } };
  }

  changed() {
    const parts = Object.entries(this.mix);
    this.find(".weight").hidden = parts.length < 2;
    this.find("output").textContent = parts.map(([name, weight]) => `${weight.toFixed(2)} × ${name}`).join(" + ");
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.draw(), 150);
  }

  async draw() {
    if (!this.find(".picture").open) return;
    const image = this.find("img");
    const hint = this.find(".hint");
    const [[first, weight], other] = Object.entries(this.mix);
    hint.textContent = "";
    image.hidden = first === NONE && !other;
    if (image.hidden) {
      hint.textContent = "The state before any text is zero.";
      return;
    }
    const query = other ? `?with=${encodeURIComponent(other[0])}&weight=${1 - weight}` : "";
    try {
      const address = await picture(`/v1/states/${encodeURIComponent(first)}/picture${query}`, this.settings().key);
      URL.revokeObjectURL(image.src);
      image.src = address;
      image.alt = `norms of the heads of ${Object.keys(this.mix).join(" and ")}`;
    } catch (error) {
      image.hidden = true;
      hint.textContent = error.message;
    }
  }

  clear() {
    this.messages = [];
    this.log.replaceChildren();
    this.find(".speed").textContent = "";
  }

  /** Sends a message and shows the answer as it comes. */
  async ask(text, signal) {
    const { key, form, system, ...sampling } = this.settings();
    turn(this.log, "user").said.textContent = text;
    const answer = turn(this.log, "assistant");
    answer.box.classList.add("running");
    this.log.scrollTop = this.log.scrollHeight;
    const before = this.messages;
    const messages = [...before, { role: "user", content: text }];
    const head = system ? [{ role: "system", content: system }] : [];
    const plain = [...before.map((one) => one.content), text].join("");
    const body = { ...sampling, ...this.state, ...(form === "plain" ? { prompt: plain } : { messages: [...head, ...messages] }) };
    if (form === "plain") delete body.think;
    const begun = seconds();
    let said = "";
    let last = {};
    try {
      for await (const event of stream(form === "plain" ? "/v1/completions" : "/v1/chat/completions", body, key, signal)) {
        const choice = event.choices[0];
        const more = form === "plain" ? { content: choice?.text } : choice?.delta ?? {};
        said += more.content ?? "";
        answer.said.textContent = said;
        answer.thought.textContent += more.reasoning_content ?? "";
        if (choice?.finish_reason) last.reason = choice.finish_reason;
        if (event.usage) last = { ...last, ...event.usage, ...event.timings };
        this.log.scrollTop = this.log.scrollHeight;
      }
      this.messages = [...messages, { role: "assistant", content: said }];
      if (!said && !answer.thought.textContent) answer.said.textContent = "(an empty answer)";
      this.find(".speed").textContent = speed(last, begun);
    } catch (error) {
      if (signal.aborted) this.messages = [...messages, { role: "assistant", content: said }];
      else answer.box.classList.add("wrong");
      answer.said.textContent = signal.aborted ? `${said} (stopped)` : `${said} ${error.message}`;
    } finally {
      answer.box.classList.remove("running");
    }
  }
}

function speed(last, begun) {
  const parts = [`${last.completion_tokens ?? "?"} tokens in ${(seconds() - begun).toFixed(2)} s`];
  if (last.tokens_per_second) parts.push(`${last.tokens_per_second.toFixed(0)} tokens/s`);
  if (last.first_token_s) parts.push(`first after ${(1000 * last.first_token_s).toFixed(0)} ms`);
  if (last.reason === "length") parts.push("cut at the longest answer");
  return parts.join(" · ");
}
