"""Object stores that speak S3, by pyarrow's own client."""

import os

from pyarrow import fs

# The SDK would wait for 1 s and 3 s, three times: little for a store that is busy.
CONNECT_TIMEOUT_S = 5.0
# A request fails when nothing arrives for this long; it is tried three times.
REQUEST_TIMEOUT_S = 15.0


def s3_filesystem(bucket: str) -> fs.FileSystem:
    """Return the store that the environment describes: AWS_ENDPOINT_URL, AWS_REGION, AWS_PROFILE."""
    # Pyarrow reads these only where it is given a URL, apache/arrow#49643.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not endpoint and not region:
        # Amazon's buckets answer in their own region alone.
        region = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        endpoint_override=endpoint,
        region=region,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
        # Another authority than the system's, as other tools for S3 take it.
        tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE"),
    )
