"""Serving a trained model: HTTP, batches of whatever comes at once, a page to try it."""

from palto.serve.app import BODY_BYTES, application
from palto.serve.batching import Batcher, QueueFullError
