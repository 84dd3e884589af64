'use strict';
/* The playground: one prompt to many tenants, their streams side by side. Plain requests of the public
 * API (v1/models, v1/completions, v1/chat/completions, metrics), relative to where the page lies, so
 * that it works behind a proxy's prefix. Keeps nothing but the chosen theme; the key stays in memory. */

const $ = (id) => document.getElementById(id);

/* Browsers open six connections to a server over HTTP/1.1, and six more for requests without
 * credentials. One is left for the figures of the server; what is beyond waits here, in words, and is
 * not timed meanwhile. */
const slots = { 'same-origin': 5, omit: 6 };
const MOST_TENANTS = 32, MOST_LISTED = 200, MOST_TRIES = 5, SILENT_MS = 8000;

const examples = [
  { tenant: 'base', label: 'a story', prompt: 'Once upon a time, in a small village by the sea,' },
  { tenant: 'math', label: 'a sum', prompt: 'Q: 403 + 743 = ?\nA:' },
  { tenant: 'sql', label: 'a query', prompt: 'Request: List all movies where rating is less than 10.\nSQL:' },
  { tenant: 'kjv', label: 'a verse', prompt: 'Genesis 1:1-4\n1 In the beginning' },
  { tenant: 'chat', label: 'a question', chat: 'What does "kernel" mean?',
    prompt: '<|im_start|>user\nWhat does "kernel" mean?<|im_end|>\n<|im_start|>assistant\n' },
];

let models = [];            // ids, as served
let base = '';              // id of the base
const chosen = new Set();   // ids, in the order of choosing
const bytesOf = new Map();  // id -> memory it holds
const sameAs = new Map();   // id -> the first name of the same bits
const panels = new Map();   // id -> Panel
let run = null;             // what is in flight: { panels, began, before }
let figures = null;         // the last reading of /metrics

/* --- words ---------------------------------------------------------------------------------- */

const number = (x, digits = 0) =>
  x.toLocaleString('en', { maximumFractionDigits: digits, minimumFractionDigits: digits });
const seconds = (ms) => ms < 1000 ? `${number(ms)} ms` : `${number(ms / 1000, 2)} s`;
const bytes = (n) => n < 1e6 ? `${number(n / 1e3)} kB` : n < 1e9 ? `${number(n / 1e6, 1)} MB` : `${number(n / 1e9, 1)} GB`;
const plural = (n, word) => `${number(n)} ${word}${n === 1 ? '' : 's'}`;

const unreachable = 'The server cannot be reached. Is bitdeltad running, and does this page still have a network?';

/* An answer that is not 2xx, as a sentence for a person. */
async function problemOf(response) {
  let said = null;
  try { said = (await response.json()).error; } catch { /* a proxy's page, perhaps */ }
  const sentence = said?.message ?? `The server answered ${response.status} ${response.statusText}.`;
  if (response.status === 401)
    return 'This server wants an API key that it knows: enter one at the top of the page.';
  if (response.status === 404 && said?.code === 'unknown_url')
    return 'This server does not serve chat completions; completion mode works.';
  if (response.status === 404 && said?.code === 'model_not_found')
    return 'This tenant is not served any more. Reload the list.';
  if (said?.code === 'unsupported' && said.param === 'messages')
    return 'This tenant has no chat template; completion mode works.';
  return sentence;
}

class Problem extends Error {}

/* --- the server ----------------------------------------------------------------------------- */

function headers(extra) {
  const key = $('key').value.trim();
  return key ? { ...extra, Authorization: `Bearer ${key}` } : { ...extra };
}

async function loadModels() {
  const note = $('models-note');
  note.classList.remove('bad');
  note.textContent = models.length ? '' : 'Asking the server which tenants it has …';
  try {
    const response = await fetch('v1/models', { headers: headers() });
    if (!response.ok) throw new Problem(await problemOf(response));
    const { data } = await response.json();
    models = data.map((m) => m.id);
    base = data.find((m) => !m.parent)?.id ?? models[0] ?? '';
    for (const id of chosen) if (!models.includes(id)) chosen.delete(id);
    const first = new Map();
    sameAs.clear();
    for (const { id, system_fingerprint: print } of data) {
      if (first.has(print)) sameAs.set(id, first.get(print));
      else first.set(print, id);
    }
    if (!chosen.size) [...first.values()].slice(0, 6).forEach((id) => chosen.add(id));
    note.textContent = '';
    $('base').textContent = `${base}, ${plural(first.size - 1, 'tenant')}`;
  } catch (e) {
    note.classList.add('bad');
    note.textContent = e instanceof Problem ? e.message : unreachable;
  }
  showModels();
  showExamples();
}

