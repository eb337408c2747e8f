"""Chats are written as transformers writes them; a template that goes on for ever, or fills the memory, is ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest
from affectlens.errors import UserError
from affectlens.model.templates import TemplateFault, Writer, written
from affectlens.model.tokens import Chat, tokenise
from test_activations_chats import TEMPLATES

CHAT = [
    {"role": "user", "content": "Hello, \u00e9 \U0001f600 \u2028 {{ x }}"},
    {"role": "assistant", "content": " Hi\r\n"},
]
LONG = "{% for a in range(99999) %}{% for b in range(99999) %}INSIDE{% endfor %}{% endfor %}"
NESTED = LONG.replace("INSIDE", LONG.replace("INSIDE", ""))
ENDLESS = {
    "loops within loops": NESTED,
    "a macro in a loop": f"{{% macro m() %}}{NESTED}{{% endmacro %}}{{{{ m() }}}}",
    "one long power": "{{ 9 ** (9 ** (messages|length + 7)) }}",
    "a power in the template itself": "{{ 9 ** (9 ** 9) }}",
    "filters in loops": "{% for a in range(99999) %}{{ range(99999)|map('string')|list|length }}{% endfor %}",
    "calls itself twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
}
LARGE = {
    "a text repeated": "{{ 'x' * 50000000000 }}",
    "a text doubled": "{% set n = namespace(t='x') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
    "a list repeated": "{{ ([1] * 10000000000)|length }}",
    "a wide field": "{{ '%9999999999d' % 1 }}",
    "a wide field in the other way": "{{ '{:9999999999}'.format(1) }}",
    "written without end": LONG.replace("INSIDE", "{{ 'x' * 1000 }}"),
}


@pytest.fixture(scope="module")
def writer():
    writer = Writer(seconds=0.5, memory=1 << 28)
    yield writer
    writer.close()


@pytest.mark.parametrize("name", [name for name in TEMPLATES if TEMPLATES[name]])
@pytest.mark.parametrize("opened", [False, True])
def test_a_chat_is_written_as_transformers_writes_it(name: str, opened: bool, tiny_subject: Any, monkeypatch: Any):
    tokenizer = tiny_subject("llama").tokenizer
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATES[name])
    expected = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=opened)
    assert written(tokenizer, CHAT, add_generation_prompt=opened) == expected
    if not opened:
        expected = tokenizer.apply_chat_template(CHAT, tokenize=False, continue_final_message=True)
        assert written(tokenizer, CHAT, continue_final_message=True) == expected


@pytest.mark.parametrize("name", [*ENDLESS, *LARGE])
def test_a_template_that_would_not_end_is_ended(name: str, writer: Writer):
    """And the next one is written."""
    began = time.process_time(), time.monotonic()
    with pytest.raises(TemplateFault, match=r"more than|MiB|letters|too large|precision") as said:
        writer.write({**ENDLESS, **LARGE}[name], CHAT, {})
    assert time.process_time() - began[0] < 2 and time.monotonic() - began[1] < 60
    assert len(str(said.value)) < 400
    another = f"{{{{ messages[0].content }}}} {name}"  # what is written once is kept
    assert writer.write(another, CHAT, {}) == f"{CHAT[0]['content']} {name}"


def test_a_chat_is_not_written_twice(writer: Writer, monkeypatch: Any):
    template = "{{ messages[0].content }} once"
    first = writer.write(template, CHAT, {})
    monkeypatch.setattr("affectlens.model.templates._asked", lambda *_: pytest.fail("it was written again"))
    assert writer.write(template, CHAT, {}) == first


def test_what_a_template_raises_is_its_reason(writer: Writer):
    for template, reason in {
        "{{ raise_exception('no system message') }}": "no system message",
        "{% for %}": "Expected",
        "{{ ''.__class__.__mro__ }}": "unsafe",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "recursion",
    }.items():
        with pytest.raises(TemplateFault, match=reason):
            writer.write(template, CHAT, {})


def test_a_chat_of_a_corpus_names_the_chat(tiny_subject: Any, monkeypatch: Any):
    monkeypatch.setattr("affectlens.model.templates.WRITER", Writer(seconds=0.2))
    tokenizer = tiny_subject("llama").tokenizer
    monkeypatch.setattr(tokenizer, "chat_template", NESTED)
    with pytest.raises(UserError, match=r"corpus document 7: .*more than 0.2 s"):
        tokenise(tokenizer, Chat(tuple(CHAT), index=7))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_has_a_child_of_its_own(writer: Writer):
    """Two processes never read each other's answers."""
    writer.write("{{ 1 }}", CHAT, {})
    here = writer._process
    child = os.fork()
    if child == 0:
        right = writer.write("{{ 2 }}", CHAT, {}) == "2" and writer._process is not here
        writer.close()
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert writer.write("{{ 3 }}", CHAT, {}) == "3" and writer._process is here


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
def test_it_starts_where_memory_is_limited_already():
    """As under a batch system, or ``ulimit -v``."""
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "from affectlens.model.templates import Writer\n"
        "print(Writer().write('{{ 1 + 1 }}', [], {}))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "2\n"
