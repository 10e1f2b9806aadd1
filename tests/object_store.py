"""A bucket for tests, looked at from outside: by pyarrow alone, without what is tested."""

import os
import uuid

from pyarrow.fs import FileSelector, FileType, S3FileSystem
from s3_server import REGION, S3Server


class Bucket:
    """A fresh bucket of `S3Server`, or of the server whose address is in UNLEARN_TEST_S3 (for example moto's).

    Attributes:
        server: the server of this process, or None.
        url: where the store listens.
        name: of the bucket.
    """

    def __init__(self):
        given = os.environ.get("UNLEARN_TEST_S3")
        self.server = None if given else S3Server()
        self.url = given or self.server.url
        self.name = f"bucket-{uuid.uuid4().hex[:12]}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "not-a-real-secret",
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.files = S3FileSystem(
            access_key="testing", secret_key="not-a-real-secret", region=REGION, endpoint_override=self.url,
            allow_bucket_creation=True, allow_delayed_open=True,
        )  # fmt: skip
        self.files.create_dir(self.name)

    def uri(self, key):
        return f"s3://{self.name}/{key}"

    def keys(self, prefix=""):
        """Keys of all objects below a prefix, relative to it."""
        at = f"{self.name}/{prefix}".rstrip("/")
        found = self.files.get_file_info(FileSelector(at, recursive=True, allow_not_found=True))
        return sorted(info.path[len(at) + 1 :] for info in found if info.type == FileType.File)

    def read(self, key):
        with self.files.open_input_stream(f"{self.name}/{key}") as stream:
            return stream.read()

    def write(self, key, data):
        with self.files.open_output_stream(f"{self.name}/{key}") as stream:
            stream.write(data)

    def delete(self, key):
        self.files.delete_file(f"{self.name}/{key}")

    def close(self):
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
