"""The child process that renders chat templates. Run as a script; imports nothing of Scumble.

Reads one JSON object a line from standard input, answers one a line on standard output:

    {"paths": [...], "memory": bytes}                        once; answered by {"ready": true}
    {"template": source, "variables": {...}, "seconds": s}   → {"text": ...} or {"kind": ..., "error": ..., "line": n}

Three walls stand around a template, each enough for most of what may go wrong: jinja2's immutable sandbox, limits that
the operating system enforces on this process, and the parent, which kills it when time is up.
"""

import json
import os
import signal
import sys
from functools import lru_cache

CACHED_TEMPLATES = 8
MAX_CHARACTERS = 32 * 2**20  # of one rendered conversation


def limit_process(memory: int) -> None:
    """No more than `memory` bytes of address space, no files written, no children. Where the system offers it."""
    try:
        import resource
    except ImportError:  # Windows: the parent's clock remains
        return
    for name, value in (("RLIMIT_AS", memory), ("RLIMIT_FSIZE", 0), ("RLIMIT_NPROC", 0), ("RLIMIT_CORE", 0)):
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (AttributeError, ValueError, OSError):
            continue


def build_environment():
    """The jinja2 environment that chat templates are written for."""
    from datetime import datetime

    import jinja2
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """`{% generation %}…{% endgeneration %}` marks text for training; for rendering it is its body."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    class Sandbox(ImmutableSandboxedEnvironment):
        def unsafe_undefined(self, obj, attribute):
            """jinja2 would give an undefined value, which prints as nothing; say what was tried instead."""
            raise SecurityError(f"attribute {attribute!r} of a {type(obj).__name__} is out of bounds")

    def check_name(name):
        if str(name).startswith("_"):
            raise SecurityError(f"namespace attribute {name!r} is out of bounds")

    class PlainNamespace(Namespace):
        """`namespace()` without underscore names, which could shadow Python's own."""

        def __init__(*args, **values):  # no name for self: a template may use `self` as a key
            values = dict(*args[1:], **values)
            for name in values:
                check_name(name)
            Namespace.__init__(args[0], values)

        def __setitem__(self, name, value):
            check_name(name)
            Namespace.__setitem__(self, name, value)

    def raise_exception(message):
        raise jinja2.TemplateError(str(message))

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["namespace"] = PlainNamespace
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def answer(compiled, request) -> dict:
    """Render one request. A `final` answer is this process's last: its memory is not to be trusted afterwards."""
    from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError, UndefinedError

    try:
        text = compiled(request["template"]).render(request["variables"])
        if len(text) > MAX_CHARACTERS:
            return {"kind": "size", "error": f"{len(text)} characters, allowed are {MAX_CHARACTERS}", "final": True}
        text.encode("utf-8")
        return {"text": text}
    except TemplateSyntaxError as error:
        return {"kind": "syntax", "error": error.message, "line": error.lineno}
    except SecurityError as error:
        return {"kind": "security", "error": str(error)}
    except UndefinedError as error:
        return {"kind": "failure", "error": str(error)}
    except TemplateError as error:
        return {"kind": "template", "error": str(error)}
    except MemoryError:
        return {"kind": "memory", "error": "out of memory", "final": True}
    except RecursionError:
        return {"kind": "recursion", "error": "recursion too deep"}
    except Exception as error:
        return {"kind": "failure", "error": f"{type(error).__name__}: {error}"}


def main() -> None:
    requests = sys.stdin.buffer
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    sys.stdout = sys.stderr  # a stray print must not look like a reply

    def reply(message):
        replies.write(json.dumps(message).encode() + b"\n")
        replies.flush()

    setup = json.loads(requests.readline())
    sys.path += setup["paths"]
    environment = build_environment()
    compiled = lru_cache(CACHED_TEMPLATES)(environment.from_string)
    # Everything that rendering may import lazily, before the walls go up.
    environment.from_string("{{ [1] | tojson }}{{ strftime_now('%d %b') }}{{ namespace(a=1).a }}").render()
    limit_process(setup["memory"])
    reply({"ready": True})
    for line in requests:
        request = json.loads(line)
        if hasattr(signal, "setitimer"):  # a second after the parent would: should the parent be gone
            signal.setitimer(signal.ITIMER_REAL, request["seconds"] + 1)
        message = answer(compiled, request)
        reply(message)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        if message.get("final"):
            return


if __name__ == "__main__":
    main()
