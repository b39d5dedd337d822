"""Drop: utterances or layers of a store are removed, and the space that they took is freed.

In: a store. Out: the same store without them. `run.py` has the public call; what is dropped is
chosen in `choosing.py`, utterances leave the units in `units.py` and everything else that names
them in `traces.py`, and layers are removed in `layers.py`.
"""

from pipeline.transforms.drop.run import Drop, drop

__all__ = ["Drop", "drop"]
