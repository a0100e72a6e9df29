"""Stands before the package ``transformers`` in processes that tests start.

Users do not have it: only ``galore_torch``, a reference of tests, needs it. MONAI imports it where it is found, which
takes 3 of the 12 seconds that a process needs to start.
"""

raise ImportError("transformers is hidden from processes that tests start")
