"""Templates are foreign code: what they may do has an end, and what they may ask for has a bound."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from specx.backends.errors import TemplateError
from specx.engine.text.template import ChatTemplate

USER = {"role": "user", "content": "Hello"}


def grown(step: str, last: str, first: str = "[1]") -> str:
    """A template that repeats `step` on ns.a and then writes `last`."""
    return (
        f"{{% set ns = namespace(a={first}, b={first}) %}}{{% for i in range(60) %}}{{% set ns.a = {step} %}}"
        f"{{% endfor %}}{{{{ {last} }}}}"
    )


LONG = "{% set s = 'a' * 9000000 %}"
HOSTILE = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "filtered loops": "{% for i in range(9999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",  # noqa: E501
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1, 1]) if loop.depth < 60 }}{% endfor %}",
    "range": "{{ range(10 ** 9) }}",
    "repetition": "{{ 'a' * 10 ** 12 }}",
    "list repetition": "{{ [1] * 10 ** 12 }}",
    "power": "{{ 9 ** 9 ** 9 ** 9 }}",
    "product": grown("ns.a * ns.a", "ns.a", "3"),
    "long output": "{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
    "held strings": grown("ns.a + ['a' * 9000000 ~ i]", "1"),
    "macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "branching macro": "{% macro m(n) %}{% if n %}{{ m(n-1) ~ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "macro of text": "{% macro m(n) %}" + "x" * 9999 + "{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}"
    "{% endmacro %}{{ m(60) }}",
    "doubling": grown("ns.a ~ ns.a", "1", "'a'"),
    "doubling sum": grown("ns.a + ns.a", "1", "'a'"),
    "doubling list": grown("ns.a + ns.a", "1"),
    "doubling join": grown("ns.a | join(ns.a)", "1", "'ab'"),
    "doubling block": "{% set ns = namespace(a='a') %}{% for i in range(60) %}{% set x %}{{ ns.a }}{{ ns.a }}"
    "{% endset %}{% set ns.a = x %}{% endfor %}",
    "shared elements": grown("[ns.a, ns.a]", "ns.a"),
    "shared attributes": grown("namespace(x=ns.a, y=ns.a)", "ns.a"),
    "shared in JSON": grown("[ns.a, ns.a]", "ns.a | tojson"),
    "shared, formatted": grown("[ns.a, ns.a]", "'{}'.format(ns.a)"),
    "shared, printed": grown("[ns.a, ns.a]", "'%s' % ns.a", "(1,)"),
    "shared, hashed": grown("(ns.a, ns.a)", "{ns.a: 1}", "(1,)"),
    "shared, looked up": grown("(ns.a, ns.a)", "{1: 1}[ns.a]", "(1,)"),
    "shared, got": grown("(ns.a, ns.a)", "{1: 1}.get(ns.a)", "(1,)"),
    "center": "{{ 'a' | center(10 ** 10) }}",
    "ljust": "{{ 'a'.ljust(10 ** 10) }}",
    "zfill": "{{ 'a'.zfill(10 ** 10) }}",
    "replace": LONG + "{{ s.replace('a', s) }}",
    "replace filter": LONG + "{{ s | replace('a', s) }}",
    "join": LONG + "{{ s.join(range(9999) | map('string')) }}",
    "join filter": LONG + "{{ range(9999) | join(s) }}",
    "expandtabs": "{{ ('\t' * 999999).expandtabs(99999) }}",
    "format width": "{{ '{:>9999999999}'.format(1) }}",
    "format argument": "{{ '{:{}}'.format(1, 10 ** 10) }}",
    "format_map": "{{ '{a:>9999999999}'.format_map({'a': 1}) }}",
    "format of markup": "{{ ('{:>9999999999}' | escape).format(1) }}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (10 ** 10, 1) }}",
    "percent filter": "{{ '%9999999999d' | format(1) }}",
    "indent": "{{ ('\n' * 999999) | indent(99999) }}",
    "indent text": "{{ ('\n' * 999999) | indent('a' * 99999) }}",
    "wordwrap": LONG + "{{ s | wordwrap(1, true, s) }}",
    "batch": "{{ [1] | batch(10 ** 10, 1) | list }}",
    "slice": "{{ [1] | slice(10 ** 10) | list }}",
    "tojson": "{{ [[1]] | tojson(indent=10 ** 10) }}",
    "round": "{{ 5 | round(-10 ** 9) }}",
    "sum": "{{ ([[1] * 9999] * 9999) | sum(start=[]) }}",
    "list": LONG + "{{ s | list }}",
    "split": "{{ ('a ' * 9000000).split() }}",
    "splitlines": "{{ ('\n' * 9000000).splitlines() }}",
    "comparisons": LONG + "{% set t = s ~ 'b' %}{% for i in range(99999) %}{{ s ~ 'a' == t }}{% endfor %}",
    "searches": LONG + "{% for i in range(99999) %}{{ 'b' in s }}{% endfor %}",
    "slices": LONG + "{% for i in range(99999) %}{% set t = s[1:] %}{% endfor %}",
    "counts": LONG + "{% for i in range(99999) %}{% set t = s.count('b') %}{% endfor %}",
    "many statements": "{% for i in range(99999) %}" + "{% if a %}{% endif %}" * 1500 + "{% endfor %}",
    "long literal": "{% for i in range(99999) %}{% set a = [" + "1," * 9999 + "] %}{% endfor %}",
    "bytes": "{{ (5).to_bytes(10 ** 10, 'big') }}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attribute of nothing": "{{ messages[0].content.nothing.at_all }}",
    "division": "{{ 1 / 0 }}",
    "include": "{% include 'x' %}",
}
BAD_SOURCES = {
    "break": "{% break %}",
    "continue": "{% if true %}{% continue %}{% endif %}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "long sum": "{{ " + "1-" * 9000 + "1 }}",
    "filters": "{{ 1" + "|string" * 9000 + " }}",
    "conditions": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "blocks": "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
    "alternatives": "{% if a %}" + "{% elif a %}" * 6000 + "{% endif %}",
    "long": "{{ a }}" * 99999,
    "many": "{%set a=1%}" * 6000,
    "digits": "{{ " + "9" * 9999 + " }}",
    "escape": r"{{ '\x' }}",
    "unknown filter": "{{ 1 | no_such_filter }}",
}


@pytest.fixture
def _little_memory():
    """Leaves the process half a gigabyte more than it has, where that can be told."""
    resource = pytest.importorskip("resource")
    if not Path("/proc/self/statm").exists():
        yield
        return
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_a_template_without_end_ends_in_an_error(source: str):
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source, bos="", eos="").render([USER])
    assert caught.value.hint and len(caught.value.message) < 1000
    assert "MemoryError" not in caught.value.message


@pytest.mark.parametrize("source", BAD_SOURCES.values(), ids=BAD_SOURCES)
def test_a_source_that_is_no_program_ends_in_an_error(source: str):
    with pytest.raises(TemplateError, match="is not a valid template") as caught:
        ChatTemplate(source, bos="", eos="")
    assert caught.value.hint


def test_a_message_of_a_template_is_cut_short():
    with pytest.raises(TemplateError) as caught:
        ChatTemplate("{{ raise_exception('no! ' * 99999) }}", bos="", eos="").render([USER])
    assert "no! no!" in caught.value.message and len(caught.value.message) < 1000


def test_long_conversations_have_room():
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": "word " * 400} for i in range(601)]
    source = (
        "{% set ns = namespace(text='') %}{% for m in messages %}"
        "{% for n in messages[loop.index0:] if n.role == m.role %}{% if loop.first %}{% set found = n %}{% endif %}"  # noqa: E501
        "{% endfor %}{% set ns.text = ns.text ~ m.role ~ m.content | trim ~ '\n' %}{% endfor %}{{ ns.text }}"
    )
    assert len(ChatTemplate(source, bos="", eos="").render(messages)) > 601 * 2000


# Snippets that each use something of the language; what they write must be what jinja2's own sandbox writes.
SNIPPETS = [
    "{{ 1 + 2 + 3 - 4 * 5 // 2 % 7 ** 2 / 3 }}{{ -1 }}{{ 'a' + 'b' + 'c' }}{{ [1] + [2] }}{{ 2 * 'ab' }}",
    "{{ 'a' ~ 1 ~ none ~ [1, 'x'] ~ 1.5 }}{{ (1, 2) }}{{ {'a': {'b': [1]}, 2: 3} }}{{ () }}",
    "{{ 1 < 2 < 3 }}{{ 'a' in 'abc' }}{{ 1 not in [2] }}{{ x is defined and x > 3 }}{{ not x }}",
    "{{ s[1:] }}{{ s[::-1] }}{{ s[-2:-1] }}{{ l[0] }}{{ l[1:][0] }}{{ d['k'] }}{{ d.k }}{{ d.missing }}{{ d.items() }}",  # noqa: E501
    "{{ '%s-%05d' % ('a', 7) }}{{ '%s' | format('b') }}{{ '{}{x!r:>5}'.format(1, x='q') }}"
    "{{ '{a}'.format_map({'a': 2}) }}",
    "{% for i in range(5) if i is odd %}{{ loop.index }}{{ loop.last }}{{ i }}{% else %}none{% endfor %}",
    "{% for k, v in d | items %}{{ k }}={{ v }}{% endfor %}{% for a in [] %}{% else %}empty{% endfor %}",
    "{% for n in tree recursive %}{{ n.name }}{{ loop(n.below) if n.below }}{{ loop.depth }}{% endfor %}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",  # noqa: E501
    "{% macro m(a, b='c') %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{{ caller() if caller }}{% endmacro %}"
    "{{ m(1) }}{{ m(1, 2, 3, x=4) }}{% call m(5) %}in{% endcall %}",
    "{% set ns = namespace(n=0) %}{% for i in l %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ ns.nothing }}",  # noqa: E501
    "{% set block %}a{{ s }}{% endset %}{{ block | upper }}{% filter upper %}b{{ s }}{% endfilter %}",
    "{% block one %}x{{ s }}{% endblock %}{{ self.one() }}{% with a = 1 %}{{ a }}{% endwith %}",
    "{{ s | trim | upper | replace('L', 'r') | title | length }}{{ l | join(', ') }}{{ l | map('string') | list }}",  # noqa: E501
    "{{ tree | map(attribute='name') | join }}{{ l | select('gt', 1) | list }}{{ tree | selectattr('below') | list }}",  # noqa: E501
    "{{ l | batch(2, 0) | list }}{{ l | slice(2) | list }}{{ l | first }}{{ l | last }}{{ l | reverse | list }}",  # noqa: E501
    "{{ d | dictsort }}{{ l | sort(reverse=true) }}{{ [1, 1, 2] | unique | list }}{{ l | sum }}{{ l | max }}",
    "{{ tree | groupby('name') }}{{ 3.14159 | round(2) }}{{ 'a b' | wordcount }}{{ 'a\nb' | indent(2) }}",
    "{{ none | default('d', true) }}{{ x | default('e') }}{{ '12' | int + 1 }}{{ '1.5' | float }}{{ 'a' | center(7) }}",  # noqa: E501
    "{{ 'long text here' | wordwrap(6) }}{{ 'long text here' | truncate(9) }}{{ '<a>' | escape }}{{ 'é/' | urlencode }}",  # noqa: E501
    "{{ s.split('l') }}{{ s.startswith('H') }}{{ s.strip('Ho') }}{{ 'a,b'.replace(',', ';') }}{{ '-'.join(['a', 'b']) }}",  # noqa: E501
    "{{ s.splitlines() }}{{ d.get('k') }}{{ d.get('z', 4) }}{{ d.keys() | list }}{{ l.index(2) }}{{ l.count(9) }}",  # noqa: E501
    "{% autoescape true %}{{ '<' ~ s ~ '>' }}{{ '<b>' | safe }}{{ '<' + s }}{% endautoescape %}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{% set j = joiner('|') %}{{ j() }}{{ j() }}{{ dict(a=1) }}",  # noqa: E501
    "{{ s is string }}{{ d is mapping }}{{ l is iterable }}{{ 4 is divisibleby 2 }}{{ s is eq 'Hello' }}{{ 1 is in l }}",  # noqa: E501
    "{{ 'yes' if x is undefined else 'no' }}{{ 'only' if false }}{{ x }}{{ (x or s) and l }}{{ true }}{{ 1e3 }}",  # noqa: E501
]


@pytest.mark.parametrize("source", SNIPPETS)
def test_what_it_writes_is_what_jinja2_writes(source: str):
    tree = [{"name": "a", "below": [{"name": "b"}]}, {"name": "c"}]
    names = {"s": "Hello", "l": [1, 2, 3], "d": {"k": "v", "w": 1}, "tree": tree}
    plain = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    said = "{{ messages[0].content }}"
    expected = plain.from_string(source).render(**names) + "Hello"
    assert ChatTemplate(source + said, bos="", eos="").render([USER], **names) == expected


def test_errors_are_those_of_jinja2():
    for source in ("{{ x.y }}", "{{ 'a' + 1 }}", "{{ x() }}", "{{ [1].append(2) }}", "{{ 1 | join }}"):
        with pytest.raises((jinja2.TemplateError, TypeError)) as plain:
            ImmutableSandboxedEnvironment().from_string(source).render()
        with pytest.raises(TemplateError) as caught:
            ChatTemplate(source, bos="", eos="").render([USER])
        assert type(caught.value.__cause__) is type(plain.value)
