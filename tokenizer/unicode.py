#!/usr/bin/env python3
"""Writes tokenizer/unicode_table.h: the character classes that pre-tokenizers split by.

The classes are asked of the reference implementation itself (PyPI `tokenizers`, whose regular
expressions and `Digits` come from two libraries with two editions of Unicode), code point by code
point, so that the table is the reference's by construction:

    python3 -m venv /tmp/v && /tmp/v/bin/pip install tokenizers==0.23.3
    /tmp/v/bin/python tokenizer/unicode.py > tokenizer/unicode_table.h
    clang-format -i tokenizer/unicode_table.h
"""
import sys
from tokenizers import Regex, __version__, pre_tokenizers

APART = "\x01"  # in no class: keeps one character from the next
POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
NAMES = ["OTHER", "SPACE", "LU", "LL", "LT", "LM", "LO", "MARK", "NUMBER", "DIGIT_ONLY"]
PATTERNS = {"SPACE": r"\s", "LU": r"\p{Lu}", "LL": r"\p{Ll}", "LT": r"\p{Lt}", "LM": r"\p{Lm}",
            "LO": r"\p{Lo}", "MARK": r"\p{M}", "NUMBER": r"\p{N}"}


def members(step):
    found = set()
    for i in range(0, len(POINTS), 4096):
        text = APART.join(map(chr, POINTS[i:i + 4096]))
        for piece, _ in step.pre_tokenize_str(text):
            if len(piece) == 1 and piece != APART:
                found.add(ord(piece))
    return found


def main():
    kind = [0] * 0x110000
    for name, pattern in PATTERNS.items():
        for c in members(pre_tokenizers.Split(Regex(pattern), "isolated")):
            assert kind[c] == 0, hex(c)
            kind[c] = NAMES.index(name)
    for c in members(pre_tokenizers.Digits(individual_digits=True)):
        if kind[c] == 0:  # newer numbers, which `Digits` knows and \p{N} does not
            kind[c] = NAMES.index("DIGIT_ONLY")
        assert kind[c] in (NAMES.index("NUMBER"), NAMES.index("DIGIT_ONLY")), hex(c)
    runs = [(c, kind[c]) for c in range(0x110000) if c == 0 or kind[c] != kind[c - 1]]
    out = sys.stdout.write
    out(f"/* Made by tokenizer/unicode.py from tokenizers {__version__}; do not edit. Where a run of code\n"
        " * points of one class starts: start << 4 | class, ascending; the last run ends at U+10FFFF. */\n"
        "#ifndef TOKENIZER_UNICODE_TABLE_H\n#define TOKENIZER_UNICODE_TABLE_H\n\n#include <stdint.h>\n\n"
        f"static const uint32_t unicode_runs[{len(runs)}] = {{\n")
    for c, k in runs:
        out(f"0x{c << 4 | k:x},")
    out("};\n\n#endif\n")


main()
