"""Commands that show what there is: models and data sets."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from palto import data
from palto.train.run import ModelName, build_model


@dataclass(frozen=True)
class Summary:
    """Show a model's layers with shapes, parameters and operations."""

    model: Positional[ModelName]
    """The network."""
    shape: tuple[int, ...] = (28, 28, 1)
    """The shape of one input: height, width, colours."""
    classes: int = 10
    """The number of classes."""

    def run(self) -> int:
        """Do it."""
        model = build_model(self.model, self.shape, self.classes)
        print(model.summary((1, *self.shape)))
        return 0


@dataclass(frozen=True)
class Data:
    """List the data sets that Palto knows, or fetch one."""

    fetch: str | None = None
    """The name of one to fetch now."""

    def run(self) -> int:
        """Do it."""
        if self.fetch is not None:
            source = data.fetch_source(self.fetch)
            print(f"{source.name}: {source.what}; {source.licence}")
            return 0
        table = Table("name", "what", "size", "licence", "here")
        for row in data.available():
            table.add_row(row.name, row.what, row.size, row.licence, "yes" if row.here else "no")
        Console().print(table)
        print("Your own: a folder of images by class, or a .csv, .npz, .zip or .tar.gz.")
        return 0