/* Prometheus text -> Map of "name{labels}" -> number. */
function readMetrics(text) {
  const out = new Map();
  for (const line of text.split('\n')) {
    const space = line.lastIndexOf(' ');
    if (line && line[0] !== '#' && space > 0) out.set(line.slice(0, space), Number(line.slice(space + 1)));
  }
  return out;
}

const labelled = (metrics, name) => {
  for (const [key, value] of metrics) if (key.startsWith(`${name}{`)) return value;
  return metrics.get(name) ?? NaN;
};

async function readFigures() {
  const response = await fetch('metrics', { headers: headers() });
  if (!response.ok) throw new Problem(response.status === 401 ? 'Figures of the server need the key, too.' : await problemOf(response));
  const m = readMetrics(await response.text());
  bytesOf.clear();
  for (const [key, value] of m) {
    const tenant = /^bitdeltad_tenant_resident_bytes\{tenant="(.*)"\}$/.exec(key)?.[1];
    if (tenant) bytesOf.set(tenant, value);
  }
  return {
    running: labelled(m, 'vllm:num_requests_running'), waiting: labelled(m, 'vllm:num_requests_waiting'),
    rows: m.get('bitdeltad_step_rows'), tenants: m.get('bitdeltad_step_tenants'),
    kv: labelled(m, 'vllm:kv_cache_usage_perc'), registered: m.get('bitdeltad_tenants'), resident: [...bytesOf.values()].filter(held => held > 0).length,
    tenantBytes: m.get('bitdeltad_tenant_bytes'), deviceBytes: m.get('bitdeltad_device_bytes'),
    steps: m.get('bitdeltad_engine_steps_total'), generated: labelled(m, 'vllm:generation_tokens_total'),
  };
}

/* Twice a second while something runs, every five seconds otherwise, never in a hidden page. */
let pollTimer = 0, polling = false;
async function poll() {
  clearTimeout(pollTimer);
  if (!document.hidden && !polling) {
    polling = true;
    try {
      figures = await readFigures();
      $('status-note').textContent = '';
    } catch (e) {
      figures = null;
      $('status-note').textContent = e instanceof Problem ? e.message : unreachable;
    }
    polling = false;
    showFigures();
  }
  pollTimer = setTimeout(poll, run ? 500 : 5000);
}

function definitions(list, rows) {
  list.replaceChildren(...rows.map(([name, value]) => {
    const row = document.createElement('div');
    row.append(Object.assign(document.createElement('dt'), { textContent: name }),
      Object.assign(document.createElement('dd'), { textContent: value }));
    return row;
  }));
}

function showFigures() {
  const f = figures;
  $('figures').hidden = !f;
  if (!f) return;
  definitions($('figures'), [
    ['running', number(f.running)], ['waiting', number(f.waiting)],
    ['rows in last step', number(f.rows)], ['tenants in last step', number(f.tenants)],
    ['key-value cache', `${number(f.kv * 100)} %`],
    ['tenants resident', `${number(f.resident)}${f.resident < f.registered ? ` of ${number(f.registered)}` : ''} (${bytes(f.tenantBytes)})`],
    ['device memory', bytes(f.deviceBytes)],
  ]);
  for (const small of document.querySelectorAll('#models small')) {
    const id = small.dataset.model, held = bytesOf.get(id);
    small.textContent = id === base ? 'base' : sameAs.has(id) ? `= ${sameAs.get(id)}` : held ? bytes(held) : held === 0 ? 'away' : '';
  }
}

/* --- choosing ------------------------------------------------------------------------------- */

function showModels() {
  const wanted = $('filter').value.trim().toLowerCase();
  const matching = models.filter((id) => id.toLowerCase().includes(wanted));
  $('filter').hidden = models.length <= 12;
  $('models').replaceChildren(...matching.slice(0, MOST_LISTED).map((id) => {
    const label = document.createElement('label');
    const box = Object.assign(document.createElement('input'), { type: 'checkbox', value: id, checked: chosen.has(id) });
    box.addEventListener('change', () => { if (box.checked) chosen.add(id); else chosen.delete(id); showChosen(); });
    const small = document.createElement('small');
    small.dataset.model = id;
    label.append(box, Object.assign(document.createElement('b'), { textContent: id }), small);
    const item = document.createElement('li');
    item.append(label);
    return item;
  }));
  if (matching.length > MOST_LISTED)
    $('models-note').textContent = `${number(matching.length - MOST_LISTED)} more: narrow the filter to see them.`;
  else if (models.length && !matching.length) $('models-note').textContent = 'No tenant has that in its name.';
  showFigures();
  showChosen();
}

