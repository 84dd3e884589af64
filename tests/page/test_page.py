"""Drives the playground in headless Chromium against the real daemon on the demo's models.

    tests/page/test_page.py BUILD_DIR CHROMIUM [NAMEPART]      PAGE_SHOTS=DIR also writes the pictures of docs/

Every test gets a daemon and a browser tab of its own. Answers are slowed by the browser's own network
emulation where a test must look at a stream while it runs: the demo's base is done in half a second.
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

from browser import Browser

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD, CHROMIUM = sys.argv[1], sys.argv[2]
SUM = "Q: 403 + 743 = ?\nA:"
DONE = "!run && document.querySelector('#summary').textContent !== ''"
CTRL = 2


class Daemon:
    """The demo's base and tenants on a port of its own, for one test; copies: tenants under further names."""

    started = []  # ended by main, however the test ended

    def __init__(self, *options, copies=()):
        self.folder = tempfile.mkdtemp(prefix="page-daemon-")
        deltas = os.path.join(self.folder, "deltas")
        shutil.copytree(os.path.join(ROOT, "demo/tenants"), deltas)
        for name, of in copies:
            shutil.copy(os.path.join(deltas, of + ".bitdelta"), os.path.join(deltas, name + ".bitdelta"))
        Daemon.started.append(self)
        self.log = open(os.path.join(self.folder, "log"), "w+")
        self.process = subprocess.Popen(
            [os.path.join(BUILD, "bitdeltad"), "--base", os.path.join(ROOT, "demo/base"), "--deltas", deltas,
             "--listen", "127.0.0.1:0", "--admin", "unix:" + os.path.join(self.folder, "admin"), *options],
            stderr=self.log)
        self.url = self.find_url()

    def find_url(self):
        end = time.monotonic() + 30
        while time.monotonic() < end and self.process.poll() is None:
            for line in open(self.log.name):
                if "stage=listen" in line and "127.0.0.1:" in line:
                    return "http://127.0.0.1:" + line.split("127.0.0.1:")[1].split()[0] + "/"
            time.sleep(0.02)
        raise AssertionError("the daemon did not start:\n" + open(self.log.name).read())

    def get(self, path, key=None, data=None):
        request = urllib.request.Request(self.url + path, data=data and json.dumps(data).encode())
        request.add_header("Content-Type", "application/json")
        if key:
            request.add_header("Authorization", "Bearer " + key)
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.read().decode()

    def metric(self, name):
        for line in self.get("metrics").split("\n"):
            if line.startswith(name) and line[len(name)] in " {":
                return float(line.rsplit(" ", 1)[1])
        return None

    def has_chat(self):
        try:
            self.get("v1/chat/completions")
        except urllib.error.HTTPError as e:
            return e.code == 405
        return False

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def ready(page, models=5):
    page.until(f"document.querySelectorAll('#models input').length === {models}")
    page.until("document.querySelector('#figures').childElementCount > 0")
    return page


def tell(page, prompt, max_tokens=40):
    page.js(f"$('prompt').value = {json.dumps(prompt)}; $('max_tokens').value = {max_tokens}")


def texts(page):
    return page.js("Object.fromEntries([...panels].map(([id, p]) => [id, p.answer]))")


def state(page):
    return page.js("Object.fromEntries([...panels].map(([id, p]) => [id, p.state]))")


def clean(page, daemon, allowed=()):
    """No outside request, no complaint of the browser but those named."""
    for request in page.requests:
        assert request["url"].startswith((daemon.url, "data:")), "asked outside: " + request["url"]
    left = [c for c in page.complaints if not any(a in c for a in allowed)]
    assert not left, "the browser complains: " + "; ".join(left)


def contrast(page):
    """The least contrast of any text with what lies behind it, and its place."""
    return page.js("""(() => {
        const parse = (c) => c.match(/[\\d.]+/g).map(Number), light = (c) => { const [r, g, b] = parse(c).map((v) => { v /= 255;
            return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; };
        const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
            if (!/, 0\\)$/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
        let least = [99, ''];
        for (const e of document.body.querySelectorAll('*')) {
            const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
            if (!own || !e.checkVisibility() || e.closest(':disabled, template, script, .hidden, .skip')) continue;
            const a = light(getComputedStyle(e).color), b = light(behind(e));
            const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
            if (ratio < least[0]) least = [ratio, e.outerHTML.slice(0, 80)];
        }
        return least; })()""")


