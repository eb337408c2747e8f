"""Two or more studies side by side: what was set differently, what came out differently, and by how much.

``arguments`` finds the studies, in the cache (``folders``) or in Weights & Biases (``groups``, ``remote``); each is
one :class:`~affectlens.compare.findings.Findings`. ``differences`` compares them, ``tables`` and ``export`` show it.
"""