function showChosen() {
  const over = chosen.size > MOST_TENANTS;
  $('form-note').textContent = over ? `${chosen.size} tenants are ticked; ${MOST_TENANTS} at once are the most.` : '';
  $('send').disabled = over || !chosen.size;
}

function showExamples() {
  const chat = mode() === 'chat';
  $('examples').replaceChildren(...examples.filter((e) => models.includes(e.tenant) && (!chat || e.chat)).map((e) => {
    const button = Object.assign(document.createElement('button'), { type: 'button', textContent: `${e.tenant}: ${e.label}` });
    button.addEventListener('click', () => {
      $('prompt').value = chat ? e.chat : e.prompt;
      if (!chosen.has(e.tenant)) { chosen.add(e.tenant); showModels(); }
      $('prompt').focus();
    });
    return button;
  }));
}

const mode = () => document.querySelector('[name="mode"]:checked').value;

function showMode() {
  const chat = mode() === 'chat';
  for (const element of document.querySelectorAll('.chat-only')) element.hidden = !chat;
  $('prompt-title').textContent = chat ? 'Message' : 'Prompt';
  showExamples();
}

/* The settings as fields of a request; an empty one is left out: the tenant's own counts. */
function sampling() {
  const out = {};
  for (const id of ['temperature', 'top_p', 'max_tokens', 'seed']) {
    const field = $(id);
    if (!field.validity.valid)
      throw new Problem(`${field.labels[0].textContent.trim()}: ${field.validationMessage}`);
    if (field.value !== '') out[id] = Number(field.value);
  }
  return out;
}

/* --- one tenant's answer -------------------------------------------------------------------- */

class Panel {
  constructor(id) {
    this.id = id;
    this.element = $('panel').content.firstElementChild.cloneNode(true);
    const part = (selector) => this.element.querySelector(selector);
    this.parts = { state: part('.state'), text: part('.text'), progress: part('progress'), problem: part('.problem'), list: part('dl') };
    part('h2').textContent = id;
    this.element.setAttribute('aria-label', id);
    this.parts.text.setAttribute('aria-label', `Answer of ${id}`);
    part('.stop').setAttribute('aria-label', `Stop ${id}`);
    part('.stop').addEventListener('click', () => this.stop());
    part('.curl').setAttribute('aria-label', `Show the curl command for ${id}`);
    part('.curl').addEventListener('click', () => showCurl(this));
    part('.again').addEventListener('click', () => send([this], true));
    this.turns = [];  // of a conversation: { role, content }
    $('answers').append(this.element);
  }

  /* Readies the panel for a request; `again` repeats the last one. */
  prepare(request, again) {
    if (!again) this.request = request;
    const { chat, prompt, system } = this.request;
    if (!chat || this.wasChat !== chat) { this.turns = []; this.parts.text.replaceChildren(); }
    this.wasChat = chat;
    if (again) this.parts.text.querySelectorAll('.current').forEach((e) => e.remove());
    else this.parts.text.querySelectorAll('.current').forEach((e) => e.classList.remove('current'));
    const asked = document.createElement(chat ? 'span' : 'i');
    Object.assign(asked, { textContent: prompt, className: chat ? 'turn current' : 'current' });
    this.output = document.createTextNode('');
    const said = Object.assign(document.createElement('span'), { className: 'current' });
    said.append(this.output);
    this.parts.text.append(asked, said);
    this.body = { model: this.id };
    if (chat) {
      this.body.messages = [...this.turns, { role: 'user', content: prompt }];
      if (system) this.body.messages.unshift({ role: 'system', content: system });
    } else this.body.prompt = prompt;
    Object.assign(this.body, this.request.sampling, {
      stream: true, stream_options: { include_usage: true, continuous_usage_stats: true },
    });
    Object.assign(this, {
      pending: '', answer: '', finish: null, problem: '', tokens: 0, tries: 0,
      sentAt: 0, firstAt: 0, lastAt: 0, endAt: 0, abort: new AbortController(),
    });
    this.parts.progress.value = 0;
    this.set('queued', 'waits for a connection');
  }

