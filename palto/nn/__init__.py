"""Layers, activations, losses, and the Module that holds them together.

Images are channels-last, (N, H, W, C), throughout.
"""

from palto.nn import functional, init
from palto.nn.activations import (
    ELU,
    GELU,
    Hardtanh,
    Identity,
    LeakyReLU,
    LogSoftmax,
    Maxout,
    PReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from palto.nn.attention import MultiheadAttention
from palto.nn.convolution import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
)
from palto.nn.dropout import Dropout
from palto.nn.embedding import Embedding
from palto.nn.linear import Flatten, Linear
from palto.nn.losses import (
    BCELoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    HuberLoss,
    L1Loss,
    MSELoss,
)
from palto.nn.module import Buffer, Module, Parameter, Sequential
from palto.nn.neuron import Neuron
from palto.nn.normalization import (
    BatchNorm1d,
    BatchNorm2d,
    GroupNorm,
    InstanceNorm2d,
    LayerNorm,
    LocalResponseNorm,
    RMSNorm,
)
from palto.nn.pooling import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AvgPool1d,
    AvgPool2d,
    MaxPool1d,
    MaxPool2d,
)
from palto.nn.quantized import QuantizedEmbedding, QuantizedLinear, QuantizedWeight
from palto.nn.recurrent import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from palto.nn.repeat import repeated
from palto.nn.summary import Summary

# isort: split
from palto.nn import lora, models  # last: made of all the others
