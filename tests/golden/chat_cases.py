#!/usr/bin/env python3
"""Chat templates against jinja2 as transformers sets it up.

    python3 -m venv /tmp/v && /tmp/v/bin/pip install jinja2==3.1.6 transformers==5.23.0
    /tmp/v/bin/python tests/golden/chat_cases.py make
        renders the templates below over the conversations below and writes
        tests/golden/chat_cases.json
    /tmp/v/bin/python tests/golden/chat_cases.py compare [FILE.jinja...]
        compares build/test with jinja2 on those templates, or on FILEs (real ones), over the same
        conversations; says which FILE uses what is not supported
"""
import json
import os
import subprocess
import sys
import tempfile

from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

HERE = os.path.dirname(os.path.abspath(__file__))

# Templates in the manner of each family: its layout and the constructs its published ones are made of.
TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
              "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama2": """{% if messages[0]['role'] == 'system' %}
{% set rest = messages[1:] %}{% set system = '<<SYS>>\n' + messages[0]['content'].strip() + '\n<</SYS>>\n\n' %}
{% else %}
{% set rest = messages %}{% set system = '' %}
{% endif %}
{%- for message in rest -%}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{ raise_exception('user and assistant must take turns') }}
  {%- endif -%}
  {%- set text = system + message['content'] if loop.index0 == 0 else message['content'] -%}
  {%- if message['role'] == 'user' -%}
    {{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}
  {%- elif message['role'] == 'assistant' -%}
    {{ ' ' ~ text | trim ~ ' ' ~ eos_token }}
  {%- endif -%}
{%- endfor -%}
""",
    "llama3": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "01 Jan 2025" %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{#- the first system message is taken out #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: tools\\n" }}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("one call at a time") }}
        {%- endif %}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "mistral1": "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
                "{{ raise_exception('roles must alternate, not ' ~ m['role']) }}{% endif %}{% if m['role'] == 'user' %}"
                "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
                "{{ m['content'] + eos_token + ' ' }}{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}",
    "mistral3": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("after the system message, roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token}}
    {%- else %}
        {{- raise_exception("only user and assistant") }}
    {%- endif %}
{%- endfor %}
""",
    "vicuna": """{% if messages and messages[0].role == 'system' %}{{ messages[0].content }}{% set messages = messages[1:] %}
{% else %}A conversation between a user and an assistant.{% endif %}
{% for message in messages %}
    {%- if message.role == 'user' %} USER: {{ message.content }}
    {%- else %} ASSISTANT: {{ message.content }}</s>{% endif %}
{% endfor %}
{% if add_generation_prompt %} ASSISTANT:{% endif %}
""",
    "zephyr": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}"
              "\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif "
              "message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
              "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "gemma": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_prefix = "" -%}{%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'assistant') -%}{%- set role = "model" -%}{%- else -%}{%- set role = message['role'] -%}{%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\n'}}
{%- endif -%}
""",
    "qwen": """{%- set ns = namespace(multi=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi and message.role == "user" and message.content is string and not(message.content.startswith('<t>') and message.content.endswith('</t>')) %}
        {%- set ns.multi = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or (not loop.last and reasoning)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""",
    "macros": """{%- macro turn(role, text='', end=eos_token) -%}
<{{ role }}>{{ text | trim }}{{ end }}
{%- endmacro -%}
{%- macro all(list) %}{% for m in list %}{{ turn(m.role, m.content if m.content is string else m.content | map(attribute='text') | join('|')) }}{% endfor %}{% endmacro -%}
{{ all(messages) }}{% call(x) outer('a') %}[{{ x }}]{% endcall %}{{ turn('end', end='.') }}
{%- macro outer(v) %}({{ caller(v ~ 1) }}){% endmacro %}
""".replace("{% call(x) outer('a') %}[{{ x }}]{% endcall %}", ""),
    "caller": "{% macro outer(v) %}({{ caller(v ~ 1) }}){% endmacro %}{% call(x) outer('a') %}[{{ x }}]{% endcall %}"
              "{% filter upper | trim %} abc {{ 1 }} {% endfilter %}{% set b %} x {{ messages|length }}{% endset %}{{ b }}"
              "{% set c | trim | upper %} y {% endset %}{{ c }}{% with q = 1, w = 2 %}{{ q + w }}{% endwith %}{{ q is defined }}"
              "{% generation %}{% set z = 3 %}{{ z }}{% endgeneration %}{{ z is defined }}",
    "filters": """{{ messages | map(attribute='role') | join(', ') }}
{{ messages | selectattr('role', 'ne', 'system') | map(attribute='content') | map('string') | map('length') | list }}
{{ messages | rejectattr('role', 'in', ['user']) | list | length }} {{ 'aBc dEf-gh'|title }} {{ 'aBc'|capitalize }} {{ 'x' | upper ~ 'Y' | lower }}
{{ [3, 1, 2]|sort }} {{ ['b', 'A', 'c']|sort(reverse=true)|join }} {{ {'b': 1, 'a': 2}|dictsort }} {{ {'b': 1, 'a': 2}|items|list }}
{{ [1, 2, 2, 3]|unique|list }} {{ [1, 2, 3]|sum }} {{ [1, 5, 3]|max }} {{ ['b', 'a']|min }} {{ [1,2,3]|reverse|list }} {{ 'abc'|reverse }}
{{ 'a,b,c'.split(',') }} {{ 'a b  c'.split() }} {{ 'a,b,c'.split(',', 1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ 'x'.join(['1', '2']) }}
{{ 'abcabc'.replace('b', 'X', 1) }} {{ 'abcabc'|replace('b', 'Y') }} {{ 'abc'.replace('', '-') }} {{ 'héllo'|length }} {{ 'héllo'[1] }} {{ 'héllo'[-3:] }} {{ 'héllo'[::-1] }} {{ 'héllo'[1:4:2] }}
{{ 'abc'.find('c') }} {{ 'abc'.find('x') }} {{ 'banana'.count('an') }} {{ 'a-b-c'.partition('-') }} {{ 'a-b-c'.rpartition('-') }} {{ 'prefix-x'.removeprefix('prefix-') }}
{{ 'l1\nl2\n\nl3'|indent }} {{ 'l1\nl2'|indent(2, true) }} {{ 'l1\\r\nl2'.splitlines() }}
{{ 5|default(1) }} {{ nope|default('d') }} {{ ''|default('e', true) }} {{ none|default('n') }} {{ '42'|int + 1 }} {{ 'x'|int(7) }} {{ '1.5'|float }} {{ 2.5|round }} {{ 3|abs }} {{ (-3)|abs }}
{{ [1, [2, 'a\\'b'], {'k': none}] }} {{ (1,) }} {{ () }} {{ 'it\\'s "q"' }} {{ ['it\\'s', 'a"b', 'é\\n\\t\\\\'] }} {{ true }} {{ none }} {{ 1.0 }} {{ 1e20 }} {{ 0.1 + 0.2 }} {{ 1e-7 }} {{ 123456789.125 }}
{{ messages[0] | tojson }} {{ {'a': [1, 2.5, none, true, 'é"\\n<&'], 'b': {}} | tojson }} {{ {'a': [1, {'c': []}], 'b': {}} | tojson(indent=2) }} {{ {'b': 1, 'a': 'é🙂'} | tojson(sort_keys=true, ensure_ascii=true) }} {{ [1, 2] | tojson(separators=(',', ':')) }}
{{ 'a b c' | wordcount }} {{ 'abc' | first }} {{ 'abc' | last }} {{ [] | first is defined }} {{ 'x' in 'xyz' }} {{ 1 in [1, 2] }} {{ 'k' in {'k': 1} }} {{ 3 not in [1] }} {{ 'a' 'b' "c" }}
{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 7.5 % 2 }} {{ 1 < 2 < 3 }} {{ 1 < 2 > 3 }} {{ not 1 == 2 }} {{ 'a' * 3 }} {{ [0] * 2 + [1] }} {{ -2 ** 2 }} {{ 1 if false }}|{{ 1 if true else 2 }}
{{ ' x '.strip() }}|{{ 'xxyxx'.strip('x') }}|{{ ' x '.rstrip() }}|{{ 'abc'.startswith(('x', 'a')) }}|{{ 'abc'.endswith('bc') }}|{{ '12'.isdigit() }}|{{ 'ab1'.isalnum() }}|{{ 'Ab'.isupper() }}|{{ 'a b'.title() }}
{{ 1 is odd }} {{ 2 is even }} {{ 4 is divisibleby 2 }} {{ 4 is divisibleby(3) }} {{ 1 is number }} {{ 'a' is string }} {{ {} is mapping }} {{ [] is sequence }} {{ none is none }} {{ x is undefined }} {{ 1 is integer }} {{ 1.0 is float }} {{ true is boolean }} {{ 'a' is lower }} {{ 2 is gt 1 }} {{ 2 is in [2] }} {{ 'a' is eq 'a' }} {{ none is sameas none }} {{ 1 is not none }}
""",
    "loops": """{% for a, b in [(1, 2), (3, 4)] %}{{ loop.index }}/{{ loop.length }} {{ loop.revindex }} {{ loop.revindex0 }} {{ a + b }}{{ ',' if not loop.last }}{% endfor %}
{% for i in range(5) if i is odd %}{{ i }}{{ loop.index }}{% else %}none{% endfor %}
{% for i in [] %}{% else %}empty{% endfor %}
{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}
{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }};{% endfor %}{% for k in {'a': 1} %}{{ k }}{% endfor %}{% for c in 'héy' %}{{ c }}.{% endfor %}
{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}
{% for i in range(3) %}{{ loop.cycle('a', 'b') }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.changed(i // 2) }}{% endfor %}
{% for m in messages %}{% for n in messages %}{{ loop.index0 }}{% endfor %}{{ loop.index0 }}{% endfor %}
{% set ns = namespace(a=1, b='x') %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ ns.b }}{{ ns.c is defined }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% if a == 2 %}x{% elif b == 2 %}y{% else %}z{% endif %}
{% raw %}{{ not }} {% this %}{% endraw %} {#- comment -#}  |{# c #}|
  {%- if true %} a {%+ if true %} b{% endif %}  {% endif -%}
  end {{- ' x ' -}} y {%- raw -%}  z  {%- endraw +%}
 {% set e = messages | selectattr('role', 'eq', 'nobody') %}{{ 'truthy' if e else 'falsy' }}{{ e | list }}{{ missing }}{{ missing }}
{{ dict(a=1, b=2) }}{{ dict(a=1).get('z', 5) }}{{ {'a': 1}.get('q') }}{{ {'a': {'b': 'c'}}.a.b }}{{ {'items': 1}['items'] }}{{ messages[0].content is defined }}{{ messages[99] is defined }}{{ 'u\\u00e9\\x41\\101' }}
""",
    "trailing": "line one\n  {% if true %}\n  kept\n  {% endif %}\n{{ 'x' }}\n\t{# c #}\nlast\n\n",
    "crlf": "a\r\n{% if true %}\r\nb\r\n{% endif %}\r\nc\r\n",
    "nowhere": "{{ messages[0].nowhere.at_all }}",
    "parts": "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
             "{{ part.text if part.type == 'text' else raise_exception('no images') }}{% endfor %}{% endif %};{% endfor %}",
}

U, A, S = "user", "assistant", "system"
CONVERSATIONS = [
    [(U, "Hi")],
    [(S, "  Be brief.\n"), (U, " What is 1 < 2 & \"3\"? ")],
    [(U, "a"), (A, "b "), (U, "\u00a0c\u3000\n"), (A, "<think>\nhm\n</think>\n\nd\n")],
    [(S, "Sys"), (U, "first"), (A, "second"), (U, "<|im_end|></s>[/INST] <|eot_id|> third\u00e9\U0001f642")],
    [(U, "one"), (U, "two")],
    [(A, "assistant first")],
    [(S, "only system")],
    [(U, [{"type": "text", "text": " part one "}, {"type": "text", "text": "part\ttwo"}])],
]


def variables(conversation, generation, extra=None):
    v = {"messages": [{"role": r, "content": c} for r, c in conversation], "tools": None,
         "documents": None, "add_generation_prompt": generation, "bos_token": "<s>",
         "eos_token": "</s>", "unk_token": "<unk>"}
    v.update(extra or {})
    return v


def reference(template, v):
    try:
        return {"text": _compile_jinja_template(template).render(**v)}
    except Exception as e:  # whatever Python throws: ours must refuse, too
        return {"error": f"{type(e).__name__}: {e}"}


def cases(templates, short=False):
    for name, template in templates.items():
        for i, conversation in enumerate(CONVERSATIONS):
            if short and name in ("filters", "loops", "caller", "trailing", "crlf", "nowhere") and i > 1:
                continue
            for generation in (False, True) if i in (0, 3) else (True,):
                extra = {"enable_thinking": False, "date_string": "2 Feb"} if i == 3 else {}
                v = variables(conversation, generation, extra)
                yield name, v, reference(template, v)


def continued():
    """continue_final_message, through transformers' own function."""
    for name in ("chatml", "llama3", "zephyr", "gemma", "mistral1"):
        for text in ("The answer is", "The answer is  ", " x"):
            v = variables([(U, "q"), (A, text)], False)
            messages = v.pop("messages")
            rendered, _ = render_jinja_template([messages], chat_template=TEMPLATES[name],
                                                continue_final_message=True, **{
                                                    k: x for k, x in v.items() if k not in
                                                    ("tools", "documents", "add_generation_prompt")})
            yield {"template": name, "messages": messages, "text": rendered[0]}


def make():
    out = {"templates": TEMPLATES, "cases": [
        {"template": n, "vars": v, **want} for n, v, want in cases(TEMPLATES, short=True)],
        "continued": list(continued())}
    with open(os.path.join(HERE, "chat_cases.json"), "w", encoding="utf-8") as f:
        f.write('{"templates": ' + json.dumps(out["templates"], indent=1) + ',\n"cases": [\n' +
                ",\n".join(json.dumps(c) for c in out["cases"]) + '\n],\n"continued": [\n' +
                ",\n".join(json.dumps(c) for c in out["continued"]) + "\n]}\n")
    print(len(out["cases"]), "cases,", sum("error" in c for c in out["cases"]), "refused")


def compare(paths):
    bad = 0
    templates = {p: open(p, encoding="utf-8", newline="").read() for p in paths} or TEMPLATES
    for name, template in templates.items():
        found = [{"template": name, "vars": v, **want} for _, v, want in cases({name: template})]
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as f:
            json.dump({"templates": {name: template}, "cases": found, "continued": []}, f)
        ended = subprocess.run([os.path.join(HERE, "../../build/test"), "chat_reference_file"],
                               env=dict(os.environ, CHAT_CASES=f.name), stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
        os.unlink(f.name)
        errors = sum("error" in c for c in found)
        print(f"{name}: {len(found)} cases ({errors} refused by both):",
              "equal" if ended.returncode == 0 else ended.stdout.splitlines()[0][:400])
        bad |= ended.returncode
    return bad


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        make()
    elif sys.argv[1:2] == ["compare"]:
        sys.exit(compare(sys.argv[2:]))
    else:
        sys.exit(__doc__)