  set(state, words) {
    this.element.dataset.state = this.state = state;
    this.parts.state.textContent = words;
    this.parts.text.setAttribute('aria-busy', String(this.live));
    this.show();
  }

  get live() { return ['queued', 'sent', 'writing', 'waits'].includes(this.state); }

  stop() {
    if (!this.live) return;
    this.finish = 'stopped here';
    this.abort.abort();
    if (this.state === 'queued') {
      queue.splice(queue.indexOf(this), 1);
      this.close();
    }
  }

  /* Text is gathered and shown once a frame: streams are faster than screens. */
  add(text) {
    this.pending += text;
    this.answer += text;
    if (!this.frame) this.frame = requestAnimationFrame(() => { this.frame = 0; this.show(); });
  }

  show() {
    const box = this.parts.text, atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 24;
    if (this.pending) { this.output.appendData(this.pending); this.pending = ''; }
    if (atEnd) box.scrollTop = box.scrollHeight;
    const most = this.body?.max_tokens;
    this.parts.progress.value = this.state === 'done' ? 1 : most ? Math.min(1, this.tokens / most) : 0;
    this.parts.problem.hidden = !this.problem;
    this.parts.problem.firstElementChild.textContent = this.problem;
    const rows = [];
    if (this.firstAt) rows.push(['first token', seconds(this.firstAt - this.sentAt)], ['tokens/s', number(this.rate())]);
    if (this.firstAt || this.endAt) rows.push(['tokens', number(this.tokens)]);
    if (this.endAt && this.sentAt) rows.push(['in all', seconds(this.endAt - this.sentAt)]);
    definitions(this.parts.list, rows);
  }

  /* Tokens a second after the first; a span too short to time counts from the sending. */
  rate() {
    const span = this.lastAt - this.firstAt;
    return span >= 5 && this.tokens > 1 ? 1000 * (this.tokens - 1) / span : 1000 * this.tokens / Math.max(1, this.lastAt - this.sentAt);
  }

  /* One event of the stream. */
  take(event) {
    if (event.error) throw new Problem(event.error.message);
    const choice = event.choices?.[0], now = performance.now();
    const text = choice?.text ?? choice?.delta?.content ?? '';
    if (event.usage) {
      this.tokens = event.usage.completion_tokens ?? this.tokens;
    } else if (text) this.tokens++;
    if (text || choice?.finish_reason) {
      if (!this.firstAt) this.firstAt = now;
      this.lastAt = now;
    }
    if (choice?.finish_reason) this.finish = { stop: 'end of text', length: 'max tokens' }[choice.finish_reason] ?? choice.finish_reason;
    if (text && this.state !== 'writing') this.set('writing', 'writing');
    this.add(text);
  }

  async run(credentials) {
    this.abort.signal.throwIfAborted();
    this.set('sent', 'sent');
    this.sentAt = performance.now();
    this.tries++;
    const response = await fetch(this.request.chat ? 'v1/chat/completions' : 'v1/completions', {
      method: 'POST', headers: headers({ 'Content-Type': 'application/json' }), credentials,
      body: JSON.stringify(this.body), signal: this.abort.signal,
    });
    if ((response.status === 429 || response.status === 503) && this.tries < MOST_TRIES) return this.wait(response);
    if (!response.ok) {
      if (response.status === 401 && credentials === 'omit') return 'credentials';
      throw new Problem(await problemOf(response));
    }
    let whole = false;
    for await (const data of events(response.body, (silent) => this.silent(silent))) {
      if (data === '[DONE]') { whole = true; continue; }
      this.take(JSON.parse(data));
    }
    if (!whole) throw new Problem(this.lost());
    return 'done';
  }

  lost() {
    return `The connection was lost after ${plural(this.tokens, 'token')}: what is above is not the whole answer.`;
  }

  silent(is) {
    if (this.live) this.set(this.state, is ? `nothing for ${SILENT_MS / 1000} s, still waiting` : this.state);
  }

