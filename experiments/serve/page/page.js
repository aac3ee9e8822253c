// The page: two columns, the settings that they share, and one place to write.

import { get } from "./api.js";
import { Column } from "./column.js";

const at = (id) => document.getElementById(id);
const KEPT = ["temperature", "top_p", "max_tokens", "seed", "think", "form", "system"];

function settings() {
  const number = (id) => (at(id).value === "" ? undefined : Number(at(id).value));
  return {
    temperature: number("temperature"),
    top_p: number("top_p"),
    max_tokens: number("max_tokens"),
    seed: number("seed"),
    think: at("think").value || undefined,
    form: at("form").value,
    system: at("system").value.trim(),
    key: at("key").value.trim(),
  };
}

const columns = [0, 1].map(() => new Column(at("column"), at("columns"), settings));
let running = null;

function tell(text, wrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
}

async function connect() {
  try {
    const { data } = await get("/v1/models", at("key").value.trim());
    const base = data[0].id;
    const names = data.slice(1).map((model) => model.id.slice(base.length + 1));
    at("model").textContent = base;
    columns[0].offer(names, "none");
    columns[1].offer(names, names[0] ?? "none");
    tell(names.length ? `${names.length} ${names.length === 1 ? "state" : "states"}` : "no states yet: PUT /v1/states/NAME");
  } catch (error) {
    tell(error.message, true);
    if (/API key/.test(error.message)) at("settings").open = true;
  }
}

async function send() {
  const text = at("text").value;
  if (!text.trim() || running) return;
  running = new AbortController();
  at("text").value = "";
  at("send").hidden = true;
  at("stop").hidden = false;
  try {
    const said = at("form").value === "plain" ? text : text.trim();
    await Promise.all(columns.map((column) => column.ask(said, running.signal)));
  } finally {
    running = null;
    at("send").hidden = false;
    at("stop").hidden = true;
    at("text").focus();
  }
}

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
at("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
at("stop").addEventListener("click", () => running?.abort());
at("clear").addEventListener("click", () => {
  running?.abort();
  columns.forEach((column) => column.clear());
});
at("key").addEventListener("change", connect);
for (const id of KEPT) {
  const before = localStorage.getItem(`rwkv7.${id}`);
  if (before !== null) at(id).value = before;
  at(id).addEventListener("change", () => localStorage.setItem(`rwkv7.${id}`, at(id).value));
}
connect();
