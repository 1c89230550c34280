"""The object store: buckets of objects, in a directory of this machine or behind an S3 address."""
