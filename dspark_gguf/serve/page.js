"use strict";
const at = id => document.getElementById(id);
const messages = [];  // {role, content, article}
let running = null, edited = null, plain = 0;  // edited: a message and those after it

function make(name, text, kind) {
  const one = document.createElement(name);
  one.textContent = text;
  if (kind) one.className = kind;
  return one;
}

function headers() {
  const given = {"Content-Type": "application/json"};
  if (at("key").value) given.Authorization = "Bearer " + at("key").value;
  return given;
}

async function about() {
  const answer = await fetch("props", {headers: headers()}).catch(() => null);
  if (answer) at("ask-key").hidden = answer.status !== 401;
  if (!answer || !answer.ok) return;
  const props = await answer.json();
  at("name").textContent = props.model_alias;
  at("about").textContent = props.speculation.split("; ").pop();
  plain = props.plain_per_second;
}

function add(role, content) {
  const article = make("article", "", role), message = {role, content, article};
  if (role === "assistant") {
    message.thought = make("details", "");
    message.thought.hidden = true;
    message.thinking = make("div", "", "text");
    message.thought.append(make("summary", "Thoughts"), message.thinking);
    article.append(message.thought);
  }
  message.text = make("div", content, "text");
  article.append(message.text);
  if (role === "user") {
    article.append(small("Edit", "Edit this message and ask again", () => back(message)));
  }
  show(message);
  return message;
}

function show(message) {
  at("talk").append(message.article);
  messages.push(message);
}

function small(name, label, work) {
  const button = make("button", name, "small");
  button.type = "button";
  button.setAttribute("aria-label", label);
  button.onclick = work;
  return button;
}

function offer(message) {  // under the last answer only: see the style
  const button = small("Regenerate", "Answer the last question again", () => again(message));
  button.className += " again";
  message.article.append(button);
}

function again(message) {
  if (running) return;
  const old = cut(messages[messages.indexOf(message) - 1]);
  ask(old[0].content, old);
}

const bare = ({role, content}) => ({role, content});

function conversation() {
  const said = messages.map(bare);
  if (at("system").value.trim()) said.unshift({role: "system", content: at("system").value});
  return said;
}

function keep() {  // until the tab is closed
  const said = messages.length || edited ? conversation() : [], last = messages[messages.length - 1];
  if (last && last.old) said.splice(-2, 2, ...last.old.map(bare));  // until it is whole
  else if (edited) said.push(...edited.map(bare));
  else if (last && !last.content) said.pop();  // nothing of it came yet
  try { sessionStorage.setItem("dspark-gguf", JSON.stringify(said)); } catch { /* not allowed */ }
}

function restore() {
  let said = [];
  try { said = JSON.parse(sessionStorage.getItem("dspark-gguf")) || []; } catch { /* not allowed */ }
  for (const {role, content} of said) {
    if (role === "system") at("system").value = content;
    else if (role === "assistant") offer(add(role, content));
    else add(role, content);
  }
  const last = messages[messages.length - 1];
  if (last && last.role === "user") at("say").value = cut(last)[0].content;  // it had no answer yet
}

function cut(message) {  // and what came after it
  if (running) running.abort();
  at("fault").textContent = "";
  edited = null;
  const gone = messages.splice(messages.indexOf(message));
  for (const each of gone) each.article.remove();
  at("say").focus();
  return gone;
}

function back(message) {
  undo();
  edited = cut(message);
  at("say").value = message.content;
}

function undo() {
  if (edited) edited.forEach(show);
  edited = null;
}

function numbers(timings) {
  const words = [`${timings.predicted_n} tokens`];
  const speed = timings.predicted_per_second;
  if (speed) words.push(`${speed.toFixed(1)} a second`);
  if (plain && speed && timings.draft_n) words.push(`${(speed / plain).toFixed(2)} times plain decoding`);
  words.push(timings.draft_n
    ? `${timings.draft_n_accepted} of ${timings.draft_n} draft tokens stood` : "no drafts");
  return words.join(", ");
}

function take(message, chunk) {
  if (chunk.error) throw new Error(chunk.error.message);
  for (const {delta, finish_reason} of chunk.choices) {
    if (delta.reasoning_content) {
      message.thought.hidden = false;
      message.thinking.append(delta.reasoning_content);
    }
    if (delta.content) {  // appended: what is selected stays selected
      message.content += delta.content;
      message.text.append(delta.content);
    }
    if (finish_reason === "length")
      message.article.append(make("p", "cut off at the limit of tokens", "error"));
  }
  if (chunk.timings) message.article.append(make("p", numbers(chunk.timings), "numbers"));
}

async function read(message, body) {
  const lines = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const {done, value} = await lines.read();
    if (done) return;
    const found = (held + value).split("\n\n");
    held = found.pop();
    for (const each of found) {
      if (!each.startsWith("data: ") || each === "data: [DONE]") continue;
      const low = innerHeight + scrollY >= document.body.scrollHeight - 40;
      take(message, JSON.parse(each.slice(6)));
      if (low) scrollTo(0, document.body.scrollHeight);
    }
  }
}

function refused(status, answer) {
  at("ask-key").hidden = status !== 401;
  return new Error(answer && answer.error ? answer.error.message : `the server answers ${status}`);
}

function failed(question, message, error) {
  const stopped = error.name === "AbortError", text = stopped ? "stopped" : error.message;
  if (message.content && (stopped || !message.old)) {
    message.article.append(make("p", text, stopped ? "numbers" : "error"));
  } else if (messages.includes(question)) {
    cut(question);
    if (message.old) message.old.forEach(show);
    if (!message.old || message.old[0].content !== question.content) at("say").value = [question.content, at("say").value].filter(Boolean).join("\n\n");
    at("fault").textContent = text;
    if (!at("ask-key").hidden) at("key").focus();
  }
}

async function ask(text, old) {  // the question and answer that are replaced
  at("fault").textContent = "";
  edited = null;
  const question = add("user", text);
  const sent = conversation();
  const message = Object.assign(add("assistant", ""), {old});
  running = new AbortController();
  at("stop").disabled = false;
  at("send").disabled = true;
  at("talk").ariaBusy = "true";  // read out when it is whole
  scrollTo(0, document.body.scrollHeight);
  try {
    const answer = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), signal: running.signal,
      body: JSON.stringify({messages: sent, stream: true}),
    });
    if (!answer.ok) throw refused(answer.status, await answer.json().catch(() => null));
    await read(message, answer.body);
  } catch (error) {
    running = null;
    failed(question, message, error);
  }
  running = message.old = null;
  if (messages.includes(message)) offer(message);
  at("talk").ariaBusy = "false";
  at("stop").disabled = true;
  at("send").disabled = false;
  // A button that is off, or was, holds no focus.
  if ([document.body, at("stop")].includes(document.activeElement)) at("say").focus();
  about();  // how fast plain decoding is by now
}

at("form").onsubmit = event => {
  event.preventDefault();
  const text = at("say").value;
  if (!text.trim() || running) return;
  at("say").value = "";
  ask(text, edited);
};
at("say").onkeydown = event => {
  if (event.key !== "Enter" || event.shiftKey || event.keyCode === 229) return;  // 229: composing
  event.preventDefault();
  at("form").requestSubmit();
};
onkeydown = event => {
  if (event.key !== "Escape" || event.isComposing) return;
  if (running) return running.abort();
  if (edited) at("say").value = "";
  undo();
};
at("stop").onclick = () => running && running.abort();
at("new").onclick = () => {
  edited = null;
  if (messages.length) cut(messages[0]);
  keep();
};
at("key").onchange = about;
onpagehide = keep;
restore();
about();
