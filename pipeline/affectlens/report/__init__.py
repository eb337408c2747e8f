"""The page of a study: from plain evidence to one self-contained HTML file.

``evidence`` holds what is shown, ``sentences`` says it in words, ``tables`` and ``charts`` show it, ``render`` puts
it together. Nothing here opens a result folder or knows a stage.
"""
