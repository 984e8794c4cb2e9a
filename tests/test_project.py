"""The project keeps its own rules: who imports whom, size, a light import, documents that run."""

import ast
import importlib.metadata
import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
import zipfile
from pathlib import PurePath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from palto import cli
from palto.extras import MissingExtraError

from .documents import (
    ROOT,
    blocks,
    commands,
    is_russian,
    mentioned_commands,
    original,
    pages,
)
from .documents import run as run_document

SOURCES = sorted(ROOT.glob("palto/**/*.py"))

# --- Who may import whom -------------------------------------------------------------------------

#: Rooms that stand beside the engine, each for one use of it.
FOR_RECIPES = {"theory", "draw", "chat", "classical", "acoustics", "adaptive", "comparison"}
BUILT_UPON_IT = {"label", "serve", "web", *FOR_RECIPES}
#: A room is a folder or a file right under palto/. What each may import besides itself.
MAY_IMPORT = {
    "extras": set(),
    "tensor": set(),
    "backprop": {"tensor"},
    "compiler": {"tensor", "backprop"},
    "nn": {"tensor", "backprop", "compiler"},
    "optim": {"tensor", "backprop", "compiler"},
    "web": set(),  # what every server of Palto's does
    "data": {"tensor", "backprop", "compiler"},
    "label": {"palto", "data", "web"},
    "formats": {"tensor", "backprop", "compiler", "nn"},
    "train": {"tensor", "backprop", "compiler", "nn", "optim", "data", "formats"},
    "recipes": {"palto", "nn", "optim", "data", "train", "formats", *FOR_RECIPES},
    "theory": {"tensor", "backprop", "compiler", "nn", "optim"},
    "classical": {"data"},
    "acoustics": {"formats"},
    "adaptive": set(),
    "comparison": {"train"},
    "draw": {"tensor", "backprop", "compiler", "nn", "optim", "data", "train"},
    "serve": {"palto", "nn", "optim", "data", "train", "formats", "web"},
    "chat": {"palto", "nn", "data", "formats", "web"},
    "cli": {"palto", "nn", "optim", "data", "train", "formats", "recipes", *BUILT_UPON_IT},
    "palto": {"tensor", "backprop", "compiler", "nn", "optim", "data", "train", "formats"},
}
#: What they may import besides inside a function or under TYPE_CHECKING, when all is loaded.
MAY_IMPORT_LATE = {
    "tensor": {"backprop"},  # Tensor.backward()
    "nn": {"optim", "data"},
    "optim": {"nn", "data"},
    "data": {"nn", "optim"},
}
#: Names of palto/__init__.py that any room may take from it.
FOR_EVERYONE = {"palto.__version__", "palto.extras.require", "palto.extras.MissingExtraError"}


def imports(where, source):
    """(line, module, name or None, late) for each import of Palto in the file at `where`."""
    package = where.parts[:-1]

    def visit(node, late):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            late = True
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            late = True
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, None, late
        if isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*parent, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, module, alias.name, late
        for child in ast.iter_child_nodes(node):
            yield from visit(child, late)

    for found in visit(ast.parse(source), late=False):
        if found[1].split(".")[0] == "palto":
            yield found


def room_of(dotted):
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "palto"


def not_public(module, name):
    """Why a recipe may not import this, or None."""
    dotted = f"{module}.{name}" if name else module
    path = ROOT.joinpath(*dotted.split("."))
    is_module = name is None or path.is_dir() or path.with_suffix(".py").exists()
    depth = (dotted if is_module else module).count(".")
    if any(part.startswith("_") for part in dotted.split(".")):
        return f"{dotted} is private"
    if depth > 2:
        return f"{dotted} is deeper than a package's public submodule"
    return None


