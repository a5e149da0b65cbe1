"""Chat templates that mean harm, some that people use, and any number that nobody wrote.

`python -m tests.fuzz.templates 100000` renders so many of the last.
"""

from __future__ import annotations

import resource
import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from random import Random
from typing import Any

from jinja2.defaults import DEFAULT_FILTERS

from basaran_ops.text.chat_template import RENDERING_ERRORS, ChatTemplate
from basaran_ops.text.template_limits import RenderLimits
from basaran_ops.text.tokenizer import Tokenizer

from ..tiny_models import tiny_tokenizer

LOOPS: Mapping[str, str] = {
    "loops in loops": "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4,
    "loops in loops that write": "{% for a in range(99999) %}" * 3 + "xyz" * 99 + "{% endfor %}" * 3,
    "loops with a condition": "{% for a in range(99999) if a < 0 %}{% endfor %}" * 2000,
    "a loop of conditions": "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}x{% endfor %}"
    "{% endfor %}",
    "a recursive loop": "{% for a in range(9) recursive %}{{ loop(range(9)) if loop.depth < 40 }}"
    "{% endfor %}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "a block that calls itself twice": "{% macro f() %}{% endmacro %}{% set ns = namespace(n=0) %}"
    "{% block b scoped %}{% set ns.n = 1 %}{{ self.b() }}{{ self.b() }}{% endblock %}",
    "a set block in a loop": "{% for a in range(99999) %}{% set x %}{% for b in range(99999) %}y{% endfor %}"
    "{% endset %}{% endfor %}",
    "comparisons of long texts": "{% set a = 'x' * 4000000 %}{% set b = 'x' * 4000000 %}"
    "{% for i in range(99999) %}" + "{% if a == b %}{% endif %}" * 500 + "{% endfor %}",
    "filters on filters": "{% for a in range(99999) %}"
    "{{ range(99999) | map('string') | map('length') | sum }}{% endfor %}",
    "lists of lists added up": "{% set x = [range(1000) | list] * 3000 %}{{ x | sum(start=[]) | length }}",
    "looking from the end": "{{ ('a' * 4000000).rfind('b' + 'a' * 2000000) }}",
    "splitting from the end": "{{ ('a' * 4000000).rsplit('b' + 'a' * 2000000) | length }}",
    "stripping many characters": "{% set x = ('b' * 3000000) %}{{ x.strip('a' * 3000000 ~ 'b') }}",
    "tags that are stripped one by one": "{{ ('<!--a-->' * 400000) | striptags | length }}",
    "a codec that takes the square": "{{ ('é' * 400000).encode('punycode') | length }}",
    "a comparison of many": "{% set a = 'x' * 4000000 %}{{ a == " + "a ~ '' == " * 5000 + "a }}",
    "ifs without end": "{% for a in range(99999) %}{% for b in range(99999) %}"
    + "{% if a %}{% endif %}" * 5000
    + "{% endfor %}{% endfor %}",
}

