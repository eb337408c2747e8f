"""The same study as batch jobs: what to ask for, which jobs in which order, handing them over, watching them.

``config`` and ``graph`` are pure; ``job`` is what runs on a node; ``slurm`` and ``here`` hand jobs over; ``ledger``
remembers which were; ``progress`` says how far they are; ``submission`` puts it together.
"""
