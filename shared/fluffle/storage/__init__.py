"""Files by URL, wherever they lie: the only package that opens a filesystem.

    location = locate("hdfs://namenode:9000/hospital/site-3/*.parquet")
    for file in location.files():
        with file.open() as stream:
            ...
    write_to("s3://bucket/model.keras", [content])

Known are `file://` and plain paths, `hdfs://`, `webhdfs://` and `s3://`. Credentials, Kerberos and endpoints
are what the libraries find by themselves: nothing of them stands in a URL.
"""

from fluffle.storage.location import Location, StoredFile, locate, shown, write_to
from fluffle.storage.whole import content_of, is_url, written_to

__all__ = ["Location", "StoredFile", "content_of", "is_url", "locate", "shown", "write_to", "written_to"]
