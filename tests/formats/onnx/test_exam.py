"""The backend tests that ship with onnx, run by our Backend.

`unsupported.txt` names every case that does not pass, with the reason. It is exact: a case in it
that passes fails this test, as does one out of it that does not.
"""

import functools
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test import loader

from palto.formats.onnx import OnnxError, UnsupportedError
from palto.formats.onnx.backend import Backend
from tests.documents import ROOT

UNSUPPORTED = Path(__file__).with_name("unsupported.txt")
#: What the cases of the exam are made of; others use dtypes, sequences or texts that Palto has not.
DTYPES = {getattr(onnx.TensorProto, name) for name in ("FLOAT", "DOUBLE", "INT32", "INT64", "BOOL")}
#: Why a compiled program cannot do some cases that give a shape as an input.
NOT_COMPILED = "known only when the program runs"


def unsupported():
    """The reason by case."""
    lines = UNSUPPORTED.read_text(encoding="utf-8").splitlines()
    return dict(line.split(": ", 1) for line in lines if line and not line.startswith("#"))


def is_of_tensors(model):
    """Whether a model's inputs and outputs are tensors of those dtypes."""
    return all(
        value.type.WhichOneof("value") == "tensor_type"
        and value.type.tensor_type.elem_type in DTYPES
        for value in (*model.graph.input, *model.graph.output)
    )


@functools.cache
def all_cases():
    """The cases of single operators, as (name, model, [(inputs, outputs)], rtol, atol)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnx computes what it wants with overflows
        cases = loader.load_model_tests(kind="node")
    return [(case.name, case.model, case.data_sets, case.rtol, case.atol) for case in cases]


def node_cases():
    """Those of the exam."""
    return [case for case in all_cases() if is_of_tensors(case[1])]


def tensors(folder, kind):
    paths = sorted(folder.glob(f"{kind}_*.pb"), key=lambda path: int(path.stem.split("_")[1]))
    return [onnx.load_tensor(path) for path in paths]


def file_cases(kind):
    """Converted PyTorch models or operators: the same, from files."""
    for case in loader.load_model_tests(kind=kind):
        folder = Path(case.model_dir)
        sets = [
            (tensors(part, "input"), tensors(part, "output"))
            for part in sorted(folder.glob("test_data_set_*"))
        ]
        yield case.name, onnx.load(folder / "model.onnx"), sets, case.rtol, case.atol


def array(x):
    return numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else np.asarray(x)


def passes(case, **options):
    """Nothing, if the outputs are right; or an error that says what is wrong."""
    _, model, sets, rtol, atol = case
    assert sets
    for inputs, outputs in sets:
        results = Backend.prepare(model, **options).run([array(x) for x in inputs])
        for got, wanted in zip(results, map(array, outputs), strict=True):
            assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
            if got.dtype.name == "bfloat16":  # NumPy has no tolerances for it
                got, wanted = got.astype(np.float32), wanted.astype(np.float32)
            np.testing.assert_allclose(got, wanted, rtol=rtol, atol=atol)


def outcomes(cases, **options):
    """The errors by the names of cases, None for one that passes."""
    found = {}
    for case in cases:
        try:
            passes(case, **options)
        except (OnnxError, AssertionError) as error:
            found[case[0]] = error
        else:
            found[case[0]] = None
    return found


def test_single_operators():
    expected, found = unsupported(), outcomes(node_cases())
    failed = {name: error for name, error in found.items() if error is not None}
    assert len(found) > 1400
    assert len(found) - len(failed) >= 1300
    assert failed.keys() - expected.keys() == set(), failed
    assert expected.keys() - failed.keys() == set(), "these pass: take them out of the list"
    passed = f"{len(found) - len(failed):,} of {len(found):,} pass"
    assert passed in (ROOT / "docs" / "exchange.md").read_text(encoding="utf-8")
    for name, error in failed.items():
        if isinstance(error, UnsupportedError):
            assert error.operator in expected[name] and error.operator in str(error), name


def test_cases_of_other_dtypes_end_in_an_answer():
    """They are right, or refused by the operator's or the dtype's name."""
    others = [case for case in all_cases() if not is_of_tensors(case[1])]
    found = outcomes(others)
    wrong = {n: error for n, error in found.items() if isinstance(error, AssertionError)}
    assert not wrong
    for name, error in found.items():
        if isinstance(error, UnsupportedError):
            assert error.operator in str(error), name
        elif error is not None:
            assert "of operator" in str(error) and "float16" in str(error), name
    assert sum(error is None for error in found.values()) > 70


def test_single_operators_compiled():
    """A sample; shapes that are given as inputs are refused, everything else is as at once."""
    skipped = unsupported()
    sample = [case for case in node_cases()[::15] if case[0] not in skipped]
    found = outcomes(sample, compile=True)
    wrong = {
        name: error
        for name, error in found.items()
        if error is not None
        and not (isinstance(error, UnsupportedError) and NOT_COMPILED in str(error))
    }
    assert not wrong
    assert sum(error is None for error in found.values()) > 0.6 * len(sample) > 40


@pytest.mark.parametrize(("kind", "count"), [("pytorch-converted", 82), ("pytorch-operator", 35)])
def test_converted_from_pytorch(kind, count):
    found = outcomes(file_cases(kind))
    assert len(found) == count
    assert [name for name, error in found.items() if error is not None] == []


def test_converted_from_pytorch_compiled():
    found = outcomes([*file_cases("pytorch-converted")][::5], compile=True)
    assert len(found) == 17
    assert [name for name, error in found.items() if error is not None] == []


def test_the_backend_says_what_it_can():
    assert Backend.supports_device("CPU") and not Backend.supports_device("CUDA")
    models = {name: model for name, model, *_ in node_cases()}
    assert Backend.is_compatible(models["test_relu"])
    assert not Backend.is_compatible(models["test_tfidfvectorizer_tf_batch_onlybigrams_skip0"])
    with pytest.raises(UnsupportedError, match="TfIdfVectorizer"):
        Backend.prepare(models["test_tfidfvectorizer_tf_batch_onlybigrams_skip0"])
    with pytest.raises(ValueError, match="CPU, not on CUDA"):
        Backend.prepare(models["test_relu"], "CUDA")