# --- tests ------------------------------------------------------------------------------------------


def streams_run_side_by_side(browser):
    copies = [("math-2", "math"), ("sql-2", "sql"), ("kjv-2", "kjv"), ("chat-2", "chat")]
    daemon = Daemon(copies=copies)
    page = ready(browser.open(daemon.url), 9)
    tell(page, SUM)
    page.click("#all")
    page.network(20000)
    page.click("#send")
    page.until("[...panels.values()].filter((p) => p.state === 'writing' && p.answer).length >= 5")
    # More streams than the six connections that browsers open with credentials, at the same time.
    assert daemon.metric("bitdeltad_http_connections") >= 9, daemon.metric("bitdeltad_http_connections")
    before = texts(page)
    page.until(f"[...panels].filter(([id, p]) => p.answer.length > ({json.dumps(before)})[id].length).length >= 2")
    page.network()
    page.until(DONE, 60)
    said = texts(page)
    assert set(state(page).values()) == {"done"}, state(page)
    for model in said:
        direct = json.loads(daemon.get("v1/completions", data={"model": model, "prompt": SUM, "max_tokens": 40, "temperature": 0}))
        choice, usage = direct["choices"][0], direct["usage"]
        assert said[model] == choice["text"], (model, said[model], choice["text"])
        shown = page.js(f"(() => {{ const p = panels.get('{model}'); return [p.element.innerText, p.tokens, p.firstAt - p.sentAt, p.endAt - p.sentAt]; }})()")
        assert shown[1] == usage["completion_tokens"], (model, shown, usage)
        assert 0 < shown[2] <= shown[3], shown
        for words in ("first token", "tokens/s", "in all", {"stop": "end of text", "length": "max tokens"}[choice["finish_reason"]]):
            assert words in shown[0], (words, shown[0])
    assert said["math"].strip() == "1146", said["math"]
    assert "tokens a step" in page.js("$('summary').textContent")
    status = page.js("$('figures').innerText")
    assert "tenants resident\n8 (" in status.replace("\n\n", "\n") or "8 (" in status, status
    clean(page, daemon)


def keyboard_alone_is_enough(browser):
    daemon = Daemon()
    page = ready(browser.open(daemon.url))

    def tab_to(what, limit=60):
        for _ in range(limit):
            page.key("Tab", code=9)
            if page.js(f"document.activeElement.matches({json.dumps(what)})"):
                ring = page.js("getComputedStyle(document.activeElement).outlineStyle + getComputedStyle(document.activeElement.nextElementSibling ?? document.body).outlineStyle")
                assert "solid" in ring, "no focus ring on " + what
                return
        raise AssertionError("Tab does not reach " + what)

    tab_to(".skip")
    tab_to("#none")
    page.key("Enter", text="\r", code=13)
    assert page.js("chosen.size === 0 && $('send').disabled")
    tab_to("#models input[value=math]")
    page.key(" ", text=" ", code=32)
    tab_to("#models input[value=kjv]")
    page.key(" ", text=" ", code=32)
    assert page.js("[...chosen].join()") == "math,kjv"
    tab_to("#prompt")
    page.type(SUM)
    page.network(3000)
    page.key("Enter", modifiers=CTRL, code=13)
    page.until("[...panels.values()].some((p) => p.state === 'writing')")
    assert page.js("panels.size") == 2
    page.key("Escape", code=27)
    page.until("!run")
    page.network()
    assert "stopped" in state(page).values(), state(page)
    assert "stopped here" in page.js("$('answers').innerText")
    tab_to("#answers .curl")
    page.key("Enter", text="\r", code=13)
    page.until("$('curl').open")
    page.key("Escape", code=27)
    page.until("!$('curl').open")
    page.call("Accessibility.enable")
    wants_name = {"button", "textbox", "searchbox", "checkbox", "radio", "spinbutton", "group", "radiogroup", "dialog", "article"}
    for node in page.call("Accessibility.getFullAXTree")["nodes"]:
        if not node.get("ignored") and node["role"]["value"] in wants_name:
            assert node.get("name", {}).get("value"), "no name for a screen reader: " + json.dumps(node)
    clean(page, daemon)


