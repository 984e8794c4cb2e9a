"""The documents' Python blocks: each page is a program, which the tests run.

Pages draw the pictures that they show. To draw them again, run pages where they are:

    python tests/documents.py docs/lecture/neuron.md
"""

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"(?:^ *<!-- not run: (?P<reason>[^\n]+?) -->\n\s*)?"
    r"^(?P<indent> *)```(?:python|py)\b[^\n]*\n(?P<code>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)
SHELL = re.compile(r"^ *```sh\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
#: How a page in Russian is named beside the English one.
RUSSIAN = ".ru.md"


def pages():
    """All documents."""
    return [*sorted(ROOT.glob("README*.md")), *sorted(ROOT.glob("docs/**/*.md"))]


def original(path):
    """The English page of a page in Russian, or None."""
    return path.with_name(path.name.removesuffix(RUSSIAN) + ".md") if is_russian(path) else None


def is_russian(path):
    """Whether a page is a translation."""
    return path.name.endswith(RUSSIAN)


def blocks(path):
    """(first line, code, reason not to run it or None) of each Python block of a document."""
    text = path.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        yield line, textwrap.dedent(match["code"]), match["reason"]


def commands(path):
    """The words of each command `palto` in a document's shell blocks, without the first."""
    lines = "".join(SHELL.findall(path.read_text(encoding="utf-8"))).replace("\\\n", " ")
    return _commands(lines.splitlines())


def mentioned_commands(path):
    """The same of those in its text, which may be a command's name alone."""
    return _commands(re.findall(r"`([^`]+)`", FENCED.sub("", path.read_text(encoding="utf-8"))))


def _commands(lines):
    return [shlex.split(x, comments=True)[1:] for x in lines if re.match(r"palto\s", x)]


def program(path):
    """The blocks of a document as one program, whose line numbers are the document's."""
    lines = []
    for line, code, reason in blocks(path):
        if not reason:
            lines += [""] * (line - 1 - len(lines)) + code.splitlines()
    return "\n".join(lines) + "\n"


def run(path, script, **options):
    """Run a document as the file `script`, in its folder."""
    script.write_text(program(path), encoding="utf-8")
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-W", "error", script.name],
        cwd=script.parent,
        env={**os.environ, "PYTHONPATH": search},
        **options,
    )


if __name__ == "__main__":
    for name in sys.argv[1:]:
        page = Path(name).resolve()
        script = page.with_suffix(".page.py")
        try:
            run(page, script, check=True)
        finally:
            script.unlink(missing_ok=True)
