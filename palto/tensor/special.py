"""The error function, which NumPy lacks."""

from __future__ import annotations

import numpy as np

from palto.tensor.dtypes import Array

# Rational approximations of FreeBSD's s_erf.c (Sun Microsystems, 1993), under 1 ulp in float64,
# as coefficients from the highest power down, for numpy.polyval.
_SMALL = (
    (-2.37630166566501626084e-05, -5.77027029648944159157e-03, -2.84817495755985104766e-02,
     -3.25042107247001499370e-01, 1.28379167095512558561e-01),
    (-3.96022827877536812320e-06, 1.32494738004321644526e-04, 5.08130628187576562776e-03,
     6.50222499887672944485e-02, 3.97917223959155352819e-01, 1.0),
)  # fmt: skip
_MIDDLE = (
    (-2.16637559486879084300e-03, 3.54783043256182359371e-02, -1.10894694282396677476e-01,
     3.18346619901161753674e-01, -3.72207876035701323847e-01, 4.14856118683748331666e-01,
     -2.36211856075265944077e-03),
    (1.19844998467991074170e-02, 1.36370839120290507362e-02, 1.26171219808761642112e-01,
     7.18286544141962662868e-02, 5.40397917702171048937e-01, 1.06420880400844228286e-01, 1.0),
)  # fmt: skip
_LARGE = (
    (-9.81432934416914548592e00, -8.12874355063065934246e01, -1.84605092906711035994e02,
     -1.62396669462573470355e02, -6.23753324503260060396e01, -1.05586262253232909814e01,
     -6.93858572707181764372e-01, -9.86494403484714822705e-03),
    (-6.04244152148580987438e-02, 6.57024977031928170135e00, 1.08635005541779435134e02,
     4.29008140027567833386e02, 6.45387271733267880336e02, 4.34565877475229228821e02,
     1.37657754143519042600e02, 1.96512716674392571292e01, 1.0),
)  # fmt: skip
_HUGE = (
    (-4.83519191608651397019e02, -1.02509513161107724954e03, -6.37566443368389627722e02,
     -1.60636384855821916062e02, -1.77579549177547519889e01, -7.99283237680523006574e-01,
     -9.86494292470009928597e-03),
    (-2.24409524465858183362e01, 4.74528541206955367215e02, 2.55305040643316442583e03,
     3.19985821950859553908e03, 1.53672958608443695994e03, 3.25792512996573918826e02,
     3.03380607434824582924e01, 1.0),
)  # fmt: skip
_ERF_OF_ONE = 8.45062911510467529297e-01


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Array) -> Array:
    numerator, denominator = coefficients
    return np.asarray(np.polyval(numerator, x) / np.polyval(denominator, x))


def erf(x: Array) -> Array:
    """The error function 2/sqrt(pi) * integral of exp(-t^2) from 0 to x, in the dtype of `x`."""
    wide = np.asarray(x, dtype=np.float64)
    size = np.abs(wide)
    result = np.where(np.isnan(wide), wide, np.sign(wide))

    small = size < 0.84375
    part = wide[small]
    result[small] = part + part * _ratio(_SMALL, part * part)

    middle = (size >= 0.84375) & (size < 1.25)
    part = size[middle] - 1
    result[middle] = np.sign(wide[middle]) * (_ERF_OF_ONE + _ratio(_MIDDLE, part))

    for low, high, coefficients in ((1.25, 1 / 0.35, _LARGE), (1 / 0.35, 6.0, _HUGE)):
        where = (size >= low) & (size < high)
        part = size[where]
        tail = np.exp(-part * part - 0.5625 + _ratio(coefficients, 1 / (part * part))) / part
        result[where] = np.sign(wide[where]) * (1 - tail)
    return result.astype(x.dtype)
