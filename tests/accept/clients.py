"""The official openai client and langchain-openai, unmodified, against the daemon."""
import asyncio
import http.server
import threading
import urllib.request

import openai
from langchain_openai import ChatOpenAI
from langchain_openai import OpenAI as LangChainOpenAI

from daemon import Daemon, free_port, run

KEY = "accept-key-of-the-tests"
daemon = Daemon("--aliases", "prod=math", key=KEY)
PROMPT = "Q: Tom has 3 apples and buys 4 more. How many apples has he? A:"


def client(**more):
    return openai.OpenAI(**{"base_url": daemon.url + "/v1", "api_key": KEY, "max_retries": 0, **more})


def refused(kind, status, param, call):
    try:
        call()
    except kind as e:
        assert e.status_code == status and e.request_id and (e.body or {}).get("message"), (e.status_code, e.body)
        assert param is None or e.param == param, e.param
        return e
    raise AssertionError(f"no {kind.__name__}")


def openai_lists_models():
    names = [m.id for m in client().models.list()]
    assert names[0] == "base" and {"math", "sql", "kjv", "chat", "prod"} <= set(names), names
    assert client().models.retrieve("math").id == "math"


def openai_completes_and_names_what_answered():
    c = client()
    raw = c.completions.with_raw_response.create(model="math", prompt=PROMPT, max_tokens=16, temperature=0)
    r = raw.parse()
    assert raw.headers["x-request-id"] and r._request_id == raw.headers["x-request-id"]
    assert r.object == "text_completion" and r.model == "math" and r.choices[0].text
    assert r.system_fingerprint.startswith("bd-")
    assert r.usage.total_tokens == r.usage.prompt_tokens + r.usage.completion_tokens
    alias = c.completions.create(model="prod", prompt=PROMPT, max_tokens=16, temperature=0)
    assert alias.choices[0].text == r.choices[0].text and alias.system_fingerprint == r.system_fingerprint
    base = c.completions.create(model="base", prompt=PROMPT, max_tokens=16, temperature=0)
    assert base.system_fingerprint != r.system_fingerprint


def openai_streams_what_it_would_have_replied():
    c = client()
    for more in ({}, {"stop": ["\n", "."]}, {"temperature": 1.2, "seed": 7}, {"logprobs": 3}, {"echo": True}, {"n": 3, "seed": 1}):
        fields = {"model": "kjv", "prompt": "In the beginning", "max_tokens": 24, "temperature": 0, **more}
        whole = c.completions.create(**fields)
        texts, finish, usage = {}, {}, None
        for chunk in c.completions.create(stream=True, stream_options={"include_usage": True}, **fields):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + choice.text
                finish[choice.index] = choice.finish_reason or finish.get(choice.index)
        assert [texts[x.index] for x in whole.choices] == [x.text for x in whole.choices], more
        assert [finish[x.index] for x in whole.choices] == [x.finish_reason for x in whole.choices], more
        assert usage == whole.usage, (usage, whole.usage)


def openai_takes_every_field():
    r = client().completions.create(
        model="math", prompt=[PROMPT, "1 + 1 ="], max_tokens=8, n=2, best_of=3, echo=True, logprobs=5, stop=["a", "b", "c", "d", "e"],
        seed=3, temperature=0.8, top_p=0.9, presence_penalty=0.1, frequency_penalty=0.1, logit_bias={"300": -100}, user="u",
        suffix=None, stream=False,
        extra_body={"top_k": 40, "min_p": 0.01, "repetition_penalty": 1.1, "ignore_eos": True, "min_tokens": 1,
                    "stop_token_ids": [2], "add_special_tokens": True, "return_token_ids": True, "prompt_logprobs": 2})
    assert [c.index for c in r.choices] == [0, 1, 2, 3]
    for c in r.choices:
        n = len(c.logprobs.tokens)
        assert n == len(c.logprobs.token_logprobs) == len(c.logprobs.top_logprobs) == len(c.logprobs.text_offset)
        assert len(c.prompt_logprobs) == len(c.prompt_token_ids) and n == len(c.prompt_token_ids) + len(c.token_ids)
    ids = r.choices[0].prompt_token_ids
    same = [client().completions.create(model="math", prompt=p, max_tokens=8, temperature=0).choices[0].text
            for p in (PROMPT, [PROMPT], ids, [ids])]
    assert len(set(same)) == 1, same


def openai_runs_many_at_once():
    async def ask(c, model, i):
        r = await c.completions.create(model=model, prompt=f"{i} + {i} =", max_tokens=8, temperature=0)
        return r.choices[0].text

    async def stream(c, model, i):
        parts = await c.completions.create(model=model, prompt=f"{i} + {i} =", max_tokens=8, temperature=0, stream=True)
        return "".join([p.choices[0].text async for p in parts])

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=daemon.url + "/v1", api_key=KEY) as c:
            jobs = [f(c, m, i) for i in range(8) for m in ("base", "math", "sql") for f in (ask, stream)]
            return await asyncio.gather(*jobs)

    texts = asyncio.run(all_of_them())
    assert texts[0::2] == texts[1::2]


def openai_errors_are_its_own_classes():
    c = client()
    create = c.completions.create
    refused(openai.AuthenticationError, 401, None, lambda: client(api_key="wrong").models.list())
    refused(openai.NotFoundError, 404, "model", lambda: create(model="none", prompt="a"))
    refused(openai.BadRequestError, 400, "temperature", lambda: create(model="base", prompt="a", temperature=3))
    refused(openai.BadRequestError, 400, "suffix", lambda: create(model="base", prompt="a", suffix="b"))
    e = refused(openai.BadRequestError, 400, "max_tokens", lambda: create(model="base", prompt="a", max_tokens=100000))
    assert e.code == "context_length_exceeded"
    refused(openai.NotFoundError, 404, None, lambda: c.embeddings.create(model="base", input="a"))