def colours_follow_the_system_and_the_button(browser):
    daemon = Daemon()
    page = ready(browser.open(daemon.url, dark=True))
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.js(ground)
    page.colours("light")
    light = page.js(ground)
    assert dark == "rgb(18, 19, 22)" and light == "rgb(246, 246, 244)", (dark, light)
    tell(page, SUM)
    page.click("#send")
    page.until(DONE, 30)
    assert contrast(page)[0] >= 4.5, contrast(page)
    page.click("#theme")
    page.js("new Promise((r) => setTimeout(r, 400))")  # colours fade for an eighth of a second
    assert page.js(ground) == dark
    assert contrast(page)[0] >= 4.5, contrast(page)
    page.load("Page.reload")
    ready(page)
    assert page.js(ground) == dark, "the choice is forgotten"
    clean(page, daemon)


def phones_scroll_down_only(browser):
    daemon = Daemon()
    for width in (390, 320):
        page = ready(browser.open(daemon.url, width=width, height=844, phone=True))
        tell(page, "Genesis 1:1-4\n1 In the beginning " + "x" * 90)
        page.click("#send")
        page.until(DONE, 30)
        wide = page.js("""[...document.body.querySelectorAll('*')].filter((e) => e.checkVisibility() &&
            !e.closest('.hidden, .skip, option') && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 90))""")
        assert not wide and page.js("document.documentElement.scrollWidth <= innerWidth"), (width, wide)
        edges = page.js("[...document.querySelectorAll('.panel')].map((e) => e.getBoundingClientRect().x)")
        assert len(edges) == 5 and len(set(edges)) == 1, edges
        assert page.js("parseFloat(getComputedStyle($('prompt')).fontSize) >= 16"), "phones zoom into smaller fields"
        clean(page, daemon)


def a_full_queue_is_waited_for(browser):
    daemon = Daemon("--max-seqs", "1", "--max-queue", "1")
    page = ready(browser.open(daemon.url))
    tell(page, "Genesis 1:1-4\n1 In the beginning", 200)
    page.click("#send")
    page.until("document.querySelector('.panel[data-state=waits]')?.innerText.includes('server is full, again in')")
    page.until(DONE, 60)
    assert set(state(page).values()) == {"done"}, (state(page), page.js("$('answers').innerText"))
    clean(page, daemon, ["status of 429"])


def lost_connections_are_said_in_words(browser):
    daemon = Daemon()
    page = ready(browser.open(daemon.url))
    tell(page, "Genesis 1:1-4\n1 In the beginning", 450)
    page.click("#send")
    page.until("[...panels.values()].some((p) => p.tokens > 2)")
    daemon.process.send_signal(signal.SIGSTOP)
    page.until("$('answers').innerText.includes('still waiting')")
    daemon.process.kill()
    daemon.process.wait()
    page.until(DONE, 30)
    shown = page.js("$('answers').innerText")
    assert "The connection was lost after" in shown and "not the whole answer" in shown, shown
    page.click(".panel[data-state=failed] .again")
    page.until(DONE, 30)
    assert "cannot be reached" in page.js("$('answers').innerText")


def one_stream_can_be_stopped(browser):
    daemon = Daemon()
    page = ready(browser.open(daemon.url))
    tell(page, "Genesis 1:1-4\n1 In the beginning", 60)
    page.network(12000)
    page.click("#send")
    page.until("panels.get('kjv')?.state === 'writing'")
    page.js("panels.get('kjv').element.querySelector('.stop').click()")
    page.until("panels.get('kjv').state === 'stopped'")
    assert page.js("Boolean(run)"), "the others were stopped, too"
    page.network()
    page.until(DONE, 30)
    got = state(page)
    assert got.pop("kjv") == "stopped" and set(got.values()) == {"done"}, got
    clean(page, daemon)