MEMORY: Mapping[str, str] = {
    "a text times a number": "{{ 'x' * 10 ** 10 }}",
    "a number times a text": "{{ 10000000000 * 'x' }}",
    "a list times a number": "{{ ([messages] * 10000000000) | length }}",
    "a tuple times a number": "{{ ((1, 2) * 10000000000) | length }}",
    "a text that doubles": "{% set ns = namespace(x='x') %}"
    "{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | length }}",
    "a text that is joined to itself": "{% set ns = namespace(x='x') %}"
    "{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x | length }}",
    "a text in itself": "{% set ns = namespace(x='x') %}"
    "{% for a in range(60) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "a list that doubles": "{% set ns = namespace(x=[1]) %}"
    "{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | length }}",
    "lists in lists, written": "{% set ns = namespace(x=[1]) %}"
    "{% for a in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "lists in lists, as JSON": "{% set ns = namespace(x=[1]) %}"
    "{% for a in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    "lists in lists, compared": "{% set ns = namespace(x=[1], y=[1]) %}{% for a in range(60) %}"
    "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "mappings in mappings": "{% set ns = namespace(x={}) %}"
    "{% for a in range(60) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x | string }}",
    "mappings from calls": "{% set ns = namespace(x={}) %}"
    "{% for a in range(60) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x | string }}",
    "namespaces in namespaces": "{% set ns = namespace(x=1) %}{% for a in range(60) %}"
    "{% set ns.x = [namespace(a=ns.x, b=ns.x), namespace(a=ns.x, b=ns.x)] * 99 %}{% endfor %}"
    "{{ ns.x | string }}{{ 'x' * 10 ** 10 }}",
    "arguments in arguments": "{% macro f(n) %}{% if n %}{{ f(n - 1, varargs, varargs) }}"
    "{% else %}{{ varargs }}{% endif %}{% endmacro %}{{ f(60, 1) }}",
    "named arguments in named arguments": "{% macro f(n) %}{% if n %}{{ f(n - 1, a=kwargs, b=kwargs) }}"
    "{% else %}{{ kwargs }}{% endif %}{% endmacro %}{{ f(60, a=1) }}",
    "values of a mapping": "{% set x = {'a': ['x' * 4000000] * 2, 'b': ['x' * 4000000] * 2} %}"
    "{% for i in range(99) %}{{ x.values() }}{% endfor %}",
    "a number to a power": "{{ 10 ** (10 ** 10) }}",
    "a power of a power": "{% set ns = namespace(x=3) %}"
    "{% for a in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x > 1 }}",
    "a long number of another base": "{{ ('f' * 4000000) | int(base=16) // ('f' * 2000000) | int(base=16) }}",
    "rounding far": "{{ 5 | round(-1000000000) }}",
    "a number as bytes": "{{ (5).to_bytes(10000000000) | length }}",
    "a wide text": "{{ 'x' | center(10000000000) }}",
    "a text adjusted": "{{ 'x'.ljust(10000000000) | length }}",
    "a text with zeros": "{{ 'x'.zfill(10000000000) | length }}",
    "wide tabs": "{{ ('\\t' * 100000).expandtabs(100000) | length }}",
    "an indented text": "{{ ('\\n' * 100000) | indent(100000) | length }}",
    "an indent of text": "{{ ('\\n' * 100000) | indent('x' * 100000) | length }}",
    "a long replacement": "{{ ('x' * 100000).replace('x', 'y' * 100000) | length }}",
    "a long replacement by a filter": "{{ ('x' * 100000) | replace('x', 'y' * 100000) | length }}",
    "a replacement of nothing": "{{ ('x' * 100000) | replace('', 'y' * 100000) | length }}",
    "a long text between": "{{ ('y' * 100000).join('x' * 100000) | length }}",
    "a long text between, by a filter": "{{ range(99999) | join('x' * 100000) | length }}",
    "a long text between what comes": "{{ ('y' * 100000).join(range(99999) | map('string')) | length }}",
    "a long text for a character": "{{ ('a' * 100000).translate({97: 'x' * 100000}) | length }}",
    "a wide field": "{{ '%10000000000d' % 5 }}",
    "a field whose width is given": "{{ '%*d' % (10000000000, 5) }}",
    "a field of many digits": "{{ '%.10000000000f' % 1.5 }}",
    "many fields": "{{ (('%(a)s' * 1000) % {'a': 'x' * 4000000}) | length }}",
    "a field by a filter": "{{ '%10000000000d' | format(5) }}",
    "a wide format": "{{ '{:10000000000}'.format(5) }}",
    "a format whose width is given": "{{ '{:{}}'.format(5, 10000000000) }}",
    "a format whose width is text": "{{ '{:{}}'.format(5, '10000000000') }}",
    "many formats": "{{ ('{0}' * 99999).format('x' * 100000) | length }}",
    "many formats by a mapping": "{{ ('{a}' * 99999).format_map({'a': 'x' * 100000}) | length }}",
    "a wide format on a map": "{{ '{a:10000000000}'.format_map({'a': 5}) }}",
    "a deep JSON": "{{ (range(99999) | list) | tojson(indent=1000000) | length }}",
    "JSON with long separators": "{{ (range(99999) | list) | "
    "tojson(separators=['x' * 100000, 'y']) | length }}",
    "a batch that is filled": "{{ [1] | batch(10000000000, 'x') | list | length }}",
    "very many parts": "{{ [1] | slice(10000000000) | list | length }}",
    "wrapped by long text": "{{ ('x' * 100000) | wordwrap(1, true, 'y' * 100000) | length }}",
    "the names of links": "{{ ('http://a.aa ' * 10000) | urlize(target='x' * 100000) | length }}",
    "attributes": "{{ dict.fromkeys(range(99999), 'x' * 100000) | xmlattr | length }}",
    "keys of one value": "{{ dict.fromkeys(range(99999), messages * 999) | string | length }}",
    "what is mapped": "{{ range(99999) | map('center', 99999) | list | length }}",
    "a great range": "{{ range(10 ** 10) | list }}",
    "very many lists": "{% for a in range(99999) %}{% set x = range(9999) | list %}{% endfor %}",
    "a list of long lists": "{% set ns = namespace(x=[]) %}{% for a in range(99999) %}"
    "{% set ns.x = ns.x + [range(999) | list] %}{% endfor %}",
    "an endless text": "{% for a in range(99999) %}" + "x" * 10000 + "{% endfor %}",
    "an endless text of variables": "{% set x = 'x' * 100000 %}"
    "{% for a in range(99999) %}{{ x }}{% endfor %}",
    "an endless macro": "{% macro f() %}{% for a in range(99999) %}"
    + "x" * 10000
    + "{% endfor %}{% endmacro %}"
    "{{ f() | length }}",
    "slices": "{% set x = 'x' * 4000000 %}{% set ns = namespace(x=[]) %}{% for a in range(99999) %}"
    "{% set ns.x = ns.x + [x[1:]] %}{% endfor %}",
    "a constant": "{% set x = 'x' * 10000000000 %}",
    "a constant where code is made": "{% autoescape 'x' | center(10000000000) %}{% endautoescape %}",
}

