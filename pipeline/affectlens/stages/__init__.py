"""One module a stage; importing this package registers them in the order of the data."""

from importlib import import_module

MODULES = (
    "corpus",
    "activations",
    "sae",
    "directions",
    "match",
    "compare",
    "writers",
    "geometry",
    "causal",
    "circuit_units",
    "circuit_sizes",
    "circuits",
    "modulation",
    "monitor",
    "shape_arms",
    "shape",
    "measure",
    "grade",
    "conclude",
    "report",
)
for _name in MODULES:
    import_module(f"{__name__}.{_name}")
