"""Getting files: where they are looked for, what is refused, and what is said."""

import gzip
import hashlib
import http.server
import os
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from palto import data
from palto.data import fetch

CONTENT = {"a.gz": b"alpha" * 100, "b": b"beta" * 100}
FILES = {
    "name": "letters",
    "contents": {
        name: fetch.Contents(hashlib.sha256(content).hexdigest(), len(content))
        for name, content in CONTENT.items()
    },
}


def write(folder, contents=CONTENT):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("PALTO_DATA", raising=False)
    return tmp_path / "cache" / "letters"


@pytest.fixture
def server(tmp_path):
    """``serve(answers)`` gives the address of a server with these answers, by file name."""
    servers = []

    def serve(answers):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):  # the base class asks for this name
                answers[self.path.strip("/")](self)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_):  # a client that hangs up is part of the test
                pass

        server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def sends(body, length=None, status=200):
    def answer(handler):
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def published():
    return {"a.gz": sends(gzip.compress(CONTENT["a.gz"])), "b": sends(CONTENT["b"])}


# --- Folders -------------------------------------------------------------------------------------


def test_a_folder_that_the_user_names(tmp_path, monkeypatch, cache):
    files = fetch.Files(**FILES)
    folder = write(tmp_path / "mine")
    assert files.read(folder) == CONTENT
    monkeypatch.setenv("PALTO_DATA", str(folder))
    assert files.read() == CONTENT
    monkeypatch.setenv("PALTO_DATA", str(write(tmp_path / "all" / "letters").parent))
    assert files.read() == CONTENT
    with pytest.raises(FileNotFoundError, match="elsewhere has no"):  # the argument comes first
        files.read(tmp_path / "elsewhere")


@pytest.mark.parametrize("variable", [False, True])
def test_a_named_folder_that_lacks_a_file(tmp_path, cache, monkeypatch, variable):
    folder = write(tmp_path / "mine", {"b": CONTENT["b"]})
    write(cache)
    if variable:
        monkeypatch.setenv("PALTO_DATA", str(folder))
    with pytest.raises(FileNotFoundError, match=r"mine has no a\.gz"):
        fetch.Files(**FILES).read(None if variable else folder)


def test_the_variable_may_name_a_folder_of_other_data(tmp_path, cache, monkeypatch, capsys):
    write(cache)
    monkeypatch.setenv("PALTO_DATA", str(tmp_path))
    assert fetch.Files(**FILES).read() == CONTENT
    assert "there is no letters in" in capsys.readouterr().err


@pytest.mark.parametrize("variable", [False, True])
@pytest.mark.parametrize("damage", ["cut", "flipped", "other", "empty", "bomb"])
def test_a_damaged_file_in_a_named_folder(tmp_path, cache, monkeypatch, damage, variable):
    folder = write(tmp_path / "mine")
    packed = (folder / "a.gz").read_bytes()
    harm = {
        "cut": packed[:-10],
        "flipped": packed[:-12] + bytes([packed[-12] ^ 255]) + packed[-11:],
        "other": gzip.compress(b"something else"),
        "empty": b"",
        "bomb": gzip.compress(bytes(50_000_000)),
    }
    (folder / "a.gz").write_bytes(harm[damage])
    if variable:
        monkeypatch.setenv("PALTO_DATA", str(folder))
    with pytest.raises(ValueError, match=r"mine.a\.gz is damaged") as info:
        fetch.Files(**FILES).read(None if variable else folder)
    assert FILES["contents"]["a.gz"].sha256 in str(info.value)
    found = b"something else" if damage == "other" else harm[damage]
    assert hashlib.sha256(found).hexdigest() in str(info.value)
    assert (folder / "a.gz").read_bytes() == harm[damage]  # the user's file is left alone


@pytest.mark.parametrize("bomb", [True, False], ids=["unpacks to much", "is long"])
def test_a_hostile_file_does_not_fill_the_memory(tmp_path, cache, bomb):
    folder = write(tmp_path / "mine")
    with (folder / "a.gz").open("wb") as file:
        if bomb:
            file.write(gzip.compress(bytes(50_000_000)))
        else:
            file.truncate(50_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"a\.gz is damaged"):
            fetch.Files(**FILES).read(folder)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000


def test_a_folder_of_the_system_is_second_to_the_cache(tmp_path, cache):
    files = fetch.Files(**FILES, folders=(str(write(tmp_path / "system")),))
    assert files.read() == CONTENT
    write(cache)
    (tmp_path / "system" / "b").write_bytes(b"changed")
    assert files.read() == CONTENT


# --- The network and the cache -------------------------------------------------------------------