INTERNALS: Mapping[str, str] = {
    "a class": "{{ messages.__class__ }}{{ raise_exception('reached ' ~ messages.__class__.__mro__) }}",
    "the subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "the globals": "{{ raise_exception.__globals__['os'] }}",
    "the builtins": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "an attribute by a filter": "{{ (messages | attr('__class__')).x }}",
    "an attribute by a map": "{{ ([messages] | map(attribute='__class__.__mro__') | list)[0][1] }}",
    "a format that reads": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "a format on a map that reads": "{{ '{a.__class__.__init__.__globals__}'.format_map({'a': messages}) }}",
    "an item that reads": "{{ messages['__class__']['__base__'] }}",
    "the template itself": "{{ self._TemplateReference__context.environment.x }}",
    "the loop": "{% for a in messages %}{{ loop.__init__.__globals__.x }}{% endfor %}",
    "a namespace": "{% set ns = namespace(__class__=1) %}",
    "a list that changes": "{{ messages.append(1) }}",
    "a mapping that changes": "{{ messages[0].update({'a': 1}) }}",
    "a generator's frame": "{{ (messages | map('string')).gi_frame.f_globals.x }}",
    "a macro's function": "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}",
    "an import": "{% import 'os' as os %}{{ os }}",
    "an include": "{% include '/etc/passwd' %}",
    "a parent": "{% extends '/etc/passwd' %}",
}

ERRORS: Mapping[str, str] = {
    "too many nested loops": "{% for a in messages %}" * 25 + "{% endfor %}" * 25,
    "a break outside of loops": "{% break %}",
    "a continue outside of loops": "{% if messages %}{% continue %}{% endif %}",
    "a cycler of nothing": "{{ cycler() }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a block in itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "deep tuples": "{% set ns = namespace(x=()) %}"
    "{% for a in range(99999) %}{% set ns.x = (ns.x,) %}{% endfor %}{{ {}[ns.x] }}",
    "deep lists": "{% set ns = namespace(x=[]) %}"
    "{% for a in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x == [] }}",
    "deep brackets": "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "many attributes": "{{ messages" + ".a" * 50000 + " }}",
    "many sums": "{{ 1" + "+ 1" * 50000 + " }}",
    "many nots": "{{ " + "not " * 50000 + "1 }}",
    "an end that is missing": "{% for a in messages %}",
    "an unknown tag": "{% nonsense %}",
    "an unknown filter": "{{ messages | nonsense }}",
    "an unknown filter that is mapped": "{{ messages | map('nonsense') | list }}",
    "an unknown test": "{{ messages is nonsense }}",
    "a number by nothing": "{{ 1 / 0 }}",
    "no number": "{{ messages | sum }}",
    "something to call": "{{ messages() }}",
    "something to go through": "{% for a in 5 %}{% endfor %}",
    "something that is not there": "{{ nothing.at.all }}",
    "an own error": "{{ raise_exception('roles must alternate') }}",
    "an own error without words": "{{ raise_exception() }}",
    "an own error with many words": "{{ raise_exception('x' * 4000000) }}",
    "a lone surrogate": "{{ '\ud800' }}",
    "no time": "{{ strftime_now(5) }}",
    "a key that cannot be one": "{{ {[]: 1} }}",
    "an order that is none": "{{ [1, 'a', messages] | sort }}",
    "a template that is too long": "x" * 2_000_000,
}

