"""The page of a study: from the declared tables of its stages to one self-contained HTML file.

``evidence`` holds what is shown and which concepts pass, ``sections`` register figures, tables and findings, ``draw``
and ``tables`` give them their form, ``render`` puts them together. Nothing here opens a result folder or knows a stage.
"""
