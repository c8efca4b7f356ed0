"""Open tables: a folder whose every file is one row, named by its file, found by looking.

Dropping in one file is the whole addition: recipes accept it, the schema lists it, the contract tests run over it.
"""

import importlib
import pkgutil
from typing import Annotated, Any, ClassVar, Union, get_args

from pydantic import BaseModel, ConfigDict, Field

from .errors import Refused


class Row(BaseModel):
    """The settings of one row as a recipe writes them, with what the row can do as methods. Importing it needs no torch."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: str
    version: ClassVar[int] = 1  # goes up whenever the same settings would give another result


class Table:
    """The rows of one package, e.g. Table("stages.models")."""

    def __init__(self, package: str):
        self.package = package
        self._rows: dict[str, type[Row]] = {}

    def names(self) -> tuple[str, ...]:
        path = importlib.import_module(self.package).__path__
        return tuple(sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_")))

    def row(self, name: str) -> type[Row]:
        if name not in self._rows:
            if name not in self.names():  # an artifact may say anything
                raise Refused(f"{self.package} has no row {name[:60]!r}; it has {', '.join(self.names())}")
            self._rows[name] = self._find(name)
        return self._rows[name]

    def rows(self, **having: Any) -> dict[str, type[Row]]:
        """All rows, or those whose class attributes have these values."""
        rows = {name: self.row(name) for name in self.names()}
        return {name: row for name, row in rows.items() if all(getattr(row, k) == v for k, v in having.items())}

    def field(self, **having: Any) -> Any:
        """The type of a recipe field that takes one row, told apart by its `kind`."""
        rows = tuple(self.rows(**having).values())
        return rows[0] if len(rows) == 1 else Annotated[Union[rows], Field(discriminator="kind")]  # noqa: UP007 (the rows are known only here)

    def _find(self, name: str) -> type[Row]:
        module = importlib.import_module(f"{self.package}.{name}")
        rows = [r for r in vars(module).values() if isinstance(r, type) and issubclass(r, Row) and r.__module__ == module.__name__]
        rows = [r for r in rows if "kind" in r.__annotations__]
        if len(rows) != 1 or get_args(rows[0].model_fields["kind"].annotation) != (name,):
            raise TypeError(f'{module.__file__} must define one Row with the line\n    kind: Literal["{name}"]')
        return rows[0]
