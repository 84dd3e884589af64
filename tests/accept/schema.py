"""schemathesis over /openapi.json of both listeners: first the document as it is, then, for what is accepted, the document
narrowed to what the demo's models can do (their vocabulary and context; no two fields that contradict each other)."""
import json
import os
import subprocess
import sys
import tempfile
import urllib.request

from daemon import Daemon

KEY = "accept-key-of-the-tests"
ST = os.path.join(os.path.dirname(sys.executable), "st")
# A field of its own may be right where the whole is not: these need a look at two fields.
NEED_ANOTHER = ["add_generation_prompt", "add_special_tokens", "best_of", "chat_template_kwargs", "continue_final_message",
                "max_completion_tokens", "min_tokens", "stream_options", "prompt_logprobs", "top_logprobs"]


def run(what, location, *options):
    command = [ST, "run", location, "--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--seed", "1",
               "--warnings", "off", "-H", f"Authorization: Bearer {KEY}", *options]
    with tempfile.TemporaryDirectory() as folder:  # it leaves notes where it runs
        r = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200, cwd=folder)
    cases = [line.strip() for line in r.stdout.splitlines() if "generated," in line]
    if r.returncode != 0 or not cases:
        print(r.stdout[-20000:])
        sys.exit(f"accept: schemathesis found fault with {what}")
    print(f"pass  schemathesis, {what}: {cases[0]}", flush=True)


def narrow(document, vocab):
    """Only what a request to /t/chat/... can be answered 200 for."""
    document["paths"] = {path: methods for path, methods in document["paths"].items() if path.startswith("/t/{model}/")}
    document["components"]["schemas"]["Name"] = {"enum": ["chat"]}

    def visit(schema, closed):
        if closed and "properties" in schema:  # jansson refuses some JSON even where nobody reads it: NUL in a key, 2^64
            schema["additionalProperties"] = False
        if closed and schema.get("type") == "string":  # three messages of three texts fit the demo's context
            schema["maxLength"] = min(12, schema.get("maxLength", 12))
        if closed and schema.get("type") == "array":
            schema["maxItems"] = min(3, schema.get("maxItems", 3))
        if schema.get("maximum") == 2147483647 and schema.get("minimum") == 0 and schema.get("type") == "integer":
            schema["maximum"] = vocab - 1
        for child in schema.values():
            for item in child if isinstance(child, list) else [child]:
                if isinstance(item, dict):
                    visit(item, closed)

    visit(document["components"]["schemas"], False)
    visit(document["components"]["schemas"]["ChatCompletionRequest"]["properties"]["messages"], True)  # /tokenize points there
    for path, methods in document["paths"].items():
        for operation in methods.values():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            body = document["components"]["schemas"].get(body.get("$ref", "").split("/")[-1], body)
            visit(body, True)
            properties = body.get("properties", {})
            for name in NEED_ANOTHER:
                properties.pop(name, None)
            if "max_tokens" in properties:
                body["required"].append("max_tokens")  # chat fills the context without
                properties["max_tokens"] = {"type": "integer", "minimum": 0, "maximum": 4}
                properties["n"]["maximum"] = 3
                properties["logit_bias"] = {"type": "object", "maxProperties": 3,
                                            "propertyNames": {"pattern": "^[0-9]{1,3}$"},
                                            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}}
    return document


with Daemon() as daemon:  # one of its own: it removes the tenants it hears of
    run("the admin API", daemon.admin + "/openapi.json", "-n", "25", "--exclude-checks", "positive_data_acceptance")
with Daemon(key=KEY) as daemon:
    run("the public API", daemon.url + "/openapi.json", "-n", "25", "--exclude-checks", "positive_data_acceptance")
    request = urllib.request.Request(daemon.url + "/openapi.json", headers={"Authorization": "Bearer " + KEY})
    with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
        json.dump(narrow(json.load(urllib.request.urlopen(request)), 4096), f)
        f.flush()
        run("what it accepts", f.name, "-u", daemon.url, "-n", "50", "--mode", "positive")
    request.full_url = daemon.url + "/metrics"
    for line in urllib.request.urlopen(request).read().decode().splitlines():
        if 'route="/v1/completions",status="2xx"' in line:
            answered = int(float(line.split()[-1]))
    assert answered > 100, answered  # the narrowed document is not refused for another reason
    print(f"pass  schemathesis made {answered} completions", flush=True)