  /* The server is busy and said when to come back. */
  async wait(response) {
    const asked = Number(response.headers.get('Retry-After')), full = response.status === 429;
    await response.body?.cancel();
    for (let left = Math.min(asked > 0 ? asked : 1, 60) * this.tries; left > 0; left--) {
      this.set('waits', `${full ? 'server is full' : 'server cannot take it now'}, again in ${left} s ` +
        `(try ${this.tries + 1} of ${MOST_TRIES})`);
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, 1000);
        this.abort.signal.addEventListener('abort', () => { clearTimeout(timer); resolve(); }, { once: true });
      });
      this.abort.signal.throwIfAborted();
    }
    return 'again';
  }

  /* Runs to the end, whatever it is; `result` of the last try: 'credentials' wants another slot. */
  async answerWith(credentials) {
    try {
      let result = 'again';
      while (result === 'again') result = await this.run(credentials);
      if (result === 'credentials') { this.set('queued', 'waits for a connection'); return result; }
    } catch (e) {
      if (this.abort.signal.aborted) this.finish = 'stopped here';
      else this.problem = e instanceof Problem ? e.message : this.tokens ? this.lost() : unreachable;
    }
    this.close();
    return 'ended';
  }

  close() {
    if (this.sentAt) this.endAt = performance.now();
    if (this.problem) this.finish = null;
    const state = this.problem ? 'failed' : this.abort.signal.aborted ? 'stopped' : 'done';
    if (state === 'done' && this.request.chat)
      this.turns.push({ role: 'user', content: this.request.prompt }, { role: 'assistant', content: this.answer });
    this.set(state, this.finish ?? state);
    settle();
  }
}

/* The data of server-sent events, one after the other. `silence` hears when nothing comes. */
async function* events(body, silence) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '', timer = 0, quiet = false;
  try {
    for (;;) {
      timer = setTimeout(() => { quiet = true; silence(true); }, SILENT_MS);
      const { done, value } = await reader.read();
      clearTimeout(timer);
      if (quiet) silence(quiet = false);
      if (done) return;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const data = part.split(/\r?\n/).filter((line) => line.startsWith('data:')).map((line) => line.slice(5).trimStart());
        if (data.length) yield data.join('\n');
      }
    }
  } finally {
    clearTimeout(timer);
    reader.cancel().catch(() => {});
  }
}

/* --- sending to all ------------------------------------------------------------------------- */

const queue = [];

/* Gives waiting panels the free connections. */
function pump() {
  for (const credentials of Object.keys(slots))
    while (slots[credentials] > 0 && queue.length) {
      const panel = queue.shift();
      if (!panel.live) continue;
      slots[credentials]--;
      panel.answerWith(credentials).then((result) => {
        slots[credentials]++;
        if (result === 'credentials') { slots.omit = 0; queue.push(panel); } // a proxy wants its cookie
        pump();
      });
    }
}

async function send(list, again = false) {
  let request;
  $('form-note').textContent = '';
  if (!again) {
    try {
      const chat = mode() === 'chat', prompt = $('prompt').value;
      if (!prompt) { $('prompt').focus(); throw new Problem('Write a prompt first.'); }
      request = { chat, prompt, system: chat ? $('system').value : '', sampling: sampling() };
    } catch (e) {
      $('form-note').textContent = e.message;
      return;
    }
  }
  if (!run) run = { panels: new Set(), before: readFigures().catch(() => null) };
  for (const panel of list) {
    run.panels.add(panel);
    panel.prepare(request, again);
    queue.push(panel);
  }
  $('empty').hidden = true;
  $('summary').textContent = '';
  showRunning();
  await run.before;  // so that the rows a step of this run can be told; one request, of a few ms
  pump();
  poll();
}

function sendAll(event) {
  event?.preventDefault();
  if (run || $('send').disabled) return;
  for (const [id, panel] of panels) if (!chosen.has(id)) { panel.element.remove(); panels.delete(id); }
  for (const id of chosen) if (!panels.has(id)) panels.set(id, new Panel(id));
  for (const id of chosen) $('answers').append(panels.get(id).element);
  send([...chosen].map((id) => panels.get(id)));
  if (run && matchMedia('(max-width: 52rem)').matches) $('answers').scrollIntoView();
}

function showRunning() {
  $('send').disabled = Boolean(run) || !chosen.size || chosen.size > MOST_TENANTS;
  $('stop').disabled = !run;
  $('fresh').disabled = Boolean(run);
}

