"""The same study as batch jobs: what to ask for, which jobs in which order, handing them over, watching them.

``config`` and ``graph`` are pure; ``job`` is what runs on a node; ``slurm`` and ``local_executor`` hand jobs over, both
through submitit; ``job_registry`` remembers which were; ``progress`` says how far they are; ``submission`` puts it
together; ``compat`` holds what is used of submitit beyond its documented interface.
"""
