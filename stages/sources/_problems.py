"""Faults of data are collected and told together, each with its file and the fix, instead of one at a time."""

from pipeline.errors import BadData

LINES = 20  # of one message


class Fault(Exception):
    """One thing wrong with one file: what was found, and what to do."""

    def __init__(self, what: str, fix: str):
        super().__init__(f"{what}: {fix}")
        self.what, self.fix = what, fix


class Problems:
    """The faults found so far, in the order in which they were found."""

    def __init__(self, where: str):
        self.where = where
        self.found: list[str] = []

    def add(self, file: str, fault: Fault) -> None:
        self.found.append(printable(f"{file}: {fault.what}: {fault.fix}"))

    def stop(self) -> None:
        """Raises BadData with up to LINES lines if anything was found."""
        if not self.found:
            return
        n = len(self.found)
        head = f"{printable(self.where)} has {n} problem{'s' if n > 1 else ''}:"
        shown = self.found if n < LINES else [*self.found[: LINES - 2], f"... and {n - LINES + 2} more"]
        raise BadData("\n  ".join([head, *shown]))


def printable(text: str) -> str:
    """File names can hold anything, escape sequences of terminals too."""
    return "".join(c if c.isprintable() else "?" for c in text)