def openai_retries_after_429():
    """A proxy that answers 429 twice the way the daemon does, then passes the call on."""
    seen = []

    class Busy(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append(self.headers.get("x-stainless-retry-count"))
            if len(seen) < 3:
                status, answer = 429, b'{"error":{"message":"m","type":"rate_limit_error","param":null,"code":"overloaded"}}'
            else:
                request = urllib.request.Request(daemon.url + self.path, body, {
                    "Content-Type": "application/json", "Authorization": "Bearer " + KEY})
                with urllib.request.urlopen(request) as r:
                    status, answer = r.status, r.read()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Retry-After", "1")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    port = free_port()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    c = client(base_url=f"http://127.0.0.1:{port}/v1", max_retries=2)
    assert c.completions.create(model="base", prompt="a", max_tokens=2).choices
    assert seen == ["0", "1", "2"], seen
    server.shutdown()


def openai_gets_429_from_a_full_queue_and_then_an_answer():
    with Daemon("--max-seqs", "1", "--max-queue", "1", "--max-batch-tokens", "1") as small:
        c = openai.OpenAI(base_url=small.url + "/v1", api_key="-", max_retries=0)
        slow = [c.completions.create(model="base", prompt="a", max_tokens=500, stream=True, extra_body={"ignore_eos": True})
                for _ in range(1)]
        next(iter(slow[0]))  # it runs
        waiting = threading.Thread(target=lambda: c.completions.create(model="base", prompt="b", max_tokens=1, timeout=60))
        waiting.start()
        for _ in range(200):
            if b"vllm:num_requests_waiting{model_name=\"base\",engine=\"0\"} 1" in urllib.request.urlopen(small.url + "/metrics").read():
                break
        e = refused(openai.RateLimitError, 429, None, lambda: c.completions.create(model="base", prompt="c", max_tokens=1))
        assert e.response.headers["retry-after"] == "1"
        slow[0].close()
        waiting.join()
        patient = openai.OpenAI(base_url=small.url + "/v1", api_key="-", max_retries=3)
        assert patient.completions.create(model="base", prompt="c", max_tokens=1).choices


def openai_reaches_a_tenant_by_its_address():
    c = client(base_url=daemon.url + "/t/sql/v1")
    want = client().completions.create(model="sql", prompt="SELECT", max_tokens=8, temperature=0)
    got = c.completions.create(model="gpt-3.5-turbo-instruct", prompt="SELECT", max_tokens=8, temperature=0)
    assert got.choices[0].text == want.choices[0].text and got.model == "sql"
    assert [m.id for m in c.models.list()] == ["sql"]


def openai_chats():
    c, messages = client(), [{"role": "user", "content": [{"type": "text", "text": "What is a package?"}]}]
    for more in ({}, {"n": 2, "seed": 5, "temperature": 1}, {"logprobs": True, "top_logprobs": 2}, {"stop": ["."]}):
        fields = {"model": "chat", "messages": messages, "max_completion_tokens": 16, "temperature": 0, **more}
        whole = c.chat.completions.create(**fields)
        texts, finish, usage = {}, {}, None
        for chunk in c.chat.completions.create(stream=True, stream_options={"include_usage": True}, **fields):
            assert chunk.object == "chat.completion.chunk"
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
                finish[choice.index] = choice.finish_reason or finish.get(choice.index)
        assert [texts[x.index] for x in whole.choices] == [x.message.content for x in whole.choices], more
        assert [finish[x.index] for x in whole.choices] == [x.finish_reason for x in whole.choices], more
        assert usage == whole.usage and whole.choices[0].message.role == "assistant"
    refused(openai.BadRequestError, 400, "messages", lambda: c.chat.completions.create(model="chat", messages=[]))
    refused(openai.BadRequestError, 400, "tools", lambda: c.chat.completions.create(
        model="chat", messages=messages, tools=[{"type": "function", "function": {"name": "f"}}]))
    llm = ChatOpenAI(base_url=daemon.url + "/v1", api_key=KEY, model="chat", max_tokens=16, temperature=0)
    assert "".join(m.content for m in llm.stream("What is a package?")) == llm.invoke("What is a package?").content


def langchain_invokes_batches_and_streams():
    llm = LangChainOpenAI(base_url=daemon.url + "/v1", api_key=KEY, model="math", max_tokens=8, temperature=0)
    one = llm.invoke(PROMPT)
    prompts = [PROMPT] + [f"{i} + {i} =" for i in range(5)]
    many = llm.batch(prompts)
    assert many[0] == one and many == [llm.invoke(p) for p in prompts]
    generated = llm.generate(prompts)  # one request with a list of prompts
    assert [g[0].text for g in generated.generations] == many
    assert generated.llm_output["token_usage"]["completion_tokens"] > 0
    assert "".join(llm.stream(PROMPT)) == one
    several = LangChainOpenAI(base_url=daemon.url + "/v1", api_key=KEY, model="math", max_tokens=8, n=2, best_of=3)
    assert [len(g) for g in several.generate(prompts).generations] == [2] * len(prompts)
    assert asyncio.run(llm.ainvoke(PROMPT)) == one


with daemon:
    run([openai_lists_models, openai_completes_and_names_what_answered, openai_streams_what_it_would_have_replied,
         openai_takes_every_field, openai_runs_many_at_once, openai_errors_are_its_own_classes, openai_retries_after_429,
         openai_gets_429_from_a_full_queue_and_then_an_answer, openai_reaches_a_tenant_by_its_address, openai_chats,
         langchain_invokes_batches_and_streams])
