"""Results are kept by row, and the page and the picture are made of them."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

PAGE = """# Performance

<!-- benchmark: main -->
old
<!-- end of benchmark: main -->

words between

<!-- benchmark: more -->
<!-- end of benchmark: more -->

words after

<!-- benchmark: loading -->
<!-- end of benchmark: loading -->

the end
"""


def run(palto=0.001, peak=100.0, **peers):
    sides = {"Palto": {"median": palto, "memory": 50.0, "compile": 1.5, "warm": 0.25}}
    for name, seconds in peers.items():
        sides[name] = {"median": seconds, "memory": 90.0, "compile": 3.0, "way": "eager"}
    return {
        "date": "2026-01-02", "machine": "a processor, 2 cores", "versions": {"Palto": "1.0"},
        "flops": 5e7, "peak": peak, "sides": sides, "tried": {}, "left_out": {},
    }  # fmt: skip


@pytest.fixture
def docs(tmp_path):
    (tmp_path / "performance.md").write_text(PAGE)
    return tmp_path


def page(docs):
    return (docs / "performance.md").read_text()


def test_a_row_says_how_many_times_longer_a_peer_takes(docs):
    import results

    results.record(docs, "gpt", 2, run(PyTorch=0.002, JAX=0.0015))
    lines = page(docs).splitlines()
    assert (
        "| GPT: 4 layers, width 192, 128 tokens, batch 16 | 2 | 1 ms | 50 | 50 % "
        "| 2 ms, 2.00x | 1.5 ms, 1.50x | 1.50x (JAX) |"
    ) in lines
    assert any(line.endswith("| 1.50 s, 0.25 s, 50 MB | 3.00 s, 90 MB (eager) | 3.00 s, 90 MB "
                             "(eager) |") for line in lines)  # fmt: skip
    assert "Measured on 2026-01-02, a processor, 2 cores; Palto 1.0." in lines
    assert "old" not in lines


def test_the_rest_of_the_page_stays(docs):
    import results

    results.record(docs, "gpt", 1, run())
    results.record(docs, "gru", 1, run(PyTorch=0.003))
    parts = page(docs).split("words between")
    assert "GPT" in parts[0] and "GPT" not in parts[1]
    assert "GRU" in parts[1] and parts[1].endswith("the end\n")
    before = page(docs)
    results.redraw(docs)
    assert page(docs) == before


def test_a_run_replaces_its_own_row_alone(docs):
    import results

    results.record(docs, "fully_connected", 1, run(PyTorch=0.002))
    results.record(docs, "fully_connected", 2, run(PyTorch=0.004))
    results.record(docs, "gpt", 2, run(PyTorch=0.005))
    results.record(docs, "fully_connected", 2, run(PyTorch=0.007))
    kept = json.loads((docs / "benchmark.json").read_text())
    medians = {
        (name, threads): run["sides"]["PyTorch"]["median"]
        for name, runs in kept.items()
        for threads, run in runs.items()
    }
    assert medians == {
        ("fully_connected", "1"): 0.002,
        ("fully_connected", "2"): 0.007,
        ("gpt", "2"): 0.005,
    }


def loading_run(seconds=1e-5):
    life = {"title": "photos", "workers": 2, "first": 0.05, "memory": 7.4, "gone": 0.002, "left": 0,
            "interrupted": 0.1, "stayed": 0, "noise": 0}  # fmt: skip
    return {
        "date": "2026-05-06", "machine": "a processor", "versions": {"Palto": "1.0"},
        "epochs": [{"title": "bytes", "sides": {
            "Palto": {"seconds": seconds, "workers": 0}, "PyTorch": {"seconds": 4e-4, "workers": 1},
        }}],
        "lives": [{**life, "side": "Palto"}, {**life, "side": "PyTorch", "left": 2, "noise": 9}],
        "steps": {"float32": {"on one batch": 3e-4, "loaded": 3.1e-4, "waiting": 1e-5}},
    }  # fmt: skip


def test_a_run_of_the_loaders_has_its_own_place(docs):
    import results

    results.record(docs, "gpt", 2, run(PyTorch=0.002))
    results.record_loading(docs, loading_run())
    results.record_loading(docs, loading_run(2e-5))
    lines = page(docs).splitlines()
    assert "| bytes | 20.0 us, 0 workers | 400.0 us, 1 workers | 20.0 |" in lines
    assert "| photos | Palto | 2 | 50.0 ms | 7 MB | 2.0 ms | 100.0 ms | 0 |" in lines
    assert "|  | PyTorch | 2 | 50.0 ms | 7 MB | 2.0 ms, 2 left | 100.0 ms | 9 |" in lines
    assert "| float32 | 300.0 us | 310.0 us | 10.0 us, 3.2% |" in lines
    assert "Measured on 2026-05-06, a processor; Palto 1.0." in lines
    assert any(line.startswith("| GPT") for line in lines)
    assert lines[-1] == "the end"
    assert "not quiet" not in page(docs)
    restless = loading_run()
    restless["epochs"][0]["sides"]["Palto"]["turns"] = {"0": [1e-5, 3e-5]}
    results.record_loading(docs, restless)
    assert "not quiet: Palto's turns differ in bytes (3.0x)." in page(docs)


def test_rows_of_different_runs_name_their_own(docs):
    import results

    results.record(docs, "fully_connected", 1, run())
    results.record(docs, "gpt", 1, {**run(), "date": "2026-03-04"})
    assert "2026-01-02, a processor, 2 cores; Palto 1.0 (fully connected" in page(docs)
    assert "2026-03-04, a processor, 2 cores; Palto 1.0 (GPT" in page(docs)


def test_who_is_missing_and_what_disturbed_is_said(docs):
    import results

    found = run()
    found["left_out"]["MLX (eager)"] = "not ready in 60 s"
    found["sides"]["Palto"]["medians of turns"] = [0.001, 0.002]
    results.record(docs, "alexnet", 2, found)
    assert "Left out (not ready in 60 s): MLX (eager) of alexnet on 2." in page(docs)
    assert "not quiet: Palto's turns differ in alexnet on 2 (2.0x)" in page(docs)


def test_the_picture_has_every_time_and_is_the_same_each_time(docs):
    pytest.importorskip("matplotlib")
    import results

    results.record(docs, "gpt", 1, run(PyTorch=0.002, JAX=0.009))
    results.record(docs, "gpt", 2, run(0.0005, PyTorch=0.0015))
    picture = (docs / "pictures" / "benchmark.svg").read_bytes()
    text = "".join(ElementTree.fromstring(picture).itertext())
    for expected in ("1 ms", "2 ms", "9 ms", "0.5 ms", "1.5 ms", "PyTorch", "JAX", "2 threads"):
        assert expected in text
    results.redraw(docs)
    assert (docs / "pictures" / "benchmark.svg").read_bytes() == picture


def test_a_page_without_markers_is_refused_and_stays(docs):
    import results

    (docs / "performance.md").write_text("no markers\n")
    with pytest.raises(ValueError, match="benchmark: main"):
        results.record(docs, "gpt", 1, run())
    assert page(docs) == "no markers\n"
    assert "gpt" in results.load(docs)  # what was measured is not lost


def test_an_interrupted_write_leaves_the_old_file(docs, monkeypatch):
    import results

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        results.write(docs / "performance.md", b"new")
    assert page(docs) == PAGE
    assert [path.name for path in docs.iterdir()] == ["performance.md"]


def test_the_projects_own_page_is_what_its_results_say(scripts):
    """Redrawing changes nothing but, with another matplotlib, the picture."""
    import results

    docs = Path(scripts).parent / "docs"
    text, runs = page(docs), results.load(docs)
    for section, workloads in results.SECTIONS.items():
        if any(workload.name in runs for workload in workloads):
            text = results.placed(text, section, "\n\n".join(results.tables(runs, workloads)))
    if results.LOADING in runs:
        loading = results.loading_tables(runs[results.LOADING])
        text = results.placed(text, results.LOADING, "\n\n".join(loading))
    assert text == page(docs)
