"""The training steps in JAX, TensorFlow and MLX: one model, over the operations of each.

The sequential models are read off Palto's; images keep their channels last, as all three want
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from steps import palto_model
from workloads import HEADS, Workload

from palto import nn

#: Of Adam, as PyTorch has it.
RATE, MEAN, SQUARE, EPS = 1e-3, 0.9, 0.999, 1e-8


def weights_of(model: nn.Module) -> dict[str, np.ndarray]:
    """A model's weights, by name."""
    return {name: parameter.numpy() for name, parameter in model.named_parameters()}


def forward(ops: Any, model: nn.Module, weights: dict[str, Any], x: Any) -> Any:
    """The logits, from weights by Palto's names."""
    if not isinstance(model, nn.Sequential):
        return gpt(ops, weights, x)
    for name, layer in model.named_modules():
        part = f"{name}.".removeprefix(".")
        if isinstance(layer, nn.Conv2d):
            x = ops.conv(x, weights[f"{part}weight"], layer.stride[0], layer.padding[0])
            x = x + weights[f"{part}bias"]
        elif isinstance(layer, nn.Linear):
            x = x @ ops.turned(weights[f"{part}weight"]) + weights[f"{part}bias"]
        elif isinstance(layer, nn.ReLU):
            x = ops.relu(x)
        elif isinstance(layer, nn.MaxPool2d):
            x = ops.max_pool(x, layer.kernel_size[0], layer.stride[0])
        elif isinstance(layer, nn.Flatten):
            x = ops.reshape(x, (x.shape[0], math.prod(x.shape[1:])))
        elif not isinstance(layer, nn.Sequential):
            raise TypeError(f"no operation for {type(layer).__name__}")
    return x


