"""The parts of the page that need more than a table: networks, classes, curves, pictures."""
