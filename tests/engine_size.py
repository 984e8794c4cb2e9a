"""The size of the engine: lines of code in its rooms of palto/, held to a budget.

What is built upon it (recipes, servers, pictures, the command line, other programs' formats) is
counted beside it, and so is the executor that another library is the engine of.

Blank lines, comments and docstrings are free: what explains the code does not count against it.

    python tests/engine_size.py
"""

import ast
import io
import tokenize
from collections import Counter
from pathlib import Path

BUDGET = 24_000
ROOT = Path(__file__).resolve().parent.parent / "palto"
ENGINE = ("tensor", "backprop", "compiler", "nn", "optim", "data", "train", "formats")
#: What inside a room is counted as a room of its own, beside the engine.
BESIDE = ("compiler/xla", "formats/onnx", "formats/pytorch.py", "formats/gguf.py")
_NOT_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER, tokenize.ENCODING,
}  # fmt: skip


def code_lines(source):
    """The number of lines of a source text that hold code."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        text = getattr(node.value, "value", None) if isinstance(node, ast.Expr) else None
        if isinstance(text, str):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def sizes():
    """Lines of code by room: a folder, or a file right under palto/."""
    count = Counter()
    for path in sorted(ROOT.rglob("*.py")):
        where = path.relative_to(ROOT)
        inside = [room for room in BESIDE if where.is_relative_to(room)]
        room = inside[0] if inside else where.parts[0].removesuffix(".py")
        count[room] += code_lines(path.read_text(encoding="utf-8"))
    return count


def engine():
    """Lines of code of the engine."""
    count = sizes()
    return sum(count[room] for room in ENGINE)


if __name__ == "__main__":
    rooms = sizes().most_common()
    inside = ", ".join(f"{room} {lines:,}" for room, lines in rooms if room in ENGINE)
    outside = ", ".join(f"{room} {lines:,}" for room, lines in rooms if room not in ENGINE)
    print(f"The engine has {engine():,} of {BUDGET:,} lines of code: {inside}.")
    print(f"Built upon it: {outside}.")