def test_what_is_fetched_is_kept(cache, server, capsys):
    address = server(published())
    assert fetch.Files(**FILES, addresses=(address,)).read() == CONTENT
    assert sorted(os.listdir(cache)) == ["a.gz", "b"]
    assert f"fetching {address}a.gz" in capsys.readouterr().err
    assert fetch.Files(**FILES).read() == CONTENT  # from the cache, by itself
    assert capsys.readouterr().err == ""


def test_only_what_is_damaged_or_missing_is_fetched_again(cache, server, capsys):
    write(cache)
    (cache / "b").write_bytes(b"half")
    answers = published()
    del answers["a.gz"]
    assert fetch.Files(**FILES, addresses=(server(answers),)).read() == CONTENT
    said = capsys.readouterr().err
    assert "b is damaged" in said and "fetching it again" in said
    assert sorted(os.listdir(cache)) == ["a.gz", "b"]
    assert (cache / "b").read_bytes() == CONTENT["b"]


def test_a_damaged_cache_does_not_lose_what_is_sound(cache, capsys):
    write(cache)
    (cache / "b").write_bytes(b"half")
    with pytest.raises(data.DataUnavailableError, match="it has no sound b"):
        fetch.Files(**FILES).read()
    assert os.listdir(cache) == ["a.gz"]


def hangs(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.flush()
    time.sleep(3)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (sends(gzip.compress(CONTENT["a.gz"])[:20]), r"a\.gz is damaged.*cut off"),
        (sends(gzip.compress(CONTENT["a.gz"])[:20], length=1000), "IncompleteRead"),
        (sends(b"<html>please log in</html>"), r"a\.gz is damaged"),
        (sends(b"", status=404), "404"),
        (sends(bytes(3 * fetch.SLACK)), "more than"),
        (hangs, "timed out"),
    ],
    ids=["cut", "interrupted", "page", "absent", "too long", "silent"],
)
def test_a_bad_download_is_not_kept_and_the_next_address_is_tried(
    cache, server, monkeypatch, capsys, answer, message
):
    if answer is hangs:  # a busy machine is silent for a while, too
        monkeypatch.setattr(fetch, "SILENCE_TIMEOUT", 1)
    bad = server({**published(), "a.gz": answer})
    with pytest.raises(data.DataUnavailableError, match=message):
        fetch.Files(**FILES, addresses=(bad,)).read()
    assert not cache.exists() or "a.gz" not in os.listdir(cache)
    files = fetch.Files(**FILES, addresses=(bad, server(published())))
    assert files.read() == CONTENT


def test_a_transfer_that_takes_too_long(cache, server, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "TOTAL_TIMEOUT", -1)
    with pytest.raises(data.DataUnavailableError, match="it has not arrived within"):
        fetch.Files(**FILES, addresses=(server(published()),)).read()