def import_problems(where, source):
    """Every import in a file that its room may not make."""
    room = "palto" if len(where.parts) == 2 and where.stem == "__init__" else where.parts[1]
    room = room.removesuffix(".py")
    if room not in MAY_IMPORT:
        return [f"{where}: add {room!r} to MAY_IMPORT in tests/test_project.py"]
    problems = []
    for line, module, name, late in imports(where, source):
        dotted = f"{module}.{name}" if name else module
        allowed = {room} | MAY_IMPORT[room] | (MAY_IMPORT_LATE.get(room, set()) if late else set())
        if room == "recipes":
            allowed -= {room}  # each recipe stands alone
        if room_of(dotted) not in allowed and dotted not in FOR_EVERYONE:
            problems.append(f"{where}:{line}: {room} may not import {dotted}")
        elif room == "recipes" and (reason := not_public(module, name)):
            problems.append(f"{where}:{line}: {reason}; recipes use public names only")
    if room == "recipes":
        for node in ast.walk(ast.parse(source)):
            private = isinstance(node, ast.Attribute) and re.match(r"_(?!_)", node.attr)
            if private and getattr(node.value, "id", None) not in {"self", "cls"}:
                problems.append(f"{where}:{node.lineno}: .{node.attr} is private")
    return problems


def test_rooms_import_only_what_comes_before_them():
    assert SOURCES
    problems = []
    for path in SOURCES:
        problems += import_problems(path.relative_to(ROOT), path.read_text(encoding="utf-8"))
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize(
    ("where", "source", "fine"),
    [
        ("palto/nn/module.py", "from palto.tensor import Tensor", True),
        ("palto/nn/module.py", "from ..compiler import compile", True),
        ("palto/nn/module.py", "from . import init", True),
        ("palto/nn/module.py", "from palto import __version__", True),
        ("palto/nn/module.py", "def f():\n    from palto import data", True),
        ("palto/nn/module.py", "from palto import data", False),
        ("palto/nn/module.py", "import palto", False),
        ("palto/nn/layers/conv.py", "from ... import optim", False),
        ("palto/tensor/core.py", "def f():\n    import palto.backprop", True),
        ("palto/tensor/core.py", "import palto.backprop", False),
        ("palto/backprop.py", "from .compiler import trace", False),
        ("palto/train/trainer.py", "from palto.recipes import classify", False),
        ("palto/__init__.py", "from .train import Trainer", True),
        ("palto/__init__.py", "from . import cli", False),
        ("palto/vision/x.py", "", False),
        ("palto/recipes/chat.py", "import palto\nfrom palto import nn, manual_seed", True),
        ("palto/recipes/chat.py", "import palto.nn.functional as F", True),
        ("palto/recipes/chat.py", "from palto.nn.layers.conv import Conv2d", False),
        ("palto/recipes/chat.py", "from palto.nn import _fused", False),
        ("palto/recipes/chat.py", "from palto.tensor import Tensor", False),
        ("palto/recipes/chat.py", "from palto.recipes import classify", False),
        ("palto/recipes/chat.py", "model._parameters", False),
    ],
)
def test_the_import_check_itself(where, source, fine):
    assert (not import_problems(PurePath(where), source)) == fine


# --- Size and weight -----------------------------------------------------------------------------


def test_engine_stays_small():
    size = runpy.run_path(str(ROOT / "tests" / "engine_size.py"))
    assert size["engine"]() < size["BUDGET"]


def test_the_size_counts_code_alone():
    code_lines = runpy.run_path(str(ROOT / "tests" / "engine_size.py"))["code_lines"]
    source = (
        '"""Text.\n\nMore."""\n\n# why\nx = """a\nb"""\n\ndef f():\n    "doc"\n    return (\n1)\n'
    )
    assert code_lines(source) == 5


def test_import_is_light():
    heavy = {"jax", "llvmlite", "matplotlib", "pooch", "requests", "rich", "torch"}
    code = "import json, sys, palto; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    loaded = heavy.intersection(json.loads(run.stdout))
    assert not loaded


def test_few_packages_are_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found, todo = set(), list(project["dependencies"])
    while todo:
        requirement = Requirement(todo.pop())
        name = canonicalize_name(requirement.name)
        wanted = not requirement.marker or requirement.marker.evaluate({"extra": ""})
        if wanted and name not in found:
            found.add(name)
            todo += importlib.metadata.requires(name) or []
    assert len(found) <= 21, sorted(found)
    assert {"numpy", "llvmlite"} <= found  # eager code and compiled code; the rest serves the tools
    assert not found & {"torch", "jax", "tensorflow"}


