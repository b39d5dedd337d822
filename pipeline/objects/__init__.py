"""Objects in buckets, and, for reading, files of other places that fsspec knows.

Buckets are those of Amazon S3 and of servers that speak its protocol, of Google Cloud and of Azure.

In: a URI such as `s3://bucket/prefix`. Out: bytes of objects, whole or by range, and lists of them.
`base.py` says what can be asked for, `client.py` does it for buckets, `filesystem.py` for the
others. `library.py` is the only module that imports obstore.
"""
