"""Pictures to ask about, and how to ask."""

import http.client
import io

import numpy as np
from PIL import Image

KINDS = ("blue", "green", "red")


def picture(k, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
    pixels[..., 2 - k] += 150
    return Image.fromarray(pixels)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def ask(server, body, kind="image/png", path="/predict", method="POST", headers=None):
    """The status and the text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        given = {"content-type": kind} if kind else {}
        connection.request(method, path, body, {**given, **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
