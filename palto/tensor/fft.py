"""The Python array API's ``fft`` namespace."""

from palto.tensor.functions.fourier import fft, fftfreq, ifft, irfft, rfft, rfftfreq

__all__ = ["fft", "fftfreq", "ifft", "irfft", "rfft", "rfftfreq"]
