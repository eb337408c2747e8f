"""The engine of the behavioural experiments: a folder of scenarios in, findings with their controls out.

``experiment`` reads a folder of ``experiments/``; ``measured`` is what was seen; ``finding`` is what that amounts to.
"""
