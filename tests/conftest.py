"""What every test shares."""

import os

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile(
    "palto", max_examples=30, deadline=None, derandomize="CI" in os.environ, print_blob=True
)
settings.load_profile("palto")


@pytest.fixture(scope="session")
def torch():
    """PyTorch on one thread; without it, the tests that ask for it are skipped."""
    module = pytest.importorskip(
        "torch",
        reason="PyTorch is not installed: checks against PyTorch are skipped "
        "(pip install torch==2.13.0)",
    )
    module.set_num_threads(1)
    return module


@pytest.fixture(autouse=True)
def same_start():
    """The same random numbers and NumPy's own error state for every test, whatever ran before."""
    import palto

    if hasattr(palto, "manual_seed"):
        palto.manual_seed(0)
    with np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"):
        yield
