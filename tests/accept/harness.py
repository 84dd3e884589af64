"""EleutherAI's lm-evaluation-harness, `local-completions`, on two small local tasks: every log-likelihood must be that of a
direct computation (NumPy, FP32, tests/golden/reference.py) within 1e-3 a token, with prompts as token ids, batched, by a tokenizer of
the client's own (Hugging Face's) and by the daemon's (/tokenize, /detokenize, /tokenizer_info)."""
import os
import sys
import tempfile

import numpy as np
import sentencepiece

from daemon import BASE, HERE, ROOT, TENANTS, Daemon

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OPENAI_API_KEY="accept-key-of-the-tests")
sys.path.insert(0, os.path.join(ROOT, "tests", "golden"))
import reference  # noqa: E402

folder = tempfile.TemporaryDirectory()
os.environ["HF_HOME"] = os.path.join(folder.name, "hf")
import lm_eval  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

pieces = sentencepiece.SentencePieceProcessor(os.path.join(BASE, "tokenizer.model"))


def local_tasks():
    """The task files with the place of their data written into them."""
    source, out = os.path.join(HERE, "tasks"), os.path.join(folder.name, "tasks")
    os.makedirs(out)
    for name in os.listdir(source):
        with open(os.path.join(source, name)) as f, open(os.path.join(out, name), "w") as g:
            g.write(f.read().replace("DATA", out))
    return TaskManager(include_path=out, include_defaults=False)


def direct(model, context, ending):
    """Log-likelihood and greediness of `ending` after `context`, both cut where lm-eval cuts them."""
    space = len(context) - len(context.rstrip())
    if space:
        context, ending = context[:-space], context[-space:] + ending
    whole, n = pieces.encode(context + ending), len(pieces.encode(context))
    lp = reference.logprobs(model, whole)[n - 1:-1]
    ids = whole[n:]
    return float(lp[np.arange(len(ids)), ids].sum()), bool((lp.argmax(-1) == ids).all()), len(ids)


def evaluate(daemon, tasks, name, model, how):
    args = {"model": name, "base_url": daemon.url + how["path"], "num_concurrent": 2, "max_length": 512, **how["args"]}
    r = lm_eval.simple_evaluate(model="local-completions", model_args=args, tasks=["accept_sentences", "accept_sums"],
                                task_manager=tasks, batch_size=8, log_samples=True, bootstrap_iters=0, verbosity="ERROR")
    worst, n = 0.0, 0
    for sample in r["samples"]["accept_sentences"]:
        for request, answer in zip(sample["arguments"].values() if isinstance(sample["arguments"], dict) else sample["arguments"],
                                   sample["resps"]):
            context, ending = (request["arg_0"], request["arg_1"]) if isinstance(request, dict) else request
            got, greedy = answer[0] if isinstance(answer[0], (list, tuple)) else answer
            want, is_greedy, n_ids = direct(model, context, ending)
            worst, n = max(worst, abs(float(got) - want) / n_ids), n + 1
            assert abs(float(got) - want) < 1e-3 * n_ids, (name, context, ending, got, want)
            assert (str(greedy) == "True") == is_greedy, (name, context, ending, greedy, is_greedy)
    assert n == 40, n
    texts = [s["resps"][0][0] for s in r["samples"]["accept_sums"]]
    assert len(texts) == 4 and not any(stop in t for t in texts for stop in ("\n", "Q:", ".", "!", "?")), texts
    accuracy = r["results"]["accept_sentences"]["acc,none"]
    print(f"pass  lm-eval, {how['name']}, {name}: {n} log-likelihoods, worst difference {worst:.1e} a token; accuracy {accuracy:.2f}", flush=True)


REMOTE = {"name": "the daemon's tokenizer", "path": "/v1/completions", "args": {"tokenizer_backend": "remote", "auth_token": "accept-key-of-the-tests"}}
SCOPED = {**REMOTE, "path": "/t/math/v1/completions"}
LOCAL = {"name": "a tokenizer of its own", "path": "/v1/completions", "args": {"tokenizer_backend": "huggingface", "tokenizer": BASE}}

with Daemon(key="accept-key-of-the-tests") as d:
    tasks, base = local_tasks(), reference.load(BASE)
    evaluate(d, tasks, "base", base, REMOTE)
    evaluate(d, tasks, "base", base, LOCAL)
    evaluate(d, tasks, "math", reference.load_tenant(base, os.path.join(TENANTS, "math.bitdelta")), SCOPED)
    evaluate(d, tasks, "kjv", reference.load_tenant(base, os.path.join(TENANTS, "kjv.bitdelta")), LOCAL)
folder.cleanup()
