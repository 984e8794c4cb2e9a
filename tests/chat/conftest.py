"""A tiny chat model, as a GGUF file and as a folder in Hugging Face's form."""

import pytest

from .tiny import Tiny

pytest.importorskip("gguf", reason="gguf is not installed (pip install 'palto[chat]')")
pytest.importorskip("tokenizers", reason="tokenizers is not installed (pip install 'palto[chat]')")
pytest.importorskip("jinja2", reason="jinja2 is not installed (pip install 'palto[chat]')")


@pytest.fixture(scope="package")
def tiny():
    return Tiny()


@pytest.fixture(scope="package")
def folder(tiny, tmp_path_factory):
    return tiny.folder(tmp_path_factory.mktemp("tiny") / "folder")


@pytest.fixture(scope="package")
def file(tiny, tmp_path_factory):
    return tiny.gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="package")
def found(file):
    """The tiny model, loaded."""
    from palto.chat import models

    return models.load(file)


@pytest.fixture(scope="package")
def reader(found):
    """Its programs, which are made once."""
    from palto.chat.generate import Reader

    return Reader(found, 200)