def test_the_wheel_holds_all_that_is_needed(tmp_path):
    wheel = pytest.importorskip(
        "hatchling.builders.wheel", reason="hatchling, which builds the wheel, is not installed"
    )
    (built,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path / "dist"))
    with zipfile.ZipFile(built) as archive:
        inside = {name for name in archive.namelist() if name.startswith("palto/")}
        archive.extractall(tmp_path / "elsewhere")
    files = (path for path in ROOT.glob("palto/**/[!.]*") if path.is_file())
    assert inside == {
        path.relative_to(ROOT).as_posix() for path in files if path.parent.name != "__pycache__"
    }
    code = "from palto import data; print(data.__file__, len(data.penguins()[0]))"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "elsewhere")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.stdout.startswith(str(tmp_path)) and run.stdout.endswith(" 258\n"), run.stderr


# --- Text ----------------------------------------------------------------------------------------

#: Written in parts, so that this file may be checked too.
REGISTRIES = [
    ".".join(parts)
    for parts in [
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("deb", "debian", "org"),
        ("archive", "ubuntu", "com"),
        ("anaconda", "org"),
        ("download", "pytorch", "org"),
    ]
]
MACHINE_PATH = re.compile(r"(?<![\w.~)}-])/(?:work|root|home|Users)/")


def test_no_registry_hosts_or_machine_paths():
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
    )
    if listing.returncode:
        pytest.skip("not a git checkout: the list of files is unknown")
    problems = []
    for name in filter(None, listing.stdout.decode().split("\0")):
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b"\0"
        if b"\0" in content:
            continue  # binary, or deleted
        for number, line in enumerate(content.decode("utf-8").splitlines(), 1):
            if any(host in line for host in REGISTRIES) or MACHINE_PATH.search(line):
                problems.append(f"{name}:{number}: {line.strip()}")
    assert not problems, "\n" + "\n".join(problems)


# --- Documents -----------------------------------------------------------------------------------


def documents():
    """Each document to run; each block marked `<!-- not run: reason -->` as a visible skip."""
    for path in pages():
        if is_russian(path):
            continue  # its program is the English page's
        name = path.relative_to(ROOT).as_posix()
        yield pytest.param(path, id=name)
        for line, _, reason in blocks(path):
            if reason:
                mark = pytest.mark.skip(reason=f"{name}:{line} is not run: {reason}")
                yield pytest.param(path, id=f"{name}:{line}", marks=mark)


@pytest.mark.parametrize("path", list(documents()))
def test_document_runs(path, tmp_path):
    """The blocks of a document are one program; its line numbers are the document's."""
    run = run_document(path, tmp_path / path.name, capture_output=True, text=True, timeout=300)
    if "DataUnavailableError" in run.stderr:
        pytest.skip(f"{path.name}: {run.stderr.strip().splitlines()[-1]}")
    if "MissingExtraError" in run.stderr:
        pytest.skip(f"{path.name}: {run.stderr.strip().splitlines()[-1]}")
    assert run.returncode == 0, f"{path.name}:\n{run.stdout}{run.stderr}"


def test_readme_shows_code():
    assert list(blocks(ROOT / "README.md"))


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.name) for path in pages() if is_russian(path)]
)
def test_a_translation_is_the_same_program(path):
    """So it is run with its original, whose pictures it shows."""
    assert [code for _, code, _ in blocks(path)] == [code for _, code, _ in blocks(original(path))]
    assert commands(path) == commands(original(path))


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in pages()]
)
def test_the_command_line_understands_what_documents_say(path, capsys):
    """It parses the commands; nothing is run."""
    names = [[name] for name in cli._COMMANDS]
    for words in [*commands(path), *(x for x in mentioned_commands(path) if x not in names)]:
        try:
            cli._command(words)
        except MissingExtraError as error:
            pytest.skip(f"{path.name}: {error}")
        except SystemExit as ended:
            assert not ended.code, (words, capsys.readouterr().err)


def test_documents_show_commands():
    found = [words for path in pages() for words in commands(path)]
    assert {"train", "predict", "compare", "chat"} <= {words[0] for words in found}


LECTURE = sorted((ROOT / "docs" / "lecture").glob("*.md"))


def test_the_lecture_is_told_in_both_languages():
    english = {path.stem for path in LECTURE if not is_russian(path)}
    russian = {original(path).stem for path in LECTURE if is_russian(path)}
    assert english == russian


def test_pictures_and_pages_that_documents_name_are_there():
    problems = []
    for path in pages():
        for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            if "://" not in target and not (path.parent / target).exists():
                problems.append(f"{path.relative_to(ROOT)}: {target}")
    assert not problems, "\n".join(problems)
