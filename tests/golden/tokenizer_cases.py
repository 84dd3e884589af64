#!/usr/bin/env python3
"""Tokenizers against the reference implementations (PyPI `tokenizers`, `sentencepiece`).

    python3 -m venv /tmp/v && /tmp/v/bin/pip install tokenizers==0.23.3 sentencepiece==0.2.3
    /tmp/v/bin/python tests/golden/tokenizer_cases.py make
        trains one small tokenizer.json of each published family (its exact normalizer,
        pre-tokenizer, model options, post-processor and decoder) and writes them and a compact
        corpus with the reference's ids to tests/golden/tokenizers/
    /tmp/v/bin/python tests/golden/tokenizer_cases.py compare [TEXTS] [FOLDER...]
        compares build/test with the reference on TEXTS (default 20000) random texts for each of
        those, and for FOLDERs with a real tokenizer.json or tokenizer.model
"""
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile

from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,
                        processors, trainers)

HERE = os.path.dirname(os.path.abspath(__file__))
TABLE = os.path.join(HERE, "tokenizers")
WHITE = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
RISE, FALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
REGEX = {
    "llama3": WORDS + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + WHITE,
    "qwen2": WORDS + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + WHITE,
    "tekken": rf"[^\r\n\p{{L}}\p{{N}}]?{RISE}*{FALL}+|[^\r\n\p{{L}}\p{{N}}]?{RISE}+{FALL}*|\p{{N}}"
              r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + WHITE,
}


def byte_level(name, steps, specials, bos=None, prefix_space=False, **model):
    t = Tokenizer(models.BPE(**model))
    t.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=specials, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    return t, trainer, bos


def characters(scheme):
    t = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    if scheme == "prepend":
        t.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        last = [decoders.Strip(" ", 1, 0)]
    else:
        t.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", scheme, split=False)
        last = [decoders.Strip(" ", 1, 0)]
    t.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()] + last)
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=specials, show_progress=False)
    return t, trainer, "<s>"


def families():
    def byte(use_regex, prefix=False):
        return pre_tokenizers.ByteLevel(add_prefix_space=prefix, trim_offsets=True,
                                        use_regex=use_regex)

    def split(name):
        return [pre_tokenizers.Split(Regex(REGEX[name]), "isolated"), byte(False)]
    end = ["<|endoftext|>"]
    return {
        "gpt2": byte_level("gpt2", [byte(True)], end),
        "spaced": byte_level("spaced", [byte(True, True)], end),
        "smollm2": byte_level("smollm2", [pre_tokenizers.Digits(individual_digits=True),
                                          byte(True)], end + ["<|im_start|>", "<|im_end|>"]),
        "llama3": byte_level("llama3", split("llama3"), [], "<|begin_of_text|>",
                             ignore_merges=True),
        "qwen2": byte_level("qwen2", split("qwen2"), end),
        "tekken": byte_level("tekken", split("tekken"),
                             ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], "<s>"),
        "llama2": characters("prepend"),
        "metaspace": characters("first"),
    }


def training_text():
    lines = []
    for root, _, names in os.walk(os.path.join(HERE, "..", "..", "docs")):
        for name in sorted(names):
            if name.endswith(".md"):
                lines += open(os.path.join(root, name), encoding="utf-8").read().splitlines(True)
    extra = ["Der Bär heißt ÜBERGRÖSSE, süß & schön. ", "Это предложение на русском языке. ",
             "これは日本語の文です。今日は天気がいい。", "这是一个中文句子，没有空格。", "한국어 문장입니다. ",
             "هذه جملة عربية. ", "I'm sure they've said it'll do; we'd don't. ", "print(x[0:3]);\n\n\t",
             "हिन्दी में एक वाक्य। ", "🙂 👩‍👩‍👧 café naïve ", "1234567890 12 345 6.789,00 "]
    return lines + extra * 20


PIECES = ["'s", "'S", "'ll", "'LL", "'Re", "'\u017f", "'", "''", " ", "  ", "   ", "\t", "\n", "\r\n",
          "\n\n", " \n", "\n ", "\u00a0", "\u3000", "\u2028", "\x1c", "\x85", "a", "A", "word",
          "Word", "WORD", "camelCase", "HTMLParser", " the", " The", " THE", "1", "12", "123", "1234",
          "\u0661\u0662", "\u00bd", "\u2160", "\U00011de1", "\U00016ff4", "\u0301", "\u0303\u0327",
          "e\u0301", "\u02b0", "A\u02b0B", "\u01c5", "\u00df", "\u4e00\u4e8c", "\u3042", "\uac00",
          "\u0915\u094d\u0937", "\U0001f642", "\U0001f469\u200d\U0001f467", "\u2581", "\u2581\u2581",
          "!", "!!", "...", "/", "//\n", "-", "_", "()", "[", "]", "<", ">", "|", "<|", "|>", "{}",
          "http://x.y/z?q=1", "\u00e9", "\ufffd", "\ufeff", "\u200b", "\u0378", "\U0010ffff", "don't",
          "0x1F", "\u0430\u0411", "\u0130", "\ufb01"]


def random_text(rng, specials):
    parts = []
    for _ in range(rng.randint(1, 14)):
        what = rng.random()
        if what < 0.62:
            parts.append(rng.choice(PIECES))
        elif what < 0.72 and specials:
            parts.append(rng.choice(specials))
        elif what < 0.8:
            parts.append(rng.choice(PIECES) * rng.randint(2, 9))
        else:
            c = rng.choice([rng.randint(1, 0x7f), rng.randint(0x80, 0x2fff),
                            rng.randint(0x80, 0xffff), rng.randint(0x10000, 0x1ffff),
                            rng.randint(1, 0x10ffff)])
            parts.append(chr(c) if not 0xd800 <= c < 0xe000 else "x")
    return "".join(parts)


