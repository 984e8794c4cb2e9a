"""Runs on pictures and on a table, and servers of them."""

import pytest

from palto import cli

from .helpers import KINDS, picture


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    """A run on pictures of three colours."""
    place = tmp_path_factory.mktemp("serve")
    for k, kind in enumerate(KINDS):
        (place / "pictures" / kind).mkdir(parents=True)
        for i in range(20):
            picture(k, 100 * k + i).save(place / "pictures" / kind / f"{i}.png")
    words = ["train", str(place / "pictures"), "--model", "lenet", "--epochs", "4",
             "--batch-size", "9", "--out", str(place / "run")]  # fmt: skip
    assert cli.main(words) == 0
    return place / "run"


@pytest.fixture(scope="package")
def server(folder):
    from palto import serve, web
    from palto.train.run import Run

    app = serve.application(Run.open(folder), batch_size=16, log=False)
    server = web.Server(app, web.ServerOptions(port=0), body_bytes=1 << 20)
    with server.in_background():
        yield server


@pytest.fixture(scope="package")
def penguins(tmp_path_factory):
    """A run on the table of penguins, to tell their species."""
    place = tmp_path_factory.mktemp("penguins")
    words = ["train", "penguins", "--epochs", "40", "--batch-size", "16", "--lr", "1e-2"]
    assert cli.main([*words, "--out", str(place / "run")]) == 0
    return place / "run"


@pytest.fixture(scope="package")
def table_server(penguins):
    from palto import serve, web
    from palto.train.run import Run

    app = serve.application(Run.open(penguins), batch_size=16, log=False)
    with web.Server(app, web.ServerOptions(port=0)).in_background() as server:
        yield server