def test_nothing_can_be_reached(tmp_path, cache, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt-get
    monkeypatch.setenv("PALTO_DATA", str(tmp_path / "empty"))
    files = fetch.Files(
        **FILES,
        folders=(str(tmp_path / "nowhere"),),
        debian="letters",
        addresses=("http://127.0.0.1:9/",),
    )
    with pytest.raises(data.DataUnavailableError) as info:
        files.read()
    message = str(info.value)
    for part in ("empty has no", "the cache", "nowhere has no a.gz", "no apt-get", "127.0.0.1:9"):
        assert part in message
    assert "put a.gz, b into a folder" in message


def test_a_cache_that_cannot_be_written(cache, server, capsys):
    cache.parent.write_text("a file where the folder should be")
    assert fetch.Files(**FILES, addresses=(server(published()),)).read() == CONTENT
    assert "could not keep b" in capsys.readouterr().err


def test_a_copy_that_fails_leaves_nothing_in_the_cache(tmp_path, cache, monkeypatch, capsys):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(fetch.shutil, "copyfileobj", full)
    fetch.Files(**FILES)._keep("b", write(tmp_path / "published") / "b", cache)
    assert os.listdir(cache) == []
    assert "no space left" in capsys.readouterr().err


# --- Debian's package ----------------------------------------------------------------------------

# A shell script stands for apt-get: without lists it knows no package, as on a fresh system.
APT = """#!/bin/sh
for word in "$@"; do
  case "$word" in Dir::State::lists=*) lists="${word#*=}" ;; esac
done
case "$*" in
  *update) [ -n "$lists" ] && touch "$lists/known" ;;
  *) if [ -e "$FRESH" ] && [ ! -e "$lists/known" ]; then
       echo "W: something" >&2; echo "E: Unable to locate package letters" >&2; exit 100
     fi
     echo package > letters_1_all.deb ;;
esac
"""
DPKG = """#!/bin/sh
[ "$1" = -x ] && [ -s "$2" ] && mkdir -p "$3/usr/share" && cp "$PUBLISHED"/* "$3/usr/share"
"""


@pytest.fixture
def debian(tmp_path, monkeypatch, cache):
    if sys.platform == "win32":
        pytest.skip("shell scripts stand for Debian's commands")
    for name, script in (("apt-get", APT), ("dpkg-deb", DPKG)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(script)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PUBLISHED", str(write(tmp_path / "published")))
    monkeypatch.setenv("FRESH", str(tmp_path / "fresh"))
    return fetch.Files(**FILES, debian="letters")


@pytest.mark.parametrize("fresh", [False, True])
def test_the_package_is_unpacked(debian, tmp_path, cache, capsys, fresh):
    if fresh:
        (tmp_path / "fresh").touch()
    assert debian.read() == CONTENT
    assert sorted(os.listdir(cache)) == ["a.gz", "b"]
    assert "unpacked, not installed" in capsys.readouterr().err


def test_the_package_itself_may_be_wanted(debian, cache):
    content = b"package\n"
    known = fetch.Contents(hashlib.sha256(content).hexdigest(), len(content))
    files = fetch.Files("letters", {"letters_1_all.deb": known}, debian="letters")
    assert files.read() == {"letters_1_all.deb": content}
    assert os.listdir(cache) == ["letters_1_all.deb"]


def test_a_package_that_lacks_a_file_or_holds_a_damaged_one(debian, tmp_path, capsys):
    (tmp_path / "published" / "b").write_bytes(b"other")
    with pytest.raises(data.DataUnavailableError, match="b in the package is damaged"):
        debian.read()
    (tmp_path / "published" / "b").unlink()
    with pytest.raises(data.DataUnavailableError, match="Debian's package letters: it has no b"):
        debian.read()


def test_a_command_that_fails_or_hangs(debian, tmp_path, monkeypatch, capsys):
    apt = tmp_path / "bin" / "apt-get"
    apt.write_text("#!/bin/sh\necho 'E: no network' >&2\nexit 100\n")
    with pytest.raises(data.DataUnavailableError, match=r"apt-get.*failed: E: no network"):
        debian.read()
    apt.write_text("#!/bin/sh\nexec sleep 30\n")
    monkeypatch.setattr(fetch, "TOTAL_TIMEOUT", 0.2)
    with pytest.raises(data.DataUnavailableError, match="timed out"):
        debian.read()


# --- Weight --------------------------------------------------------------------------------------


# --- Python's packages ---------------------------------------------------------------------------


@pytest.fixture
def wheel(monkeypatch):
    """``wheel(contents)``: what pip downloads from now on."""

    def wheel(contents):
        def run(command, folder):
            assert command[1:3] == ["-m", "pip"]
            with zipfile.ZipFile(folder / "letters-1-py3-none-any.whl", "w") as archive:
                for name, content in contents.items():
                    archive.writestr(name, content)

        monkeypatch.setattr(fetch, "_run", run)
        return fetch.Files(**FILES, pip="letters==1")

    return wheel


def test_what_a_python_package_contains(wheel, cache):
    files = wheel(
        {"letters/a.gz": gzip.compress(CONTENT["a.gz"]), "letters/deep/b": CONTENT["b"], "c": b""}
    )
    assert files.read() == CONTENT
    assert sorted(path.name for path in cache.iterdir()) == ["a.gz", "b"]
    assert files.path("b") == cache / "b"
    assert files.path("b").read_bytes() == CONTENT["b"]


def test_a_python_package_with_other_contents(wheel, cache):
    for content in (b"other", b"other" * 10_000_000):
        with pytest.raises(fetch.DataUnavailableError, match="b as downloaded is damaged"):
            wheel({"a.gz": gzip.compress(CONTENT["a.gz"]), "../../b": content}).read()
        assert not (cache / "b").exists()


def test_where_a_file_lies(tmp_path, cache, monkeypatch):
    files = fetch.Files(**FILES)
    write(cache)
    assert files.path("b") == cache / "b"
    monkeypatch.setenv("PALTO_DATA", str(write(tmp_path / "mine")))
    assert files.path("b") == tmp_path / "mine" / "b"


def test_a_file_that_has_no_place(wheel, cache, capsys):
    cache.parent.write_bytes(b"no folder")
    files = wheel({"a.gz": gzip.compress(CONTENT["a.gz"]), "b": CONTENT["b"]})
    assert files.read() == CONTENT
    with pytest.raises(fetch.DataUnavailableError, match="make room there"):
        files.path("b")


def test_importing_the_room_imports_no_network():
    code = "import sys, palto.data; print({'pooch', 'requests', 'rich'} & set(sys.modules))"
    root = Path(data.__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "set()"
