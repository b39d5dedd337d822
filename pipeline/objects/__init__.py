"""Objects in buckets: Amazon S3 and servers that speak its protocol, Google Cloud, Azure.

In: a URI such as `s3://bucket/prefix`. Out: bytes of objects, whole or by range, and lists of them.
`client.py` is what others use; `library.py` is the only module that imports obstore.
"""
