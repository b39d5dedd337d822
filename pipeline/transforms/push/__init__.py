"""Push: a store to a dataset repository of the Hugging Face hub, where it can be read by range.

In: a store. Out: a repository with the files of its commits, and a dataset card.
"""

from pipeline.transforms.push.run import Push as Push
from pipeline.transforms.push.run import push as push
