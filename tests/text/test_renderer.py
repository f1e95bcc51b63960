import os
import threading
import time

import pytest

from scumble.errors import InvalidRequest, TemplateError
from scumble.text.renderer import SHARED, TemplateRenderer

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "13"),
        ("{{ {'a': '<é>', 'b': [1, none]} | tojson }}", '{"a": "<é>", "b": [1, null]}'),
        ("{{ {'a': 1} | tojson(indent=1) }}", '{\n "a": 1\n}'),
        ("{% generation %}x{{ word }}{% endgeneration %}", "xhello"),
        ("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "2"),
        ("  {% if true %}\n  yes\n  {% endif %}\n", "  yes\n"),  # lstrip_blocks, trim_blocks
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ missing }}|{{ missing is defined }}", "|False"),
    ],
)
def test_what_templates_rely_on(template, text):
    assert SHARED.render(template, {"word": "hello"}) == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ''.__class__ }}", "leave its sandbox: attribute '__class__' of a str"),
        ("{{ ''.__class__.__mro__ }}", "leave its sandbox"),
        ("{{ '' | attr('__class__') }}", "leave its sandbox"),
        ("{{ '{0.__class__}'.format(1) }}", "leave its sandbox"),
        ("{{ cycler.__init__.__globals__ }}", "leave its sandbox"),
        ("{{ self.__init__.__globals__ }}", "leave its sandbox"),
        ("{% set ns = namespace(__class__=1) %}", "leave its sandbox"),
        ("{{ words.append(1) }}", "leave its sandbox"),
        ("{{ 'a' * 10**10 }}", "too much memory"),
        ("{{ range(10**9) | sum }}", "failed: OverflowError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself too deeply"),
        ("{% include 'file' %}", "failed"),
        ("\n{% for", "syntax error in line 2"),
        ("{{ raise_exception('roles must\nalternate') }}", "refused: roles must alternate$"),
        ("{{ missing.attribute.of }}", "failed: 'missing' is undefined"),
        ("{{ 1 / 0 }}", "failed: ZeroDivisionError"),
        ("{{ words[0].encode('ascii').decode('utf-16') }}", "failed: UnicodeDecodeError"),
    ],
)
def test_what_templates_may_not(template, message):
    with pytest.raises(TemplateError, match=message):
        SHARED.render(template, {"words": ["abc"]}, seconds=20)
    assert SHARED.render("{{ words[0] }}", {"words": ["abc"]}) == "abc"


@pytest.mark.parametrize(
    "template",
    [
        ENDLESS,
        "{% set x = (10 ** 9999999) %}{{ x % 7 }}{% set y = x ** 99 %}",  # inside one C call
        "{% set ns = namespace(a='a') %}{% for i in range(99) %}{% set ns.a = ns.a + 'a' * 10000000 %}{% endfor %}"
        "{% for i in range(99999) %}{{ ns.a | length }}{% set x = ns.a.upper() %}{% endfor %}",
    ],
    ids=["loops", "arithmetic", "strings"],
)
def test_time_is_up(template):
    start = time.perf_counter()
    with pytest.raises(TemplateError, match=r"longer than 0\.3 s"):
        SHARED.render(template, {}, seconds=0.3)
    assert time.perf_counter() - start < 5  # 0.3 s, and starting a child on a busy machine


def test_other_threads_can_be_stopped_too_and_do_not_disturb_each_other():
    renderer = TemplateRenderer()
    results = {}

    def work(number):
        try:
            if number % 4 == 0:
                renderer.render(ENDLESS, {}, seconds=0.2)
            results[number] = renderer.render("{{ n }}", {"n": number})
        except TemplateError:
            results[number] = "stopped"

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    renderer.close()
    assert results == {number: "stopped" if number % 4 == 0 else str(number) for number in range(8)}


def test_renders_do_not_see_each_other():
    """The same child serves again and again; the same input must give the same text."""
    template = "{% set c = cycler('a', 'b') %}{{ c.next() }}{% if x %}{% set y = 1 %}{% endif %}{{ y is defined }}"
    assert SHARED.render(template, {"x": True}) == "aTrue"
    assert [SHARED.render(template, {}) for _ in range(3)] == ["aFalse"] * 3


def test_a_child_that_died_is_replaced():
    renderer = TemplateRenderer()
    assert renderer.render("1", {}) == "1"
    renderer._worker._process.kill()
    renderer._worker._process.wait()
    assert renderer.render("2", {}) == "2"
    renderer.close()
    assert renderer.render("3", {}) == "3"
    renderer.close()


def test_only_json_values_cross():
    with pytest.raises(InvalidRequest, match="JSON"):
        SHARED.render("{{ x }}", {"x": object()})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_starts_a_child_of_its_own():
    assert SHARED.render("before", {}) == "before"
    mine = SHARED._worker
    SHARED.forget()  # what happens in the forked process
    assert SHARED.render("after", {}) == "after"
    assert SHARED._worker is not mine
    mine.close()


@pytest.mark.slow
def test_a_warm_render_takes_milliseconds():
    SHARED.render("{{ x }}", {"x": 1})
    start = time.perf_counter()
    for _ in range(100):
        SHARED.render("{{ x }}", {"x": 1})
    assert (time.perf_counter() - start) / 100 < 0.02
