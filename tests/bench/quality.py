#!/usr/bin/env python3
"""Bits against quality: compresses every tenant by every method at every number of bits, judges each by the tool,
prints the tables of docs/quality.md and draws docs/quality.svg. Nothing but Python and the tool is needed.

    python3 tests/bench/quality.py run --models DIR --out DIR [--device cuda --slots 8]
    python3 tests/bench/quality.py table --out DIR [--plot docs/quality.svg]

A run keeps one JSON file for each point in --out and goes on where it was stopped. Jobs run side by side in --slots
slots; each has its share of the cores (taskset) and, with --device cuda, a GPU of its own in turn."""
import argparse
import json
import math
import os
import queue
import re
import shutil
import subprocess
import tempfile
import threading
import time

BITS = [1, 1.1, 1.5, 2, 3, 4, 8]
METHODS = {"fit": "ours", "bitdelta": "iterated planes", "svd": "SVD", "delta-come": "Delta-CoMe"}
# What a tenant is judged by: its own held-out documents. `long` has none: its text is the base's, in long windows.
TENANTS = {"math": "math/heldout.json", "sql": "sql/heldout.json", "kjv": "kjv/heldout.json",
           "chat": "chat/heldout.json", "long": None}


def points(args):
    """(tenant, method, bits); the published planes are whole."""
    for method in args.methods:
        for bits in args.bits:
            for tenant in args.tenants:
                if method != "bitdelta" or bits == int(bits):
                    yield tenant, method, bits


def place(out, tenant, method, bits):
    return os.path.join(out, f"{tenant}-{method}-{bits:g}.json")


