"""A small S3-compatible server in memory, for tests: objects, listings, multipart uploads. Checks no signature."""

import hashlib
import io
import re
import threading
import uuid
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

REGION = "us-east-1"


class S3Server(ThreadingHTTPServer):
    """Listens on a free port of the loopback.

    Attributes:
        buckets: bytes and time of change by key, by bucket.
        requests: method and path of every request.
        refuse: answers 403 to all while true.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.buckets = {}
        self.uploads = {}
        self.requests = []
        self.refuse = False
        self.lock = threading.Lock()
        self.clock = 1_700_000_000
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, bucket, key, data):
        with self.lock:
            # Every change is a second later: stores tell times no finer.
            self.clock += 1
            self.buckets[bucket][key] = (bytes(data), self.clock)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: S3Server

    def log_message(self, *_):
        pass

    def _parts(self):
        split = urlsplit(self.path)
        self.server.requests.append((self.command, self.path))
        bucket, _, key = unquote(split.path).lstrip("/").partition("/")
        return bucket, key, {name: values[0] for name, values in parse_qs(split.query, keep_blank_values=True).items()}

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b"".join(_chunks(self.rfile))
        else:
            data = self._exactly(int(self.headers.get("Content-Length") or 0))
        # A checksum follows the pieces of such a body.
        framed = "aws-chunked" in (self.headers.get("Content-Encoding") or "")
        return b"".join(_chunks(io.BytesIO(data), trailer=False)) if framed else data

    def _exactly(self, size):
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionError("the client went away")
        return data

    def _answer(self, status=200, body=b"", length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, status, code):
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
        self._answer(status, text.encode(), Content_Type="application/xml")

    def _refused(self, bucket, new=False):
        if self.server.refuse:
            self._error(403, "AccessDenied")
        elif bucket not in self.server.buckets and not new:
            self._error(404, "NoSuchBucket")
        else:
            return False
        return True

    def do_PUT(self):
        bucket, key, query = self._parts()
        data = self._body()
        if self._refused(bucket, new=not key):
            return
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        if not key:
            self.server.buckets.setdefault(bucket, {})
        elif "uploadId" in query:
            self.server.uploads[query["uploadId"]][int(query["partNumber"])] = data
        else:
            self.server.put(bucket, key, data)
        self._answer(ETag=tag)

    def do_POST(self):
        bucket, key, query = self._parts()
        data = self._body()
        if self._refused(bucket):
            return
        if "uploads" in query:
            name = uuid.uuid4().hex
            self.server.uploads[name] = {}
            text = (
                f"<InitiateMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{escape(key)}</Key>"
                f"<UploadId>{name}</UploadId></InitiateMultipartUploadResult>"
            )
        elif "delete" in query:
            keys = [node.text for node in ElementTree.fromstring(data).iter() if node.tag.endswith("Key")]
            for name in keys:
                self.server.buckets[bucket].pop(name, None)
            text = "<DeleteResult></DeleteResult>"
        else:
            parts = self.server.uploads.pop(query["uploadId"])
            self.server.put(bucket, key, b"".join(parts[number] for number in sorted(parts)))
            text = (
                f"<CompleteMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{escape(key)}</Key>"
                f'<ETag>"{uuid.uuid4().hex}"</ETag></CompleteMultipartUploadResult>'
            )
        self._answer(body=("<?xml version='1.0'?>" + text).encode(), Content_Type="application/xml")

    def do_DELETE(self):
        bucket, key, query = self._parts()
        if self._refused(bucket):
            return
        if "uploadId" in query:
            self.server.uploads.pop(query["uploadId"], None)
        else:
            self.server.buckets[bucket].pop(key, None)
        self._answer(204)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        bucket, key, query = self._parts()
        if self._refused(bucket):
            return
        if not key:
            self._list(bucket, query)
            return
        if key not in self.server.buckets[bucket]:
            self._error(404, "NoSuchKey")
            return
        data, changed = self.server.buckets[bucket][key]
        headers = {"Last_Modified": formatdate(changed, usegmt=True), "ETag": f'"{hashlib.md5(data).hexdigest()}"'}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and self.command == "GET":
            start, end = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
            headers["Content_Range"] = f"bytes {start}-{end}/{len(data)}"
            self._answer(206, data[start : end + 1], **headers)
        else:
            self._answer(200, data, **headers)

    def _list(self, bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        after, most = query.get("continuation-token", ""), int(query.get("max-keys", 1000))
        found = {}
        for key, (data, changed) in sorted(self.server.buckets[bucket].items()):
            if not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                name = prefix + rest.partition(delimiter)[0] + delimiter
                found[name] = f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
                continue
            stamp = datetime.fromtimestamp(changed, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
            found[key] = (
                f"<Contents><Key>{escape(key)}</Key><LastModified>{stamp}</LastModified><ETag>e</ETag>"
                f"<Size>{len(data)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            )
        names = [name for name in sorted(found) if name > after]
        shown, more = names[:most], len(names) > most
        token = f"<NextContinuationToken>{escape(shown[-1])}</NextContinuationToken>" if more else ""
        text = (
            f"<?xml version='1.0'?><ListBucketResult><Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix>"
            f"<KeyCount>{len(shown)}</KeyCount><MaxKeys>{most}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{token}{''.join(found[name] for name in shown)}</ListBucketResult>"
        )
        self._answer(body=text.encode(), Content_Type="application/xml")


def _chunks(stream, trailer=True):
    """Pieces of a body in HTTP's chunked encoding."""
    while length := int(stream.readline().partition(b";")[0], 16):
        piece = stream.read(length)
        if len(piece) < length:
            raise ConnectionError("the client went away")
        yield piece
        stream.readline()
    while trailer and stream.readline().strip():
        pass
