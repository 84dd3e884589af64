#!/usr/bin/env python3
"""Streams completions of many tenants at once from a running bitdeltad; prints the tokens a second
that clients receive while all of them generate, and what the server's own counters say of the same
time.

    load.py HOST:PORT PROMPT_TOKENS TOKENS MODEL..."""
import http.client, json, re, sys, threading, time


def metrics(address):
    c = http.client.HTTPConnection(address)
    c.request("GET", "/metrics")
    text = c.getresponse().read().decode()
    found = {}
    for name in ("steps_total", "step_seconds_total"):
        m = re.search(r"^bitdeltad_engine_%s ([0-9.e+-]+)" % name, text, re.M)
        found[name] = float(m.group(1))
    return found


def stream(address, model, prompt, tokens, arrivals, errors):
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0,
            "ignore_eos": True, "stream": True, "logprobs": 0}
    try:
        c = http.client.HTTPConnection(address, timeout=120)
        c.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        r = c.getresponse()
        if r.status != 200:
            raise RuntimeError(r.read().decode()[:300])
        for line in r:
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:]).get("choices", []):
                    n = len((choice.get("logprobs") or {}).get("tokens") or [])
                    arrivals.extend([time.monotonic()] * n)
    except Exception as e:
        errors.append("%s: %s" % (model, e))


def main():
    address, n_prompt, tokens, models = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    arrivals = [[] for _ in models]
    errors = []
    threads = []
    for i, m in enumerate(models):
        prompt = [1] + [10 + (i * 131 + j * 17) % 3000 for j in range(1, n_prompt)]
        threads.append(threading.Thread(target=stream,
                                        args=(address, m, prompt, tokens, arrivals[i], errors)))
    for t in threads:
        t.start()
    while not errors and min(len(a) for a in arrivals) < 4:
        time.sleep(0.005)
    before, start = metrics(address), time.monotonic()
    while not errors and max(len(a) for a in arrivals) < tokens - 8:
        time.sleep(0.005)
    after, end = metrics(address), time.monotonic()
    for t in threads:
        t.join()
    if errors:
        sys.exit("\n".join(errors[:3]))
    seen = sum(start <= x < end for a in arrivals for x in a)
    steps = after["steps_total"] - before["steps_total"]
    seconds = after["step_seconds_total"] - before["step_seconds_total"]
    gaps = sorted(b - a for x in arrivals for a, b in zip(x, x[1:]) if start <= a < end)
    print("%d streams, %.2f s: %.0f tokens/s at the clients; %.3f ms a step, %.0f tokens/s by the "
          "engine's steps; gaps between tokens p50 %.1f ms, p99 %.1f ms"
          % (len(models), end - start, seen / (end - start), seconds / steps * 1e3,
             len(models) * steps / seconds, gaps[len(gaps) // 2] * 1e3,
             gaps[len(gaps) * 99 // 100] * 1e3))


main()
