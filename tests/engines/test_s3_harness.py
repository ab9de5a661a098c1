"""The S3 server that tests get checks who asks, as a real one does."""

import pytest
from pyarrow.fs import S3FileSystem

from harness.s3 import REGION, S3Server


def test_who_has_the_key_reads_what_was_written(s3: S3Server) -> None:
    mine = connect(s3, access_key=s3.access_key, secret_key=s3.secret_key)

    with mine.open_output_stream(f"{s3.bucket}/harness/mine") as file:
        file.write(b"mine")

    assert mine.open_input_file(f"{s3.bucket}/harness/mine").read() == b"mine"
    assert s3.client().get_object(Bucket=s3.bucket, Key="harness/mine")["Body"].read() == b"mine"


def test_who_has_a_wrong_key_reads_nothing(s3: S3Server) -> None:
    other = connect(s3, access_key=s3.access_key, secret_key="wrong")

    with pytest.raises(OSError, match="ACCESS_DENIED"):
        other.get_file_info(f"{s3.bucket}/harness/mine")


def connect(s3: S3Server, *, access_key: str, secret_key: str) -> S3FileSystem:
    return S3FileSystem(
        access_key=access_key, secret_key=secret_key, endpoint_override=s3.endpoint_url, region=REGION
    )
