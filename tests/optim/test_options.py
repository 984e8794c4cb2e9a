"""Options that would have no effect are refused."""

import pytest

from palto import nn, optim


def test_an_option_of_the_groups_set_on_the_optimiser():
    optimizer = optim.SGD(nn.Linear(2, 3), lr=0.1)
    with pytest.raises(AttributeError, match=r"optimizer\.groups\[0\]\.weight_decay"):
        optimizer.weight_decay = 1.0
    optimizer.groups[0].weight_decay = 1.0
    optimizer.lr = 0.2
    assert optimizer.groups[0].weight_decay == 1.0 and float(optimizer.lr) == 0.2


def test_an_option_that_there_is_not():
    optimizer = optim.Adam(nn.Linear(2, 3))
    with pytest.raises(AttributeError, match="no 'weight_decy'; it has lr"):
        optimizer.groups[0].weight_decy = 1.0


def test_what_is_no_parameter():
    with pytest.raises(TypeError, match=r"call it: model\.parameters\(\)"):
        optim.SGD(nn.Linear(2, 3).parameters, lr=0.1)
    with pytest.raises(ValueError, match=r"nn\.Parameter"):
        optim.SGD(nn.ReLU(), lr=0.1)
