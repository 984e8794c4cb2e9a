"""Palmer penguins: 344 penguins of three species, measured on islands of the Palmer Archipelago.

Horst, Hill, Gorman: palmerpenguins: Palmer Archipelago (Antarctica) penguin data (2020). Measured
by Gorman, Williams, Fraser: Ecological sexual dimorphism and environmental variability within a
community of Antarctic penguins (2014). CC0: it may be used for anything. The table comes with
Palto, as it is in the Python package `palmerpenguins`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from palto.data.sources.tables import Missing, TableDataset, Task, csv_table

#: The table, which may also be opened as any other.
TABLE = Path(__file__).with_name("penguins.csv")


def penguins(
    *,
    target: str = "species",
    features: Sequence[str] | None = None,
    task: Task | None = None,
    missing: Missing = "mean",
    validation: float = 0.25,
    seed: int = 0,
) -> tuple[TableDataset, TableDataset | None]:
    """Penguins to learn from and others held out: what they measure, and of which species they are.

    The columns: species (Adelie, Chinstrap, Gentoo), island, bill_length_mm, bill_depth_mm,
    flipper_length_mm, body_mass_g, sex, year. Two penguins lack all measures, eleven their sex.

    Args:
        target: the column to be predicted.
        features: the columns to predict it from; by default all others.
        task: "classify" or "regress"; by default as the target looks.
        missing: what is done about missing cells; see `csv_table`, which reads the table.
        validation: the share to hold out.
        seed: of the division.

    Returns:
        Datasets of features, float32 (F,), standardised, and labels, int64 (), or numbers, float32
        (1,); the second is None where nothing is held out.

    Raises:
        ValueError: there is no such column, or an option is wrong.
    """
    train, test = csv_table(
        TABLE, target=target, features=features, task=task, missing=missing, validation=validation,
        seed=seed,
    )  # fmt: skip
    for part in (train, test):
        if part is not None:
            part.name, part.licence = "Palmer penguins", "CC0-1.0"
    return train, test
