#!/usr/bin/env python3
"""Draws docs/tenants.svg from the first table of docs/performance.md: tokens a second that leave all linears of
a 7B decode step, against the number of tenants in it. `make docs` runs it; nothing but Python is needed."""
import math
import os
import re

HERE = os.path.dirname(os.path.abspath(__file__))
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 400, 62, 196, 34, 46
Y_LOW, Y_HIGH = 100, 20000


def read_table():
    """Columns of the table that begins with T, as {words of its head: {T: ms}}."""
    lines = open(os.path.join(HERE, "performance.md")).read().split("\n")
    first = next(i for i, line in enumerate(lines) if line.startswith("| T |"))
    cells = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines[first:]]
    names, columns = cells[0], {}
    for row in cells[2:]:
        if not re.fullmatch(r"\d+", row[0]):
            break
        for name, cell in zip(names, row):
            columns.setdefault(name, {})[int(row[0])] = cell
    return columns


def column(columns, *words):
    """Milliseconds of the one column whose head has these words."""
    found = [name for name in columns if all(word in name for word in words)]
    if len(found) != 1:
        raise SystemExit(f"docs/performance.md: {len(found)} columns say {' and '.join(words)}, one is wanted")
    return {t: float(cell) for t, cell in columns[found[0]].items()}


def x_of(tenants, most):
    return LEFT + (WIDTH - LEFT - RIGHT) * math.log2(tenants) / math.log2(most)


def y_of(rate):
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * math.log(rate / Y_LOW) / math.log(Y_HIGH / Y_LOW)


def draw():
    columns = read_table()
    fused, alone, floor = (column(columns, "fused", "T tenants of one row"), column(columns, "cuBLAS", "base alone"),
                           column(columns, "floor by bytes"))
    most = max(fused)
    series = [  # class, label lines, points
        ("bound", ["one model, no tenants", "(cuBLAS, FP16)"], {t: 1000 * t / ms for t, ms in alone.items()}),
        ("floor", ["what the bytes allow"], {t: 1000 * t / ms for t, ms in floor.items()}),
        ("ours", ["one base and T deltas", "(fused kernel)"], {t: 1000 * t / ms for t, ms in fused.items()}),
        ("apart", ["T whole FP16 models", "(cuBLAS, one after another,", "if they fitted)"],
         {t: 1000 / alone[1] for t in alone}),
    ]
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img" aria-labelledby="t d">',
        '<title id="t">Tokens a second through all linears of a 7B decode step, by tenants in it</title>',
        f'<desc id="d">{"; ".join(" ".join(s[1]) + ": " + ", ".join(f"{t}: {r:,.0f}" for t, r in s[2].items()) for s in series)}</desc>',
        "<style>text{fill:#1b1d21}.q{fill:#5d6269}.g{stroke:#dfe0dd}path{fill:none;stroke-width:2}"
        ".ours{stroke:#0b6476;stroke-width:3}.floor{stroke:#0b6476;stroke-dasharray:2 5;stroke-width:1.5}"
        ".bound,.apart{stroke:#8b9098}.apart{stroke-dasharray:7 4}circle{fill:#0b6476}.b{font-weight:600}"
        "@media(prefers-color-scheme:dark){text{fill:#e9eaec}.q{fill:#a0a6ae}.g{stroke:#3a3e45}"
        ".ours,.floor{stroke:#6cc5d6}circle{fill:#6cc5d6}}</style>",
        f'<text x="{LEFT}" y="18" class="b">Tokens/s through all linears of a 7B decode step, one row a tenant '
        '<tspan class="q" font-weight="400">(H100, higher is better)</tspan></text>',
    ]
    for rate in (100, 200, 500, 1000, 2000, 5000, 10000, 20000):
        y = y_of(rate)
        out.append(f'<path class="g" style="stroke-width:1" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
                   f'<text class="q" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{rate:,}</text>')
    for t in fused:
        out.append(f'<text class="q" x="{x_of(t, most):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{t}</text>')
    out.append(f'<text class="q" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">tenants in the step (T)</text>')
    label_y = HEIGHT
    for name, label, points in reversed(series):
        path = "L".join(f"{x_of(t, most):.1f} {y_of(rate):.1f}" for t, rate in points.items())
        out.append(f'<path class="{name}" d="M{path}"/>')
        y = min(y_of(points[most]) + 4 - 15 * (len(label) - 1) / 2, label_y - 15 * len(label) - 4)
        label_y = y
        for i, line in enumerate(label):
            out.append(f'<text x="{WIDTH - RIGHT + 12}" y="{y + 15 * i:.1f}" class="{"b" if name == "ours" and i == 0 else "q" if i else ""}">{line}</text>')
    for t, rate in fused.items():
        out.append(f'<circle cx="{x_of(t, most):.1f}" cy="{y_of(rate):.1f}" r="3.5"/>')
    out.append("</svg>")
    with open(os.path.join(HERE, "tenants.svg"), "w") as f:
        f.write("\n".join(out) + "\n")


draw()
