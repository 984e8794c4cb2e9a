"""The command that lets others ask a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from palto import serve, web
from palto.train.run import Run


@dataclass(frozen=True, kw_only=True)
class Serve(web.ServerOptions):
    """Answer over HTTP what pictures show, or what rows of a table lead to, with a page to try it.

    Start it, and open the address that it prints: palto serve runs/my-run

    Ask it from a program: curl --data-binary @shoe.png http://127.0.0.1:8000/predict

    Or about rows of a table, as JSON: curl --data '{"rooms": 2, "district": "south"}'
    http://127.0.0.1:8000/predict

    From a phone in the same network: palto serve runs/my-run --host 0.0.0.0

    What comes at once is computed together. GET /model says what is served, GET /health whether it
    lives. Ctrl-C ends it, when the answers under way are given.
    """

    run_folder: Positional[Path]
    """The run's folder."""
    batch_size: int = 32
    """How many pictures or rows are computed together at most."""
    queue: int = 512
    """How many may wait; further ones are told to come again (503)."""
    quiet: bool = False
    """No line for each request."""

    def run(self) -> int:
        """Do it."""
        app = serve.application(
            Run.open(self.run_folder),
            batch_size=self.batch_size,
            queue=self.queue,
            log=not self.quiet,
        )
        web.Server(app, self, body_bytes=serve.BODY_BYTES).run("serving")
        return 0
