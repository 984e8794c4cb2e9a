"""The size of the engine: lines of code in palto/ without the recipes, held to a budget.

Blank lines, comments and docstrings are free: what explains the code does not count against it.

    python tests/engine_size.py
"""

import ast
import io
import tokenize
from collections import Counter
from pathlib import Path

BUDGET = 21_000
ROOT = Path(__file__).resolve().parent.parent / "palto"
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
    """Lines of code by folder."""
    count = Counter()
    for path in sorted(ROOT.rglob("*.py")):
        room = path.relative_to(ROOT).parts[0]
        if room != "recipes":
            count[room] += code_lines(path.read_text(encoding="utf-8"))
    return count


if __name__ == "__main__":
    count = sizes()
    rooms = ", ".join(f"{room} {lines:,}" for room, lines in count.most_common())
    print(f"The engine has {count.total():,} of {BUDGET:,} lines of code: {rooms}.")
