"""Logistic regression finds what scikit-learn's finds."""

import numpy as np
import pytest

import palto
from palto import data, nn, optim

linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")

STRENGTH = 1.0  # scikit-learn's C, the inverse of the L2 penalty's strength


@pytest.fixture(scope="module")
def penguins():
    measures = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
    train, _ = data.penguins(features=measures, missing="drop", validation=0)
    inputs, labels = train.__getitems__(range(len(train)))
    return inputs.astype(np.float64), labels


def trained(model, loss_of, weight, inputs, labels):
    """The least of the mean loss + |weight|^2 / (2 C N), to convergence."""
    inputs, labels = palto.asarray(inputs), palto.asarray(labels)
    optimizer = optim.SGD(model, lr=0.5, momentum=0.95)

    @palto.compile
    def step():
        penalty = (weight * weight).sum() / (2 * STRENGTH * inputs.shape[0])
        loss = loss_of(model(inputs), labels) + penalty
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(3000):
        loss = step()
    return float(loss)


def test_several_classes(penguins):
    inputs, labels = penguins
    model = nn.models.logistic_regression(4, 3).to(palto.float64)
    layer = model[1]
    trained(model, nn.functional.cross_entropy, layer.weight, inputs, labels)
    theirs = linear_model.LogisticRegression(C=STRENGTH, tol=1e-8, max_iter=5000)
    theirs.fit(inputs, labels)
    np.testing.assert_allclose(layer.weight.numpy(), theirs.coef_, atol=1e-3)
    # A number added to all biases changes no probability; only their differences are found.
    bias = layer.bias.numpy() - layer.bias.numpy().mean()
    np.testing.assert_allclose(bias, theirs.intercept_ - theirs.intercept_.mean(), atol=1e-3)
    ours = nn.functional.softmax(model(palto.asarray(inputs))).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(inputs), atol=1e-3)


def test_two_classes_are_one_neuron(penguins):
    inputs, labels = penguins
    some = labels < 2
    inputs, labels = inputs[some], labels[some]
    neuron = nn.Neuron(4).to(palto.float64)
    answers = labels.astype(np.float64)
    trained(neuron, nn.functional.binary_cross_entropy, neuron.weight, inputs, answers)
    theirs = linear_model.LogisticRegression(C=STRENGTH, tol=1e-8, max_iter=5000)
    theirs.fit(inputs, labels)
    np.testing.assert_allclose(neuron.weight.numpy(), theirs.coef_[0], atol=1e-3)
    np.testing.assert_allclose(-neuron.threshold.numpy(), theirs.intercept_[0], atol=1e-3)


def test_products_of_coordinates_are_more_coordinates(penguins):
    """A neuron of features f_i is logistic regression upon them."""
    inputs, labels = penguins
    neuron = nn.Neuron(
        [lambda x: x[..., 0], lambda x: x[..., 2], lambda x: x[..., 0] * x[..., 2]]
    ).to(palto.float64)
    answers = (labels == 1).astype(np.float64)
    trained(neuron, nn.functional.binary_cross_entropy, neuron.weight, inputs, answers)
    theirs = linear_model.LogisticRegression(C=STRENGTH, tol=1e-8, max_iter=5000)
    theirs.fit(np.stack([inputs[:, 0], inputs[:, 2], inputs[:, 0] * inputs[:, 2]], 1), labels == 1)
    np.testing.assert_allclose(neuron.weight.numpy(), theirs.coef_[0], atol=1e-3)
