"""The exception tree.

::

    ConsilienceError                 anything this library raises on purpose
    ├── RequestError                 the request was wrong (exit code 2)
    │   ├── SchemaError              a schema, a unit or a configuration is wrong
    │   ├── DataError                a table, a row or a cell is wrong
    │   ├── CapabilityError          this model cannot answer this question
    │   └── ModelFileError           a saved model cannot be trusted or read
    ├── TrainingError                training failed (exit code 1)
    └── MemoryLimitError             the answer would be larger than the declared limit

Every message has the form "Expected …; got … . Do …".
"""

__all__ = [
    "CapabilityError",
    "ConsilienceError",
    "DataError",
    "MemoryLimitError",
    "ModelFileError",
    "RequestError",
    "SchemaError",
    "TrainingError",
]


class ConsilienceError(Exception):
    """Base of everything this library raises on purpose."""


class RequestError(ConsilienceError):
    """The request was wrong: an unknown name, a shape or an option that does not fit."""


class SchemaError(RequestError):
    """A schema, a unit or a configuration file is wrong."""


class DataError(RequestError):
    """A table, a row or a cell is wrong; the message names it."""


class CapabilityError(RequestError):
    """The model cannot answer this question; the message says which it answers."""


class ModelFileError(RequestError):
    """A saved model is truncated, altered, foreign or too new."""


class TrainingError(ConsilienceError):
    """Training failed; the message names the term and the modality."""


class MemoryLimitError(ConsilienceError):
    """The answer would not fit the declared memory limit; the message names both sizes."""