def keys_stay_in_memory(browser):
    key = "page-test-key-0123456789"
    file = tempfile.NamedTemporaryFile("w", suffix=".keys")
    file.write(key + "\n")
    file.flush()
    daemon = Daemon("--api-key-file", file.name)
    page = browser.open(daemon.url)
    page.until("$('models-note').textContent.includes('wants an API key')")
    page.click("#key")
    page.type(key)
    page.key("Tab", code=9)
    ready(page)
    tell(page, SUM)
    page.click("#send")
    page.until(DONE, 30)
    assert texts(page)["math"].strip() == "1146"
    page.click(".panel .curl")
    command = page.js("$('curl-text').textContent")
    assert key not in command and "$BITDELTA_API_KEY" in command, command
    kept = page.js("JSON.stringify(localStorage) + JSON.stringify(sessionStorage) + document.cookie + location.href")
    assert key not in kept, kept
    page.load("Page.reload")
    page.until("$('models-note').textContent.includes('wants an API key')")
    assert page.js("$('key').value") == ""
    clean(page, daemon, ["status of 401"])


def the_curl_command_says_the_same(browser):
    daemon = Daemon()
    page = ready(browser.open(daemon.url))
    prompt = "It's \"quoted\" $HOME `x` \\ and\nQ: 403 + 743 = ?\nA:"
    page.click("#none")
    page.click("#models input[value=math]")
    tell(page, prompt)
    page.js("$('seed').value = 7; $('temperature').value = 0.5")
    page.click("#send")
    page.until(DONE, 30)
    page.click(".panel .curl")
    got = subprocess.run(["sh", "-c", page.js("$('curl-text').textContent").replace("curl -N", "curl -sN")], capture_output=True, text=True, timeout=20).stdout
    parts = [json.loads(line[6:]) for line in got.split("\n") if line.startswith("data: {")]
    said = "".join(c["text"] for p in parts for c in p["choices"])
    assert said == texts(page)["math"] and said, (said, texts(page))
    clean(page, daemon)


def chat_mode_talks_or_says_why_not(browser):
    daemon = Daemon()
    page = ready(browser.open(daemon.url))
    page.click("#none")
    page.click("#models input[value=chat]")
    page.click(".modes label:nth-child(2)")
    assert page.js("$('system').checkVisibility()")
    for turn in (1, 2):
        tell(page, 'What does "kernel" mean?', 24)
        page.click("#send")
        page.until(DONE, 30)
        if not daemon.has_chat():
            assert "does not serve chat completions" in page.js("$('answers').innerText")
            break
        assert state(page)["chat"] == "done", page.js("$('answers').innerText")
        assert texts(page)["chat"].strip() and page.js("panels.get('chat').turns.length") == 2 * turn
    if daemon.has_chat():
        assert page.js("panels.get('chat').body.messages.length") == 3, "the second question carries the first turn"
    page.click("#fresh")
    assert page.js("panels.size") == 0
    clean(page, daemon, ["status of 404"])


def bad_settings_are_said_before_sending(browser):
    daemon = Daemon()
    page = ready(browser.open(daemon.url))
    page.click("#send")
    assert page.js("$('form-note').textContent") == "Write a prompt first."
    tell(page, SUM)
    page.js("$('temperature').value = 9")
    page.click("#send")
    assert page.js("$('form-note').textContent").startswith("Temperature:")
    page.js("$('temperature').value = 0; $('max_tokens').value = 100000")
    page.click("#send")
    page.until(DONE, 30)
    assert set(state(page).values()) == {"failed"} and "context" in page.js("$('answers').innerText")
    clean(page, daemon, ["status of 400"])