def gpt(ops: Any, weights: dict[str, Any], tokens: Any) -> Any:
    """The logits of the GPT."""

    def linear(x: Any, name: str) -> Any:
        return x @ ops.turned(weights[f"{name}.weight"]) + weights[f"{name}.bias"]

    def norm(x: Any, name: str) -> Any:
        return ops.layer_norm(x) * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    count, time = tokens.shape
    width = weights["tokens.weight"].shape[1]
    causal = np.tril(np.ones((time, time), bool))
    x = ops.take(weights["tokens.weight"], tokens) + weights["positions.weight"][:time]
    layers = sum(name.endswith("expand.weight") for name in weights)
    for block in (f"blocks.{i}" for i in range(layers)):
        y = norm(x, f"{block}.norm1")
        name = f"{block}.attention.in_proj"
        y = y @ ops.turned(weights[f"{name}_weight"]) + weights[f"{name}_bias"]
        y = ops.reshape(y, (count, time, 3, HEADS, width // HEADS))
        query, key, value = (ops.permute(y[:, :, i], (0, 2, 1, 3)) for i in range(3))
        scores = query @ ops.permute(key, (0, 1, 3, 2)) / math.sqrt(width // HEADS)
        y = ops.softmax(ops.where(causal, scores, -math.inf)) @ value
        y = ops.reshape(ops.permute(y, (0, 2, 1, 3)), (count, time, width))
        x = x + linear(y, f"{block}.attention.out_proj")
        y = ops.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.expand"))
        x = x + linear(y, f"{block}.contract")
    return norm(x, "norm") @ ops.turned(weights["tokens.weight"])


# --- JAX -----------------------------------------------------------------------------------------


class JaxOperations:
    """What `forward` asks of JAX."""

    def __init__(self) -> None:
        import jax

        numpy, lax = jax.numpy, jax.lax
        self.relu, self.softmax, self.gelu = jax.nn.relu, jax.nn.softmax, jax.nn.gelu
        self.reshape, self.permute, self.where = numpy.reshape, numpy.transpose, numpy.where
        self.turned = numpy.transpose
        self.take = lambda table, places: table[places]
        self.conv = lambda x, w, stride, padding: lax.conv_general_dilated(
            x, w, (stride, stride), [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        self.max_pool = lambda x, size, stride: lax.reduce_window(
            x, -np.inf, lax.max, (1, size, size, 1), (1, stride, stride, 1), "VALID"
        )

    def layer_norm(self, x: Any) -> Any:
        """To mean 0 and variance 1 along the last axis."""
        centred = x - x.mean(-1, keepdims=True)
        return centred / ((centred * centred).mean(-1, keepdims=True) + 1e-5) ** 0.5


def jax_step(workload: Workload, *, repeats: int) -> Callable[[], float]:
    """So many steps in one call (in `lax.scan`, if more than one); the last loss."""
    import jax

    numpy, ops, model = jax.numpy, JaxOperations(), palto_model(workload)
    inputs, labels = (numpy.asarray(part) for part in workload.batch())

    def loss_of(weights: dict[str, Any]) -> Any:
        logits = forward(ops, model, weights, inputs)
        logits = logits.reshape(-1, logits.shape[-1])
        chosen = numpy.take_along_axis(logits, labels.reshape(-1, 1), 1)[:, 0]
        return (jax.nn.logsumexp(logits, axis=1) - chosen).mean()

    def step(state: Any, _: Any = None) -> Any:
        weights, means, squares, count = state
        loss, grads = jax.value_and_grad(loss_of)(weights)
        count = count + 1
        rate = RATE * numpy.sqrt(1 - SQUARE**count) / (1 - MEAN**count)
        means = jax.tree.map(lambda m, g: MEAN * m + (1 - MEAN) * g, means, grads)
        squares = jax.tree.map(lambda s, g: SQUARE * s + (1 - SQUARE) * g * g, squares, grads)
        eps = EPS * numpy.sqrt(1 - SQUARE**count)
        weights = jax.tree.map(
            lambda w, m, s: w - rate * m / (numpy.sqrt(s) + eps), weights, means, squares
        )
        return (weights, means, squares, count), loss

    weights = {name: numpy.asarray(value) for name, value in weights_of(model).items()}
    zeros = jax.tree.map(numpy.zeros_like, weights)
    state = (weights, zeros, jax.tree.map(numpy.copy, zeros), numpy.zeros((), numpy.float32))
    if repeats == 1:
        program = jax.jit(step, donate_argnums=0)
    else:
        program = jax.jit(
            lambda state: jax.lax.scan(step, state, None, length=repeats), donate_argnums=0
        )

    def call() -> float:
        nonlocal state
        state, loss = program(state)
        return float(loss if repeats == 1 else loss[-1])

    return call


# --- TensorFlow ----------------------------------------------------------------------------------


class TensorFlowOperations:
    """What `forward` asks of TensorFlow."""

    def __init__(self) -> None:
        import tensorflow as tf

        self.relu, self.softmax = tf.nn.relu, tf.nn.softmax
        self.gelu = lambda x: tf.nn.gelu(x, approximate=True)
        self.reshape, self.permute, self.where = tf.reshape, tf.transpose, tf.where
        self.turned, self.take = tf.transpose, tf.gather
        self.conv = lambda x, w, stride, padding: tf.nn.conv2d(
            x, w, stride, [[0, 0], [padding, padding], [padding, padding], [0, 0]]
        )
        self.max_pool = lambda x, size, stride: tf.nn.max_pool2d(x, size, stride, "VALID")
        self._tf = tf

    def layer_norm(self, x: Any) -> Any:
        """To mean 0 and variance 1 along the last axis."""
        mean, variance = self._tf.nn.moments(x, [-1], keepdims=True)
        return (x - mean) * self._tf.math.rsqrt(variance + 1e-5)


def tensorflow_step(workload: Workload, threads: int, *, compiled: bool) -> Callable[[], float]:
    """One step in a tf.function; `compiled` by XLA or not."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    ops, model = TensorFlowOperations(), palto_model(workload)
    inputs, labels = (tf.constant(part) for part in workload.batch())
    weights = {name: tf.Variable(value) for name, value in weights_of(model).items()}
    moments = {
        name: (tf.Variable(tf.zeros_like(w)), tf.Variable(tf.zeros_like(w)))
        for name, w in weights.items()
    }
    count = tf.Variable(0.0)

    @tf.function(jit_compile=compiled)
    def step() -> Any:
        with tf.GradientTape() as tape:
            logits = forward(ops, model, weights, inputs)
            logits = tf.reshape(logits, (-1, logits.shape[-1]))
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                tf.reshape(labels, (-1,)), logits
            )
            loss = tf.reduce_mean(losses)
        grads = tape.gradient(loss, list(weights.values()))
        count.assign_add(1.0)
        for (name, weight), grad in zip(weights.items(), grads, strict=True):
            mean, square = moments[name]
            tf.raw_ops.ResourceApplyAdam(
                var=weight.handle, m=mean.handle, v=square.handle, beta1_power=MEAN**count,
                beta2_power=SQUARE**count, lr=RATE, beta1=MEAN, beta2=SQUARE,
                epsilon=EPS * tf.sqrt(1 - SQUARE**count),  # it is added before the correction
                grad=tf.convert_to_tensor(grad),
            )  # fmt: skip
        return loss

    return lambda: float(step())


# --- MLX -----------------------------------------------------------------------------------------


class MlxOperations:
    """What `forward` asks of MLX."""

    def __init__(self) -> None:
        import mlx.core as mx
        from mlx import nn as layers

        self.relu, self.gelu, self.reshape = layers.relu, layers.gelu_approx, mx.reshape
        self.permute, self.turned = mx.transpose, mx.transpose
        self.softmax = lambda x: mx.softmax(x, -1)
        self.where = lambda condition, x, y: mx.where(mx.array(condition), x, y)
        self.take = lambda table, places: table[places]
        self.conv = lambda x, w, stride, padding: mx.conv2d(x, w, stride, padding)
        self.max_pool = lambda x, size, stride: layers.MaxPool2d(size, stride)(x)
        self.layer_norm = lambda x: mx.fast.layer_norm(x, None, None, 1e-5)


def mlx_step(workload: Workload, *, compiled: bool) -> Callable[[], float]:
    """One step; through mx.compile or not."""
    import mlx.core as mx
    from mlx import nn as layers
    from mlx import optimizers

    ops, model = MlxOperations(), palto_model(workload)
    inputs, labels = (mx.array(part) for part in workload.batch())
    weights = {
        # Kernels are (out, height, width, in).
        name: mx.array(np.array(w.transpose(3, 0, 1, 2) if w.ndim == 4 else w, order="C"))
        for name, w in weights_of(model).items()
    }
    optimizer = optimizers.Adam(RATE, betas=[MEAN, SQUARE], eps=EPS, bias_correction=True)
    optimizer.init(weights)
    state = [weights, optimizer.state]

    def loss_of(weights: dict[str, Any]) -> Any:
        logits = forward(ops, model, weights, inputs)
        logits = logits.reshape(-1, logits.shape[-1])
        return layers.losses.cross_entropy(logits, labels.reshape(-1), reduction="mean")

    def step() -> Any:
        loss, grads = mx.value_and_grad(loss_of)(weights)
        weights.update(optimizer.apply_gradients(grads, weights))
        return loss

    program = mx.compile(step, inputs=state, outputs=state) if compiled else step

    def call() -> float:
        loss = program()
        mx.eval(loss, state)
        return float(loss.item())

    return call
