"""Columns and what they mean make observations."""

from consilience.data.observations import Observations
from consilience.data.schema import Schema
from consilience.errors import DataError
from consilience.io.columns import to_observations
from consilience.io.native import from_columns, is_native
from consilience.io.raw import RawTable

__all__ = ["observations_of"]


def observations_of(table: RawTable, meaning: Schema) -> Observations:
    """The observations in the columns of a file; an error names the file.

    Raises:
        DataError: cells that contradict the schema.
    """
    try:
        return from_columns(table, meaning) if is_native(table, meaning) else to_observations(table, meaning)
    except DataError as error:
        if table.source in str(error):
            raise
        raise DataError(f"{table.source}: {error}") from error