def many_tenants_are_filtered(browser):
    daemon = Daemon("--aliases", ",".join(f"customer-{i:03}=math" for i in range(220)))
    page = ready(browser.open(daemon.url), 200)  # 225 names, 200 shown
    assert page.js("$('filter').checkVisibility() && $('models-note').textContent.startsWith('25 more')")
    assert page.js("$('base').textContent") == "base, 4 tenants"  # other names are no other tenants
    page.click("#none")
    page.click("#filter")
    page.type("customer-21")
    page.until("document.querySelectorAll('#models input').length === 10")
    assert page.js("document.querySelector('#models small').textContent") == "= math"
    page.click("#all")
    tell(page, SUM)
    page.click("#send")
    page.until(DONE, 60)
    assert len(state(page)) == 10 and set(state(page).values()) == {"done"}, state(page)
    assert {text.strip() for text in texts(page).values()} == {"1146"}
    page.js("$('filter').value = 'customer-0'; showModels(); $('all').click(); $('filter').value = 'customer-1'; showModels(); $('all').click()")
    assert page.js("$('send').disabled") and "the most" in page.js("$('form-note').textContent")
    clean(page, daemon)


def the_policy_lets_nothing_else_in(browser):
    daemon = Daemon()
    page = ready(browser.open(daemon.url))
    with urllib.request.urlopen(daemon.url) as reply:
        policy = reply.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy, policy
    assert page.js("fetch('http://127.0.0.1:9/').then(() => 'went', () => 'refused')") == "refused"
    assert page.js("""new Promise((r) => { const s = document.createElement('img'); s.onerror = () => r('refused');
        s.onload = () => r('went'); s.src = 'v1/models'; })""") == "refused"
    assert any("Content Security Policy" in c for c in page.complaints), page.complaints
    assert page.js("""(() => { try { document.body.innerHTML = '<p>'; return 'went'; } catch { return 'refused'; } })()""") == "refused"
    assert page.js("""(() => { document.body.setAttribute('style', 'color: red');
        return getComputedStyle(document.body).color; })()""") != "rgb(255, 0, 0)"


def pictures(browser):
    """The pictures of docs/: only where PAGE_SHOTS names a folder."""
    folder = os.environ.get("PAGE_SHOTS")
    if not folder:
        return "PAGE_SHOTS is not set"
    daemon = Daemon()
    for name, prompt, dark, phone in (("playground", "kjv", False, False), ("playground-dark", "math", True, False), ("playground-phone", "sql", True, True)):
        page = ready(browser.open(daemon.url, dark=dark, phone=phone, width=390 if phone else 1380, height=844 if phone else 800))
        page.js(f"[...document.querySelectorAll('.examples button')].find((b) => b.textContent.startsWith('{prompt}')).click(); document.activeElement.blur()")
        page.js("$('max_tokens').value = 64")
        page.js("sendAll()")
        page.until(DONE, 60)
        page.js("new Promise((r) => setTimeout(r, 500))")  # bars glide to their end
        page.screenshot(os.path.join(folder, name + ".png"))
    return None


TESTS = [streams_run_side_by_side, keyboard_alone_is_enough, colours_follow_the_system_and_the_button,
         phones_scroll_down_only, a_full_queue_is_waited_for, lost_connections_are_said_in_words,
         one_stream_can_be_stopped, keys_stay_in_memory, the_curl_command_says_the_same,
         chat_mode_talks_or_says_why_not, bad_settings_are_said_before_sending, many_tenants_are_filtered, the_policy_lets_nothing_else_in, pictures]


def main():
    part = sys.argv[3] if len(sys.argv) > 3 else ""
    failed, browser = 0, Browser(CHROMIUM)
    try:
        for test in TESTS:
            if part not in test.__name__:
                continue
            began = time.monotonic()
            try:
                skipped = test(browser)
                print(f"  {'skip' if skipped else 'ok  '} {test.__name__} ({time.monotonic() - began:.1f} s){': ' + skipped if skipped else ''}", flush=True)
            except Exception as e:  # one test's failure is not the others'
                failed += 1
                print(f"  FAIL {test.__name__}: {type(e).__name__}: {e}", flush=True)
            while Daemon.started:
                Daemon.started.pop().close()
    finally:
        browser.close()
    print(f"page: {failed} failed")
    return 1 if failed else 0


sys.exit(main())