USUAL: Mapping[str, str] = {
    "ChatML": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "Llama 2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "thoughts that are left out": "{%- set ns = namespace(last=messages|length - 1, multi=true) %}\n"
    "{%- for message in messages[::-1] %}\n    {%- set index = (messages|length - 1) - loop.index0 %}\n"
    "    {%- if ns.multi and message.role == 'user' and message.content is string and "
    "not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}\n"
    "        {%- set ns.multi = false %}\n        {%- set ns.last = index %}\n    {%- endif %}\n"
    "{%- endfor %}\n"
    "{%- for message in messages %}\n    {%- if '</think>' in message.content %}\n"
    "        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}\n"
    "        {%- set thought = message.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}\n"
    "    {%- else %}{%- set content, thought = message.content, '' %}{%- endif %}\n"
    "    {%- if loop.index0 > ns.last and thought %}{{ '<think>' ~ thought ~ '</think>' }}{%- endif %}\n"
    "    {{- '<' ~ message.role ~ '>' + content | trim + '\\n' }}\n{%- endfor %}",
    "tools by macros": "{%- macro render(value, depth=0) -%}{%- if value is mapping -%}<"
    "{%- for key, item in value | items -%}{{ key | tojson }}: {{ render(item, depth + 1) }}"
    "{%- if not loop.last %}, {% endif %}{%- endfor -%}>{%- elif value is string -%}{{ value | tojson }}"
    "{%- elif value is iterable -%}[{%- for item in value -%}{{ render(item, depth + 1) }}"
    "{{ ', ' if not loop.last }}{%- endfor -%}]{%- else -%}{{ value | string | lower }}{%- endif -%}"
    "{%- endmacro -%}"
    "{%- for message in messages | selectattr('role', 'ne', 'tool') -%}{{ render(message) }}"
    "{{ message | tojson(indent=2) }}{{ message.content[:5] }}{{ '%s:%d' % (message.role, loop.index) }}"
    "{{ '{:>6}'.format(loop.index) }}{%- if loop.previtem is defined %}{{ loop.previtem.role }}{% endif %}"
    "{%- if loop.index > 3 %}{% break %}{% endif %}{%- endfor -%}",
    "filters": "{{ messages | map(attribute='role') | unique | sort | join(', ') }}"
    "{% for role, group in messages | groupby('role') %}{{ role }} {{ group | length }}{% endfor %}"
    "{% for pair in messages | batch(2) %}"
    "{{ (pair | first).role | title }}{{ pair[-1].role | upper }}{% endfor %}"
    "{{ messages[0].content | replace('e', '3') | indent(2) | truncate(20) | center(30) }}"
    "{{ [3, 1, 2] | sort(reverse=true) | list }}{{ (1, 2)[1] }}{{ {'a': 1, 'b': [2]} | dictsort }}"
    "{{ 7 // 2 ** 2 % 3 * 5 - 1 + 2.5 | round(1) }}{{ [1, 2] * 2 + [3] }}{{ 1 < 2 <= 2 != 3 }}"
    "{{ messages[-1].get('name', 'nobody') | default('x', true) }}{{ 3 in [1, 2, 3] }}{{ (1, 2)[::-1] }}"
    "{% set text %}{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }} "
    "{% else %}none{% endfor %}{% endset %}{{ text | trim }}{{ '\\t'.join(['a', 'b']) }}"
    "{% filter upper %}{{ messages[0].role }}{% endfilter %}{% generation %}x{% endgeneration %}"
    "{% call(x) f() %}{{ x }}{% endcall %}".replace(
        "{% call", "{% macro f() %}<{{ caller(5) }}>{% endmacro %}{% call"
    ),
    "a recursive loop": "{% set tree = [{'n': 1, 'c': [{'n': 2, 'c': []}, {'n': 3, 'c': [{'n': 4}]}]}] %}"
    "{% for node in tree recursive %}({{ node.n }}.{{ loop.depth }}{{ loop(node.c) if node.c }}){% endfor %}",
}


