#!/usr/bin/env python3
"""Makes a base of Llama-2-7B's shape with random weights, and a fine-tune of it: every matrix moved by
noise of 5 % of its size, half of that (in energy) of rank 16. The base is written in FP16, the
fine-tune in BF16, in shards of two layers. Needs NumPy and 27 GB; a process for each core.

    pair.py DIR [LAYERS]     makes DIR/base and DIR/fine"""
import json, multiprocessing, os, struct, sys
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import numpy as np

DIM, FFN, HEADS, VOCAB, RANK, MOVED = 4096, 11008, 32, 32000, 16, 0.05
ROOT = sys.argv[1]
LAYERS = int(sys.argv[2]) if len(sys.argv) > 2 else 32
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": DIM,
          "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
          "num_key_value_heads": HEADS, "vocab_size": VOCAB, "max_position_embeddings": 4096,
          "rms_norm_eps": 1e-5, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
          "rope_theta": 10000.0, "tie_word_embeddings": False}


def layer(i):
    p = "model.layers.%d." % i
    return ([(p + "self_attn.%s_proj.weight" % x, (DIM, DIM)) for x in "qkvo"] +
            [(p + "mlp.gate_proj.weight", (FFN, DIM)), (p + "mlp.up_proj.weight", (FFN, DIM)),
             (p + "mlp.down_proj.weight", (DIM, FFN)), (p + "input_layernorm.weight", (DIM,)),
             (p + "post_attention_layernorm.weight", (DIM,))])


SHARDS = [[("model.embed_tokens.weight", (VOCAB, DIM))],
          [("lm_head.weight", (VOCAB, DIM)), ("model.norm.weight", (DIM,))]]
SHARDS += [sum([layer(j) for j in range(i, min(i + 2, LAYERS))], []) for i in range(0, LAYERS, 2)]


def name_of(i):
    return "model-%05d-of-%05d.safetensors" % (i + 1, len(SHARDS))


def bf16(x):
    bits = x.view(np.uint32)
    bits += 0x7fff + (bits >> 16 & 1)
    return (bits >> 16).astype(np.uint16)


def stretch(noise, shape, at):
    """Numbers of the noise from `at` on, round and round."""
    n = int(np.prod(shape))
    return np.resize(np.roll(noise, -at) if n < len(noise) else noise[at:], n).reshape(shape)


def made(shape, noise, g):
    """A tensor of the base in FP16 and the same of the fine-tune in BF16."""
    at = [int(x) for x in g.integers(0, len(noise) // 2, 2)]
    if len(shape) == 1:
        return np.ones(shape, np.float16), bf16(1 + np.float32(0.01) * stretch(noise, shape, at[0]))
    size = np.float32(0.02 if shape[1] == DIM else 0.012)
    base = (size * stretch(noise, shape, at[0])).astype(np.float16)
    step = size * np.float32(MOVED * 0.5 ** 0.5)
    fine = stretch(noise, shape, at[1]) * step
    b = g.standard_normal((shape[0], RANK), np.float32) * (step / np.float32(RANK ** 0.5))
    fine += b @ g.standard_normal((RANK, shape[1]), np.float32)
    fine += base
    return base, bf16(fine)


def write(i):
    g = np.random.default_rng(i)
    noise = g.standard_normal((1 << 22) + 17, np.float32)
    header, at = {}, 0
    for name, shape in SHARDS[i]:
        end = at + 2 * int(np.prod(shape))
        header[name] = {"shape": list(shape), "data_offsets": [at, end]}
        at = end
    files = []
    for model, kind in (("base", "F16"), ("fine", "BF16")):
        text = json.dumps({k: dict(v, dtype=kind) for k, v in header.items()}).encode()
        text += b" " * (-len(text) % 8)
        files.append(open(os.path.join(ROOT, model, name_of(i)), "wb"))
        files[-1].write(struct.pack("<Q", len(text)) + text)
    for _, shape in SHARDS[i]:
        for f, x in zip(files, made(shape, noise, g)):
            x.tofile(f)
    for f in files:
        f.close()


if __name__ == "__main__":
    for model, dtype in (("base", "float16"), ("fine", "bfloat16")):
        os.makedirs(os.path.join(ROOT, model), exist_ok=True)
        with open(os.path.join(ROOT, model, "config.json"), "w") as f:
            json.dump(dict(CONFIG, torch_dtype=dtype), f)
        with open(os.path.join(ROOT, model, "model.safetensors.index.json"), "w") as f:
            json.dump({"metadata": {}, "weight_map": {n: name_of(i) for i in range(len(SHARDS))
                                                      for n, _ in SHARDS[i]}}, f)
    with multiprocessing.Pool(min(os.cpu_count(), len(SHARDS))) as pool:
        pool.map(write, range(len(SHARDS)), chunksize=1)
