"""Columns and what they mean make observations."""

from pathlib import Path

from consilience.data.observations import Observations
from consilience.data.schema import Schema
from consilience.errors import DataError
from consilience.io.columns import to_observations
from consilience.io.cutouts import in_files, with_cutouts
from consilience.io.native import from_columns, is_native
from consilience.io.raw import RawTable

__all__ = ["observations_of"]


def observations_of(table: RawTable, meaning: Schema, folder: Path) -> Observations:
    """The observations in the columns of a file, and in the files beside it that its schema names.

    An error names the file.

    Arguments:
        table: What a reader found.
        meaning: What the columns mean.
        folder: Where names of other files begin (:mod:`consilience.io.cutouts`).

    Raises:
        DataError: cells that contradict the schema.
        SchemaError: a unit that does not convert.
    """
    inside = tuple(spec for spec in meaning.modalities if not in_files(spec, table))
    try:
        if is_native(table, meaning):
            return from_columns(table, meaning)
        found = to_observations(table, meaning.model_copy(update={"modalities": inside}))
    except DataError as error:
        if table.source in str(error):
            raise
        raise DataError(f"{table.source}: {error}") from error
    return found if len(inside) == len(meaning.modalities) else with_cutouts(found, table, meaning, folder)