def call(args, slot, words):
    """The tool in a slot; its standard output. A failure is an exception with what it said."""
    cores = sorted(os.sched_getaffinity(0))
    each = max(1, len(cores) // args.slots)
    mine = cores[slot * each % len(cores):][:each]
    env = dict(os.environ, CUDA_VISIBLE_DEVICES=args.gpus[slot % len(args.gpus)])
    done = subprocess.run(["taskset", "-c", ",".join(map(str, mine)), args.tool, *words], env=env, text=True,
                          capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()[-400:]}")
    return done.stdout


def judge(args, slot, tenant, path):
    """The tool's own figures on the tenant's held-out documents and on the base's text."""
    pair = ["eval", "--base", f"{args.models}/base", "--finetuned", f"{args.models}/{tenant}", "--tenant", path,
            "--json", *args.device_words]
    text = ["--text", f"{args.models}/eval.txt", "--limit", str(args.text_limit)]
    own = ["--tasks", f"{args.models}/{TENANTS[tenant]}"] + (["--limit", str(args.limit)] if args.limit else [])
    base_text, found = [json.loads(call(args, slot, pair + words)) for words in (text, own if TENANTS[tenant] else text)]
    for result in (base_text, found):
        result["tenant"] = result.pop("tenants")[0]
    return found, base_text


def one_point(args, slot, tenant, method, bits):
    path = os.path.join(args.out if args.keep else args.work, f"{tenant}-{method}-{bits:g}.bitdelta")
    words = ["compress", "--base", f"{args.models}/base", "--finetuned", f"{args.models}/{tenant}", "--bits",
             f"{bits:g}", "--method", method, "-o", path]
    if method in ("fit", "bitdelta"):
        words += args.device_words
    if method == "fit" and args.steps is not None:
        words += ["--steps", str(args.steps)]
    if method == "bitdelta":
        words += ["--calibration", f"{args.models}/calibration.txt"]
    began = time.time()
    call(args, slot, words)
    seconds = time.time() - began
    own, base_text = judge(args, slot, tenant, path)
    point = {"tenant": tenant, "method": method, "bits": bits, "seconds": round(seconds, 1), "own": own,
             "base_text": base_text}
    if not args.keep:
        os.unlink(path)
    part = os.path.join(args.work, os.path.basename(place("", tenant, method, bits)))
    with open(part, "w") as f:
        json.dump(point, f)
    shutil.move(part, place(args.out, tenant, method, bits))
    return point


def run(args):
    os.makedirs(args.out, exist_ok=True)
    args.work = tempfile.mkdtemp()
    jobs, failed = queue.Queue(), []
    for point in points(args):
        if not os.path.exists(place(args.out, *point)):
            jobs.put(point)

    def work(slot):
        while True:
            try:
                point = jobs.get_nowait()
            except queue.Empty:
                return
            try:
                made = one_point(args, slot, *point)
                print(f"{point[0]:5} {point[1]:11} {point[2]:4g} bits: KL {made['own']['tenant']['kl']:.5f}, "
                      f"{made['seconds']} s", flush=True)
            except (RuntimeError, OSError, ValueError, KeyError) as e:
                failed.append(point)
                print(f"{point}: {e}", flush=True)

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(args.slots)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shutil.rmtree(args.work)
    return 1 if failed else 0


def load(out):
    found = {}
    for name in sorted(os.listdir(out)):
        if re.fullmatch(r"\w+-[\w-]+-[\d.]+\.json", name):
            p = json.load(open(os.path.join(out, name)))
            found[p["tenant"], p["method"], p["bits"]] = p
    return found


def figure(x):
    return f"{x:.2g}" if x >= 1e-3 else f"{x:.1e}".replace("e-0", "e-")


def cell(point):
    """KL, and the share of questions answered exactly where there are some."""
    if not point:
        return ""
    exact = f" ({100 * point['own']['tenant']['exact_match']:.0f} %)" if point["own"].get("questions") else ""
    return figure(point["own"]["tenant"]["kl"]) + exact


def print_table(found):
    print("| tenant | bits | " + " | ".join(METHODS.values()) + " | logit MSE on base text, in the same order |")
    print("|---|---|" + "---|" * (len(METHODS) + 1))
    for tenant in TENANTS:
        for bits in sorted({b for t, _, b in found if t == tenant}):
            row = [found.get((tenant, m, bits)) for m in METHODS]
            mse = "; ".join(figure(p["base_text"]["tenant"]["logit_mse"]) if p else "–" for p in row)
            print(f"| {tenant} | {bits:g} | " + " | ".join(map(cell, row)) + f" | {mse} |")


WIDTH, PANEL, HEIGHT, LEFT, TOP, BOTTOM = 760, 240, 230, 46, 34, 30


def panel(found, tenant, x0, y0):
    """KL from the fine-tune against bits, both on logarithmic axes."""
    mine = {k: p for k, p in found.items() if k[0] == tenant}
    kls = [max(p["own"]["tenant"]["kl"], 1e-6) for p in mine.values()]
    low, high = 10 ** math.floor(math.log10(min(kls))), 10 ** math.ceil(math.log10(max(kls)))
    wide, tall = PANEL - LEFT - 14, HEIGHT - TOP - BOTTOM

    def at(bits, kl):
        return (x0 + LEFT + wide * math.log(bits) / math.log(8),
                y0 + TOP + tall * (1 - math.log(max(kl, low) / low) / math.log(high / low)))

    out = [f'<text x="{x0 + LEFT}" y="{y0 + 22}" class="b">{tenant}</text>']
    for e in range(round(math.log10(low)), round(math.log10(high)) + 1):
        y = at(1, 10.0 ** e)[1]
        label = f"{10.0 ** e:g}"
        out.append(f'<path class="g" d="M{x0 + LEFT} {y:.1f}h{wide}"/><text class="q" x="{x0 + LEFT - 5}" '
                   f'y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for bits in (1, 2, 4, 8):
        out.append(f'<text class="q" x="{at(bits, high)[0]:.1f}" y="{y0 + HEIGHT - 10}" '
                   f'text-anchor="middle">{bits}</text>')
    for method in reversed(METHODS):
        line = sorted((b, p["own"]["tenant"]["kl"]) for (_, m, b), p in mine.items() if m == method)
        if not line:
            continue
        spots = [at(b, kl) for b, kl in line]
        out.append(f'<path class="{method}" d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y in spots) + '"/>')
        out += [f'<circle class="{method}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in spots]
    return out


def plot(found, path):
    tenants = [t for t in TENANTS if any(k[0] == t for k in found)]
    rows = (len(tenants) + 1 + 2) // 3
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {rows * HEIGHT + 26}" width="{WIDTH}" '
           f'height="{rows * HEIGHT + 26}" font-family="system-ui, sans-serif" font-size="12" role="img">',
           "<title>KL from the fine-tune against bits per linear weight, by method</title>",
           "<style>text{fill:#1b1d21}.q{fill:#5d6269}.g{stroke:#dfe0dd}path{fill:none;stroke-width:2}.b{font-weight:600}"
           "path.fit{stroke:#0b6476;stroke-width:3}circle.fit{fill:#0b6476}path.bitdelta{stroke:#b5563b}"
           "circle.bitdelta{fill:#b5563b}path.svd{stroke:#8b9098}circle.svd{fill:#8b9098}"
           "path.delta-come{stroke:#7a63a8}circle.delta-come{fill:#7a63a8}"
           "@media(prefers-color-scheme:dark){text{fill:#e9eaec}.q{fill:#a0a6ae}.g{stroke:#3a3e45}"
           "path.fit{stroke:#6cc5d6}circle.fit{fill:#6cc5d6}}</style>",
           '<text x="46" y="16" class="b">KL from the fine-tune on held-out documents against bits per linear weight '
           '<tspan class="q" font-weight="400">(lower is better)</tspan></text>']
    for i, tenant in enumerate(tenants):
        out += panel(found, tenant, i % 3 * (PANEL + 10), 20 + i // 3 * HEIGHT)
    i = len(tenants)
    x, y = i % 3 * (PANEL + 10) + LEFT, 20 + i // 3 * HEIGHT + TOP + 10
    for row, (method, label) in enumerate(METHODS.items()):
        out.append(f'<path class="{method}" d="M{x} {y + 22 * row}h26"/><text x="{x + 34}" '
                   f'y="{y + 22 * row + 4}">{label}</text>')
    with open(path, "w") as f:
        f.write("\n".join(out) + "\n</svg>\n")


def report(args):
    found = load(args.out)
    print_table(found)
    worse = [k for k, p in found.items() if k[1] not in ("fit", "delta-come") and
             found.get((k[0], "fit", k[2]), p)["own"]["tenant"]["kl"] > p["own"]["tenant"]["kl"]]
    print("\nours is behind at: " + (", ".join(map(str, worse)) or "none"))
    if args.plot:
        plot(found, args.plot)
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--out", required=True)
    parser.add_argument("--models")
    parser.add_argument("--tool", default="build/bitdelta")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--gpus", type=lambda s: s.split(","), default=["0"], help="their numbers (default 0)")
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--steps", type=int, help="of ours (default: the tool's)")
    parser.add_argument("--limit", type=int, default=0, help="held-out documents (default all)")
    parser.add_argument("--text-limit", type=int, default=39, help="documents of the base's text")
    parser.add_argument("--keep", action="store_true", help="keep the tenant files")
    parser.add_argument("--plot")
    parser.add_argument("--tenants", type=lambda s: s.split(","), default=list(TENANTS))
    parser.add_argument("--methods", type=lambda s: s.split(","), default=list(METHODS))
    parser.add_argument("--bits", type=lambda s: [float(b) for b in s.split(",")], default=BITS)
    args = parser.parse_args()
    args.device_words = ["--device", args.device] if args.device != "cpu" else []
    if args.what == "run" and not args.models:
        parser.error("run needs --models")
    raise SystemExit(run(args) if args.what == "run" else report(args))


if __name__ == "__main__":
    main()