/* When the last panel has ended: what they reached together. */
async function settle() {
  if (!run || [...run.panels].some((panel) => panel.live)) return;
  const { panels: ran, before } = run, ended = performance.now();
  run = null;
  showRunning();
  const tokens = [...ran].reduce((sum, panel) => sum + panel.tokens, 0);
  const failed = [...ran].filter((panel) => panel.problem).length;
  const sent = Math.min(ended, ...[...ran].map((panel) => panel.sentAt || ended));
  let words = `${plural(ran.size, 'answer')}, ${plural(tokens, 'token')} in ${seconds(ended - sent)}`;
  if (failed === ran.size) words = ran.size === 1 ? 'It did not answer' : `None of the ${ran.size} answered`;
  else if (failed) words += `; ${failed} failed`;
  const [then, now] = [await before, await readFigures().catch(() => null)];
  if (then && now && now.steps > then.steps && now.generated > then.generated)
    words += `. The engine took ${plural(now.steps - then.steps, 'step')} meanwhile: ` +
      `${number((now.generated - then.generated) / (now.steps - then.steps), 1)} tokens a step`;
  if (now) { figures = now; showFigures(); }
  if (!run) $('summary').textContent = `${words}.`;
}

/* --- curl ----------------------------------------------------------------------------------- */

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curlOf(panel) {
  const url = new URL(panel.request.chat ? 'v1/chat/completions' : 'v1/completions', document.baseURI).href;
  const lines = [`curl -N ${quoted(url)}`, "-H 'Content-Type: application/json'"];
  if ($('key').value.trim()) lines.push('-H "Authorization: Bearer $BITDELTA_API_KEY"');
  lines.push(`-d ${quoted(JSON.stringify(panel.body))}`);
  return lines.join(' \\\n  ');
}

function showCurl(panel) {
  $('curl-text').textContent = curlOf(panel);
  $('curl-note').textContent = '';
  $('curl').showModal();
}

async function copyCurl() {
  try {
    await navigator.clipboard.writeText($('curl-text').textContent);
    $('curl-note').textContent = 'Copied.';
  } catch { /* no clipboard without https or a permission: select, for the person to copy */
    getSelection().selectAllChildren($('curl-text'));
    $('curl-note').textContent = 'Selected: copy it with Ctrl C.';
  }
}

/* --- theme, keys, start --------------------------------------------------------------------- */

const systemDark = matchMedia('(prefers-color-scheme: dark)');
const isDark = () => (document.documentElement.dataset.theme ?? (systemDark.matches ? 'dark' : 'light')) === 'dark';

function showTheme() {
  $('theme').textContent = isDark() ? 'Light' : 'Dark';
  $('theme').setAttribute('aria-label', `Switch to ${isDark() ? 'light' : 'dark'} colours`);
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  showTheme();
}

const stored = { // private windows may refuse it
  get: () => { try { return localStorage.getItem('theme'); } catch { return null; } },
  set: (theme) => { try { localStorage.setItem('theme', theme); } catch { /* for this visit only */ } },
};

function start() {
  setTheme(stored.get());
  systemDark.addEventListener('change', showTheme);
  $('theme').addEventListener('click', () => {
    const theme = isDark() ? 'light' : 'dark';
    stored.set(theme);
    setTheme(theme);
  });
  $('compose').addEventListener('submit', sendAll);
  $('compose').noValidate = true; // sampling() says it in words
  $('stop').addEventListener('click', () => panels.forEach((panel) => panel.stop()));
  $('filter').addEventListener('input', showModels);
  $('all').addEventListener('click', () => {
    const wanted = $('filter').value.trim().toLowerCase();
    models.filter((id) => id.toLowerCase().includes(wanted)).slice(0, MOST_TENANTS).forEach((id) => chosen.add(id));
    showModels();
  });
  $('none').addEventListener('click', () => { chosen.clear(); showModels(); });
  $('reload').addEventListener('click', () => { loadModels(); poll(); });
  $('key').addEventListener('change', () => { loadModels(); poll(); });
  document.querySelectorAll('[name="mode"]').forEach((radio) => radio.addEventListener('change', showMode));
  $('fresh').addEventListener('click', () => {
    panels.forEach((panel) => panel.element.remove());
    panels.clear();
    $('summary').textContent = '';
    $('empty').hidden = false;
    $('prompt').focus();
  });
  $('curl-copy').addEventListener('click', copyCurl);
  $('curl-close').addEventListener('click', () => $('curl').close());
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) sendAll(event);
    else if (event.key === 'Escape' && run && !$('curl').open) panels.forEach((panel) => panel.stop());
  });
  document.addEventListener('visibilitychange', () => { if (!document.hidden) poll(); });
  showMode();
  loadModels();
  poll();
}

start();
