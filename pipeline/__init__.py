"""In what order, and what came of it: recipe, plan, artifacts, store, runner, command line. No machine learning here."""
