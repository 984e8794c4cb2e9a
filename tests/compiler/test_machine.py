"""Machine code: what is loaded computes, is kept on disk, and is freed."""

import ctypes
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from palto.compiler.llvm import cache, machine

DOUBLE = "define double @twice(double %x) {\n  %y = fadd double %x, %x\n  ret double %y\n}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache, not yet there."""
    monkeypatch.setenv("PALTO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compiled(monkeypatch):
    """The texts that were compiled, not found."""
    texts, original = [], machine._compile
    monkeypatch.setattr(machine, "_compile", lambda text: (texts.append(text), original(text))[1])
    return texts


def call(code, name, x):
    return ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(code.address(name))(x)


def adds(number):
    """A module of its own for every number."""
    return DOUBLE.replace("%x, %x", f"%x, {float(number)}")


def test_a_second_load_compiles_nothing(folder, compiled):
    for _ in range(3):
        assert call(machine.load(DOUBLE), "twice", 1.5) == 3
    assert compiled == [DOUBLE]
    assert call(machine.load(adds(4)), "twice", 1.5) == 5.5
    assert len(compiled) == 2
    assert len(list(folder.iterdir())) == 2


def test_without_cache_nothing_is_stored(folder, compiled, monkeypatch):
    machine.load(DOUBLE, cached=False)
    for off in ("0", "off"):
        monkeypatch.setenv("PALTO_CACHE", off)
        assert call(machine.load(DOUBLE), "twice", 2.0) == 4
    assert len(compiled) == 3
    assert not folder.exists()
    assert not Path("off").exists()


def test_the_users_cache_is_the_default(monkeypatch):
    pooch = pytest.importorskip("pooch")
    monkeypatch.delenv("PALTO_CACHE", raising=False)
    assert cache.folder() == pooch.os_cache("palto") / "compiled"


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "longer"])
def test_a_damaged_file_is_rewritten(folder, compiled, damage):
    machine.load(DOUBLE)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "truncated": whole[:middle],
            "empty": b"",
            "longer": whole + b"\0",
        }[damage]
    )
    assert call(machine.load(DOUBLE), "twice", 1.0) == 2
    assert len(compiled) == 2
    assert path.read_bytes() == whole
    machine.load(DOUBLE)
    assert len(compiled) == 2


def test_another_machine_or_version_is_another_file(folder, compiled, monkeypatch):
    machine.load(DOUBLE)
    monkeypatch.setattr(machine, "_identity", lambda: b"another CPU\n")
    machine.load(DOUBLE)
    assert len(compiled) == 2
    assert len(list(folder.iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_no_error(folder, compiled):
    folder.write_bytes(b"a file where the folder should be")
    for _ in range(2):
        assert call(machine.load(DOUBLE), "twice", 1.0) == 2
    assert len(compiled) == 2
    assert folder.read_bytes() == b"a file where the folder should be"


def test_a_full_disk_is_no_error_and_leaves_nothing(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert call(machine.load(DOUBLE), "twice", 1.0) == 2
    assert list(folder.iterdir()) == []


def test_what_was_used_longest_ago_is_removed(folder, compiled, monkeypatch):
    for number in range(4):
        machine.load(adds(number))
        for path in folder.iterdir():  # everything a minute older
            os.utime(path, (path.stat().st_mtime - 60,) * 2)
    size = path.stat().st_size
    (folder / "somebody's.txt").write_bytes(bytes(100 * size))
    machine.load(adds(0))  # the oldest, used again
    monkeypatch.setattr(cache, "LIMIT", 3 * size + size // 2)
    machine.load(adds(4))
    assert len(list(folder.glob("*.o"))) == 3
    assert (folder / "somebody's.txt").exists()
    count = len(compiled)
    for number in (0, 3, 4):
        machine.load(adds(number))
    assert len(compiled) == count


def test_processes_may_compile_the_same_at_once(folder):
    script = (
        "import ctypes; from palto.compiler.llvm import machine\n"
        f"for number in range(30): code = machine.load({DOUBLE!r}.replace('%x, %x', "
        "f'%x, {float(number)}'))\n"
        "print(ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(code.address('twice'))(1.0))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.communicate(timeout=60) == (b"30.0\n", b"")
    files = list(folder.iterdir())
    assert len(files) == 30
    assert all(cache.read(path) for path in files)


@pytest.mark.parametrize("name", ["exp", "log", "sin", "erf", "tgamma"])
def test_functions_of_the_c_library_resolve(folder, name):
    text = (
        f"declare double @{name}(double)\ndefine double @f(double %x) {{\n"
        f"  %y = call double @{name}(double %x)\n  ret double %y\n}}\n"
    )
    function = {"tgamma": math.gamma}.get(name) or getattr(math, name)
    for _ in range(2):  # compiled, loaded
        assert call(machine.load(text), "f", 0.7) == pytest.approx(function(0.7), rel=1e-15)


def test_what_is_missing_is_named(folder):
    with pytest.raises(LookupError, match=r"'thrice'.*not as internal"):
        machine.load(DOUBLE).address("thrice")
    text = "declare void @no_such_function()\ndefine void @f() {\n"
    text += "  call void @no_such_function()\n  ret void\n}\n"
    for _ in range(2):
        with pytest.raises(LookupError, match="no_such_function"):
            machine.load(text)
    with pytest.raises(RuntimeError, match="expected"):
        machine.load("define nonsense")
    with pytest.raises(RuntimeError, match="dominate"):
        machine.load(
            "define i32 @f() {\n  %a = add i32 %b, 1\n  %b = add i32 1, 1\n  ret i32 %a\n}"
        )


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measures memory as Linux does")
@pytest.mark.parametrize("cached", [True, False], ids=["loaded", "compiled"])
def test_code_is_freed(folder, cached):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def many(count):
        for number in range(count):
            machine.load(DOUBLE if cached else adds(number), cached=cached)

    many(50)
    before = resident()
    many(400)
    assert resident() - before < 2 << 20  # LLJIT would keep more


def test_code_lives_as_long_as_it_is_kept(folder):
    codes = [machine.load(adds(number)) for number in range(20)]
    for number, code in enumerate(codes):
        assert call(code, "twice", 1.0) == 1 + number


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers on Windows")
def test_ctrl_c_ends_a_load(folder):
    script = f"""
        import signal, time
        from palto.compiler.llvm import machine
        long = "".join(
            {DOUBLE!r}.replace("twice", f"f{{number}}").replace("%x, %x", f"%x, {{number}}.0")
            for number in range(1500)
        )
        kept = [machine.load({DOUBLE!r})]  # Python loses exceptions where objects are freed
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        for number in range(41):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.001 * number or 0.1)
                if not number:
                    machine.load(long)
                while True:
                    kept.append(machine.load({DOUBLE!r}, cached=number % 2))
            except KeyboardInterrupt:
                pass
        print("loaded" if machine.load({DOUBLE!r}).address("twice") else "")
        machine.threading.Thread(target=machine.load, args=(long,), daemon=True).start()
        time.sleep(0.01)  # the process ends in the middle of a load
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (finished.stdout, finished.stderr, finished.returncode) == ("loaded\n", "", 0)


def test_llvmlite_is_imported_when_code_is_loaded():
    script = "import sys, palto, palto.compiler.team; assert 'llvmlite' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
