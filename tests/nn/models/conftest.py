"""A model here and the same in PyTorch: one set of weights, outputs and all gradients compared."""

import numpy as np

import palto


def count(model):
    return sum(parameter.size for parameter in model.parameters())


def images(*shape, dtype=np.float32, seed=0):
    return palto.asarray(np.random.default_rng(seed).random(shape).astype(dtype))


def to_torch(array):
    """A kernel (KH, KW, in, out) as PyTorch's (out, in, KH, KW); anything else as it is."""
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array)


def compare(torch, model, forward, x, *, rtol=1e-8):
    """Compare logits, and the gradients of every parameter for a random linear loss.

    Args:
        torch: PyTorch.
        model: the model here.
        forward: from PyTorch's weights by name (kernels in its layout) and input, to logits.
        x: the input, channels-last.
    """
    weights = {}
    for name, value in model.state_dict().items():
        weights[name] = torch.tensor(to_torch(value.numpy()))
    for name, _ in model.named_parameters():
        weights[name].requires_grad_()
    z = torch.tensor(x.numpy())
    theirs = forward(weights, z.permute(0, 3, 1, 2) if z.ndim == 4 else z)
    probe = np.random.default_rng(1).normal(size=tuple(theirs.shape))
    (theirs * torch.tensor(probe, dtype=theirs.dtype)).sum().backward()

    ours = model(x)
    (ours * palto.asarray(probe, dtype=ours.dtype)).sum().backward()
    assert_close(ours.numpy(), theirs.detach().numpy(), rtol, "logits")
    for name, parameter in model.named_parameters():
        assert_close(to_torch(parameter.grad.numpy()), weights[name].grad.numpy(), rtol, name)
    return weights


def assert_close(ours, theirs, rtol, name):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=rtol * np.abs(theirs).max(), err_msg=name)
