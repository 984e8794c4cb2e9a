"""The command that lets people label images."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from palto import web
from palto.extras import require
from palto.label.folder import export, take_in
from palto.label.store import DATABASE, Store
from palto.train.run import Run

if TYPE_CHECKING:
    from palto.label.challenges import Challenges


@dataclass(frozen=True, kw_only=True)
class Label(web.ServerOptions):
    """Let people label images in a browser, by captcha: "select all images with cats".

    Begin, with two classes, and open the address that is printed: palto label photos/ --classes
    cat,dog

    Images in photos/cat/ and photos/dog/ are known: mixed among the others, they tell who looks and
    who clicks at random. A table does as well: --known known.csv, with lines such as 1.jpg,cat. Or
    name some yourself first: palto label photos/ --classes cat,dog --mode teach

    On a phone in the same network: palto label photos/ --host 0.0.0.0

    Ask most about what a model is least sure of: palto label photos/ --run runs/my-run

    See how far it is: palto label photos/ --status

    Write labels, and train on them, sure and less sure ones: palto label photos/ --export labelled/
    and palto train labelled/

    Answers are kept in photos/labels.palto.sqlite, each from the moment it is given; Ctrl-C ends
    the server, the same command goes on.
    """

    folder: Positional[Path]
    """The folder of images."""
    classes: str = ""
    """The classes, with commas between; needed at the first time only."""
    names: str = ""
    """How the classes are called towards people, in the same order, if otherwise."""
    mode: Literal["challenge", "name", "teach"] = "challenge"
    """challenge asks about nine images, name shows one and asks for its class, teach does the same
    with you, whose answers are taken for known."""
    known: Path | None = None
    """A .csv file of images whose class is known: file,class in its first line."""
    run_folder: Annotated[Path | None, arg(name="run")] = None
    """A run's folder: its model says which images are worth asking about."""
    database: Path | None = None
    """The file where answers are kept; by default in the folder of images."""
    status: bool = False
    """Show how far it is, and end."""
    export: Path | None = None
    """Write the labelled images into this new folder, and end."""

    def run(self) -> int:
        """Do it."""
        if not self.folder.is_dir():
            raise FileNotFoundError(f"there is no folder {self.folder}")
        database = self.database or self.folder / DATABASE
        if (self.status or self.export) and not database.exists():
            raise FileNotFoundError(f"there is no {database}: nothing has been labelled yet")
        store = Store(database, _listed(self.classes))
        try:
            if self.status:
                return _show(store)
            if self.export is not None:
                return _export(store, self.folder, self.export)
            return self._serve(store)
        finally:
            store.close()

    def _serve(self, store: Store) -> int:
        require("starlette", "web", "palto label")
        from palto.label.challenges import Challenges
        from palto.label.server import label_app

        display = _listed(self.names)
        if display and len(display) != len(store.classes):
            raise ValueError(
                f"--names has {len(display)} names for the {len(store.classes)} classes "
                f"{','.join(store.classes)}"
            )
        if self.mode == "teach" and self.host != web.ServerOptions.host:
            raise ValueError("--mode teach is for you alone: leave --host out")
        run = None if self.run_folder is None else _opened(self.run_folder, store.classes)
        files = take_in(store, self.folder, self.known, complain=_complain)
        challenges = Challenges(store)
        for number in set(challenges.order) - set(files):
            challenges.leave_out(number)
        app = label_app(store, challenges, files, mode=self.mode, display=display)
        server = web.Server(app, self, body_bytes=1 << 16)
        if run is not None:
            arguments = (run, store.classes, challenges, files)
            threading.Thread(target=_propose, args=arguments, daemon=True).start()
        known = len(store.known())
        print(f"{len(files):,} images, {known:,} of them known, answers in {store.path}")
        if not known and self.mode == "challenge":
            print("No image is known, so nothing tells who looks: --mode teach names some yourself")
        server.run("label at")
        return 0


def _opened(folder: Path, classes: tuple[str, ...]) -> Run:
    """A run that can say something about the classes; what is wrong with it is said at once."""
    run = Run.open(folder)
    missing = [name for name in classes if name not in run.classes]
    if missing:
        raise ValueError(
            f"{folder} knows {', '.join(run.classes) or 'no classes'}, but not {', '.join(missing)}"
        )
    run.load_best()
    return run


def _propose(
    run: Run, classes: tuple[str, ...], challenges: Challenges, files: dict[int, Path]
) -> None:
    """Ask a model about all images, one after the other, while people label already."""
    columns = [run.classes.index(name) for name in classes]
    results = run.predict(files.values(), complain=lambda _: None)
    for number, found in zip(files, results, strict=True):
        if found.answer is not None:
            own = found.answer[columns]
            challenges.propose(number, own / max(own.sum(), 1e-9))


def _show(store: Store) -> int:
    from palto.label.challenges import Challenges, summary

    told = summary(store, Challenges(store))
    print(
        f"{told['sure']:,} of {told['images']:,} images are sure, {told['known']:,} were known; "
        f"{told['answers that count']:,} of {told['answers']:,} answers count"
    )
    classes = Table("class", "sure images")
    for name, count in told["classes"].items():
        classes.add_row(name, f"{count:,}")
    people = Table("annotator", "challenges", "passed", "failed")
    for row in told["annotators"]:
        people.add_row(*(f"{value:,}" for value in row.values()))
    console = Console()
    console.print(classes)
    if people.row_count:
        console.print(people)
    return 0


def _export(store: Store, folder: Path, out: Path) -> int:
    count, consensus = export(store, folder, out)
    probable = consensus.probabilities.max(1)
    print(f"{out}: {count:,} images, {int((probable >= 0.95).sum()):,} of them sure to 95 %")
    print(f"train on them: palto train {out}")
    return 0


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",")) if text.strip() else ()


def _complain(text: str) -> None:
    print(text, file=sys.stderr)
