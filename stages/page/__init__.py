"""The page of a run: one HTML file that says what the small network cost and gained, and the same facts as JSON."""

from pipeline.artifact import Artifact


def render(run: dict, artifacts: dict[str, Artifact]) -> tuple[str, dict]:
    """The page's text and its facts. Writes nothing; what a half-finished run lacks is named on the page."""
    from . import changes, document, facts, pictures  # pillow is loaded only once somebody asks for a page

    told = facts.collect(run, artifacts)
    told["changes"], changed = changes.collect(artifacts, told)
    spent = sum(len(uri) for row in changed for uri in row)
    told["pictures"], uris = pictures.collect(artifacts, told, pictures.BUDGET - spent)
    return document.html(told, uris, changed), told
