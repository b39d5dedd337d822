"""Copy: some layers and utterances of one or several stores, in another form, as a store.

In: stores of one encoder. Out: a store. `run.py` has the public call; a copy is planned from its
sources (`sources.py`, `joining.py`, `choosing.py`, `pieces.py`), written unit by unit (`making.py`)
into a folder beside its place (`destination.py`), and appears there when it is complete.
"""

from pipeline.transforms.copy.run import Copy, copy_stores
from pipeline.transforms.copy.settings import CopySettings

__all__ = ["Copy", "CopySettings", "copy_stores"]
