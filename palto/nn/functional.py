"""The layers' functions, under PyTorch's names; each is defined beside its layer."""

from palto.nn.activations import (
    elu,
    gelu,
    hardtanh,
    leaky_relu,
    log_softmax,
    maxout,
    prelu,
    relu,
    sigmoid,
    silu,
    softmax,
    softplus,
    tanh,
)
from palto.nn.attention import scaled_dot_product_attention
from palto.nn.convolution import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from palto.nn.dropout import dropout
from palto.nn.embedding import embedding
from palto.nn.linear import linear
from palto.nn.losses import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber_loss,
    l1_loss,
    mse_loss,
)
from palto.nn.normalization import (
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    local_response_norm,
    rms_norm,
)
from palto.nn.pooling import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    avg_pool1d,
    avg_pool2d,
    max_pool1d,
    max_pool2d,
)
from palto.tensor.functions import one_hot

__all__ = [
    "linear", "conv1d", "conv2d", "conv3d",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "relu", "leaky_relu", "elu", "gelu", "silu", "prelu", "sigmoid", "tanh", "hardtanh",
    "softplus", "softmax", "log_softmax", "maxout",
    "dropout", "embedding", "one_hot", "scaled_dot_product_attention",
    "batch_norm", "layer_norm", "rms_norm", "group_norm", "instance_norm", "local_response_norm",
    "cross_entropy", "mse_loss", "l1_loss", "huber_loss",
    "binary_cross_entropy", "binary_cross_entropy_with_logits",
]  # fmt: skip