# -- templates that nobody wrote ---------------------------------------------------------------------------

MESSAGES = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello\n\tworld é😀"}]

LIMITS = RenderLimits(steps=100_000, seconds=1.0)
"""Those of a server, but that loops end sooner."""

SECONDS = 4.0
"""A render may overrun its limit by one operation on the largest values."""

MEGABYTES = 400
"""What all renders together may add to the memory of the process."""

ATOMS = {
    "text": ["'a'", "'x\\ny'", "''", "'<a href=1>'", "'é😀'", "bos_token", "messages[1].content", "ns.t"],
    "number": ["0", "1", "-1", "3", "1.5", "9", "255", "9999", "99999", "10000000000", "-99999", "ns.n"],
    "list": ["messages", "range(99)", "range(99999)", "[]", "messages[0]", "ns.l", "{'a': 1}"],
    "any": ["ns", "nothing", "true", "none", "cycler", "f", "'%s'", "'{}'", "'{:9}'", "'%(a)d'", "loop", "v"],
}
"""Expressions by what they give; ns.t, ns.n and ns.l hold what the template put there."""

MADE = {
    "text": [
        "({text} ~ {any})",
        "({text} + {text})",
        "({text} * {number})",
        "({text})[{number}:]",
        "({text})[::{number}]",
        "({list} | join({text}))",
        "({list} | map('string') | join({text}))",
        "({any} | string)",
        "({any} | tojson)",
        "({any} | tojson(indent={number}))",
        "('%s%s' % ({any}, {text}))",
        "('%{number}s' % {text})",
        "('{{0}}{{1:{number}}}{{0}}'.format({text}, {text}))",
        "({text}).replace({text}, {text})",
        "({text} | replace({text}, {text}))",
        "({text}).join([{text}, {text}])",
        "({text} | indent({number}))",
        "({text} | indent({text}))",
        "({text} | center({number}))",
        "({text}).ljust({number})",
        "({text}).expandtabs({number})",
        "({text}).translate({{97: {text}, 10: {number}}})",
        "({text}).strip({text})",
        "({text} | wordwrap({number}))",
        "({text} | truncate({number}, true, {text}))",
        "({text} | {plain})",
        "f({any}, {any})",
        "({text} if {any} else {any})",
    ],
    "number": [
        "({number} + {number})",
        "({number} - {number})",
        "({number} * {number})",
        "({number} ** {number})",
        "({number} // {number})",
        "({number} % {number})",
        "({any} | length)",
        "({text} | int({number}))",
        "({number} | round({number}))",
        "({text}).count({text})",
        "({text}).rfind({text})",
        "({list} | map('string') | map('length') | sum)",
        "({any} == {any})",
        "({text} in {text})",
        "({any} in {list})",
    ],
    "list": [
        "[{any}, {any}]",
        "({any}, {any})",
        "{{'a': {any}, 'b': {any}}}",
        "({list} + {list})",
        "({list} * {number})",
        "({list})[{number}:]",
        "({list} | list)",
        "({list} | map('{plain}') | list)",
        "({list} | map('center', {number}) | list)",
        "({list} | batch({number}, {any}) | list)",
        "({list} | slice({number}) | list)",
        "({list} | map('string') | sort | list)",
        "({list} | unique | list)",
        "([{list}, {list}] | sum(start=[]))",
        "({text}).split({text})",
        "({text}).rsplit({text}, {number})",
        "({text} | list)",
        "dict(a={any}, b={any})",
        "dict.fromkeys({list}, {any})",
        "({list} | select | list)",
    ],
    "any": [
        "{text}",
        "{number}",
        "{list}",
        "({any}).{method}({any})",
        "({any} | {filter}({any}))",
        "({any})[{any}]",
    ],
}
PLAIN = [
    "upper",
    "title",
    "trim",
    "string",
    "e",
    "capitalize",
    "striptags",
    "urlize",
    "wordcount",
    "length",
    "list",
]
METHODS = sorted(
    {name for kind in (str, bytes, int, float, list, dict, tuple) for name in dir(kind) if name[0] != "_"}
)