def add_tokens(name, t):
    """Added tokens of every kind, as fine-tunes have them."""
    if name == "llama3":
        t.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>"])
    t.add_special_tokens([AddedToken("<|left|>", lstrip=True), AddedToken("<|right|>", rstrip=True),
                          AddedToken("<|both|>", lstrip=True, rstrip=True)])
    t.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("<tool>x", normalized=False)])
    if name != "llama2":  # the only one with a normalizer
        t.add_tokens([AddedToken("zqx", normalized=True), AddedToken("qxz", normalized=False),
                      AddedToken(" zq", normalized=True)])
    return ["<|left|>", "<|right|>", "<|both|>", "<tool>", "<tool>x", "zqx", "zqxz", " zq"] + \
           [s for s in ("<|endoftext|>", "<s>", "</s>", "<unk>", "<|eot_id|>", "[INST]",
                        "<|im_start|>", "<|begin_of_text|>") if t.token_to_id(s) is not None]


def train():
    for name, (t, trainer, bos) in families().items():
        t.train_from_iterator(training_text(), trainer)
        tree = json.loads(t.to_str())  # bytes are pieces of the model, no added tokens
        tree["added_tokens"] = [a for a in tree["added_tokens"] if a["content"][:3] != "<0x"]
        t = Tokenizer.from_str(json.dumps(tree))
        specials = add_tokens(name, t)
        if bos:
            around = processors.TemplateProcessing(
                single=f"{bos} $A", special_tokens=[(bos, t.token_to_id(bos))])
            byte = name in ("llama3", "tekken")
            t.post_processor = processors.Sequence(
                [processors.ByteLevel(trim_offsets=False), around]) if byte else around
        yield name, t, specials


def reference(t, text):
    ids = t.encode(text).ids
    return [text, ids, t.decode(ids, skip_special_tokens=False)]


def make():
    shutil.rmtree(TABLE, ignore_errors=True)
    os.makedirs(TABLE)
    cases = {}
    for name, t, specials in train():
        folder = os.path.join(TABLE, name)
        os.makedirs(folder)
        tree = json.loads(t.to_str())
        with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as f:
            json.dump(tree, f, ensure_ascii=False, separators=(",", ":"))
            f.write("\n")
        rng = random.Random(name)
        texts = ["", " ", "Hello world", " Hello  world\n\n  x", "I'm 1234 we'LL ÜBERGRÖSSE\r\n \r\n"]
        texts += [random_text(rng, specials) for _ in range(70)]
        cases[name] = [reference(t, x)[:2] for x in texts]
    with open(os.path.join(TABLE, "cases.json"), "w", encoding="utf-8") as f:
        f.write("{\n" + ",\n".join(
            json.dumps(n) + ": [\n" + ",\n".join(
                json.dumps(c, separators=(",", ":")) for c in cs) + "\n]"
            for n, cs in cases.items()) + "\n}\n")


def run(folder, cases):
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8", delete=False) as f:
        json.dump({"folder": os.path.abspath(folder), "cases": cases}, f)
    try:
        env = dict(os.environ, TOKENIZER_CASES=f.name)
        ended = subprocess.run([os.path.join(HERE, "../../build/test"), "tokenizer_reference_file"],
                               env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    finally:
        os.unlink(f.name)
    print(f"{folder}: {len(cases)} texts:", "equal" if ended.returncode == 0 else ended.stdout)
    return ended.returncode


def long_texts(rng, specials):
    return ["".join(random_text(rng, specials) for _ in range(200)) for _ in range(20)]


def compare(n, folders):
    bad = 0
    jobs = []
    for folder in [os.path.join(TABLE, name) for name in sorted(families())] + folders:
        path = os.path.join(folder, "tokenizer.json")
        if os.path.exists(path):
            t = Tokenizer.from_file(path)
            added = t.get_added_tokens_decoder().values()
            jobs.append((folder, t, [a.content for a in added][:40] + ["zqxz"]))
        else:
            bad |= compare_sentencepiece(n, folder)
    for folder, t, specials in jobs:
        rng = random.Random(folder + str(n))
        texts = [random_text(rng, specials) for _ in range(n)] + long_texts(rng, specials)
        bad |= run(folder, [reference(t, x) for x in texts])
    return bad


def compare_sentencepiece(n, folder):
    """Texts without control pieces: what the library gives, with BOS."""
    import sentencepiece
    sp = sentencepiece.SentencePieceProcessor(os.path.join(folder, "tokenizer.model"))
    control = {sp.id_to_piece(i): i for i in range(sp.get_piece_size()) if sp.is_control(i)}
    rng = random.Random(n)
    cases = []
    for _ in range(n):
        ids, text = [sp.bos_id()], ""
        for _ in range(rng.randint(1, 3)):  # stretches between control pieces
            stretch = random_text(rng, [])
            if any(c in stretch for c in list(control) + ["<unk>"]):
                continue
            name = rng.choice(list(control))
            ids += sp.encode(stretch) + [control[name]]
            text += stretch + name
        cases.append([text, ids])
    return run(folder, cases)


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        make()
    elif sys.argv[1:2] == ["compare"]:
        sys.exit(compare(int(sys.argv[2]) if len(sys.argv) > 2 else 20000, sys.argv[3:]))
    else:
        sys.exit(__doc__)
