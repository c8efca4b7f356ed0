"""What is done: every stage kind of a recipe, and what stages are made of.

The stage kinds are a closed set; what varies inside them (models, sources, methods, engines) are open tables, one file per row.
"""

KINDS = {  # the key in a recipe -> the class that carries it
    "data": "stages.data:Data",
    "load": "stages.load:Load",
    "embed": "stages.embed:Embed",
    "train": "stages.train:Train",
    "distill": "stages.distill:Distill",
    "export": "stages.export:Export",
    "quantize": "stages.quantize:Quantize",
    "aware": "stages.aware:Aware",
    "optimize": "stages.optimize:Optimize",
    "validate": "stages.validate:Validate",
    "gate": "stages.gate:Gate",
    "bundle": "stages.bundle:Bundle",
}