class RandomTemplates:
    """Templates by chance, which may well have no sense, but can do all that templates can."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def template(self) -> str:
        start = "{% set ns = namespace(t='t', n=5, l=[1, 'a']) %}{% macro f(a, b=2) %}"
        return start + f"{self._body(1)}{{% endmacro %}}" + self._body(3)

    def _body(self, depth: int) -> str:
        return "".join(self._statement(depth) for _ in range(self._random.randint(1, 3)))

    def _statement(self, depth: int) -> str:
        kind = self._random.choice(["write", "text", "number", "list"] + ["for", "if", "keep"] * (depth > 0))
        if kind == "write":
            return f"{{{{ {self._expression('any', 3)} }}}}text"
        if kind in ("text", "number", "list"):
            return f"{{% set ns.{kind[0]} = {self._expression(kind, 3)} %}}"
        body = self._body(depth - 1)
        if kind == "if":
            return f"{{% if {self._expression('any', 2)} %}}{body}{{% else %}}x{{% endif %}}"
        if kind == "keep":
            return f"{{% set ns.t %}}{body}{{% endset %}}"
        test = self._random.choice(["", "", " if v", " recursive"])
        return f"{{% for v in {self._expression('list', 2)}{test} %}}{body}{{% endfor %}}"

    def _expression(self, kind: str, depth: int) -> str:
        if depth == 0 or self._random.random() < 0.1:
            return self._random.choice(ATOMS[kind])
        names = {name: self._expression(name, depth - 1) for name in ("text", "number", "list", "any")}
        names["plain"] = self._random.choice(PLAIN)
        names["method"] = self._random.choice(METHODS)
        names["filter"] = self._random.choice(sorted(DEFAULT_FILTERS))
        return self._random.choice(MADE[kind]).format(**names)


class Renders:
    """Renders within time and memory, or fails."""

    def __init__(self) -> None:
        self._tokenizer = Tokenizer(tiny_tokenizer())
        self._megabytes = _megabytes()
        self.slowest = 0.0

    def render(self, template: str, messages: list[dict[str, Any]] | None = None) -> str:
        """The text, or the error."""
        # Python's compiler warns of what a template says that cannot be.
        warnings.simplefilter("ignore", SyntaxWarning)
        chat = ChatTemplate(self._tokenizer, template, LIMITS)
        # Once for a model, and in proportion to what its author wrote; what cannot be compiled is told below.
        with suppress(*RENDERING_ERRORS):
            chat._compiled(template)
        started = time.thread_time()
        try:
            ids = chat.encode(
                MESSAGES if messages is None else messages,
                add_generation_prompt=True,
                continue_final_message=False,
                variables={},
            )
            told = self._tokenizer.decode(ids)
        except ValueError as error:
            told = str(error)
            assert told.startswith("the chat template cannot render these messages: "), told
        seconds = time.thread_time() - started
        self.slowest = max(self.slowest, seconds)
        assert seconds < SECONDS, f"{seconds:.1f} s"
        assert self.grown < MEGABYTES, f"{self.grown} MB"
        return told

    @property
    def grown(self) -> int:
        """Megabytes of the process beyond those of the beginning."""
        return _megabytes() - self._megabytes

    def render_random(self, seeds: range) -> int:
        """How many of them gave a text."""
        good = 0
        for seed in seeds:
            template = RandomTemplates(seed).template()
            try:
                told = self.render(template)
            except BaseException:
                print(f"seed {seed}: {template}")
                raise
            good += not told.startswith("the chat template cannot")
        return good


def _megabytes() -> int:
    """The most memory that this process has had."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most // (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    count, renders = int(sys.argv[1]), Renders()
    started = time.monotonic()
    good = renders.render_random(range(count))
    print(f"{count} templates in {time.monotonic() - started:.0f} s, {good} of them gave a text")
    print(f"the slowest took {renders.slowest:.2f} s, all {renders.grown} MB")


if __name__ == "__main__":
    main()
