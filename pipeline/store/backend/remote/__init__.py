"""Stores in buckets: Amazon S3 and servers that speak its protocol, Google Cloud, Azure.

In: keys and bytes. Out: requests to `pipeline/objects`. `backend.py` is the backend, `reader.py`
reads one object, `partial_object.py` collects one in memory, `lines.py` appends, `leases.py` keeps
leases, and `probe.py` tries what commits depend on.
"""
