"""The download, from a server of our own, of a small file that stands for enwik8."""

import contextlib
import hashlib
import io
import os
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from reformer_lab.data import enwik8
from reformer_lab.data.byte_corpus import ByteCorpusDataset
from reformer_lab.data.config import ByteCorpusConfig
from reformer_lab.data.corpora import open_corpus
from reformer_lab.errors import UserError

CONTENT = os.urandom(30_000).hex().encode()


def zipped(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("enwik8", content)
    return buffer.getvalue()


class Server:
    """Serves `body`; `breaks_after` bytes of an answer it hangs up, `ranges` says whether it can start in the middle.

    It declares `length` bytes (None: as many as there are; "": none), begins a range `shift` bytes too late, waits `pause`
    seconds before every 1,000 bytes, and sends /to/ADDRESS elsewhere.
    """

    def __init__(self, body):
        self.body, self.breaks_after, self.ranges, self.requests = body, None, True, []
        self.length, self.shift, self.pause = None, 0, 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                outer.requests.append(asked)
                first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and outer.ranges else 0
                if self.path.startswith("/to/"):
                    self.send_response(302)
                    self.send_header("Location", self.path.removeprefix("/to/"))
                    self.end_headers()
                    return
                if self.path != "/enwik8.zip":
                    self.send_error(404)
                    return
                if first >= len(outer.body):
                    self.send_error(416)
                    return
                self.send_response(206 if asked and outer.ranges else 200)
                first += outer.shift
                if asked and outer.ranges:
                    self.send_header("Content-Range", f"bytes {first}-{len(outer.body) - 1}/{len(outer.body)}")
                length = len(outer.body) - first if outer.length is None else outer.length
                if length != "":
                    self.send_header("Content-Length", str(length))
                self.end_headers()
                content = outer.body[first:][: outer.breaks_after]
                with contextlib.suppress(OSError):  # a client that has left
                    if not outer.pause:
                        self.wfile.write(content)
                    for start in range(0, len(content) if outer.pause else 0, 1000):
                        time.sleep(outer.pause)
                        self.wfile.write(content[start : start + 1000])

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/enwik8.zip"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(enwik8, "NUM_BYTES", len(CONTENT))
    monkeypatch.setattr(enwik8, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    server = Server(zipped(CONTENT))
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_constants_are_enwik8s():
    assert enwik8.NUM_BYTES == 100_000_000
    assert enwik8.SHA256 == "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"


def test_download_then_open_by_name(server):
    with pytest.raises(UserError, match="reformer-lab data download enwik8"):
        open_corpus("enwik8")
    seen = []
    path = enwik8.download(server.url, progress=lambda done, total: seen.append((done, total)))
    assert path == enwik8.cached_path()
    assert seen[-1] == (len(server.body), len(server.body))
    assert bytes(open_corpus("enwik8").bytes()) == CONTENT
    assert ByteCorpusDataset(ByteCorpusConfig(path="enwik8", valid=9, test=9), 0).fingerprint == enwik8.SHA256
    enwik8.download(server.url)
    assert len(server.requests) == 1
    assert [file.name for file in path.parent.iterdir()] == ["enwik8.zip"]


def test_broken_download_goes_on_where_it_stopped(server, tmp_path):
    server.breaks_after = 10_000
    part = tmp_path / "enwik8.zip.part"
    for have in (10_000, 20_000):
        with pytest.raises(UserError, match=f"broke off at {have:,} of {len(server.body):,} bytes"):
            enwik8.download(server.url, tmp_path)
        assert part.read_bytes() == server.body[:have]
    server.breaks_after = None
    assert enwik8.download(server.url, tmp_path).read_bytes() == server.body
    assert server.requests == [None, "bytes=10000-", "bytes=20000-"]
    assert not part.exists()


def test_server_without_ranges_begins_again(server, tmp_path):
    (tmp_path / "enwik8.zip.part").write_bytes(b"x" * 500)
    server.ranges = False
    assert enwik8.download(server.url, tmp_path).read_bytes() == server.body


def test_complete_part_is_taken(server, tmp_path):
    (tmp_path / "enwik8.zip.part").write_bytes(server.body)
    assert enwik8.download(server.url, tmp_path).read_bytes() == server.body


@pytest.mark.parametrize(("content", "message"), [
    (CONTENT[:-1] + b"!", "sha256"), (CONTENT[:-5], "59,995 bytes, enwik8 has 60,000"),
])
def test_wrong_content_is_removed(server, tmp_path, content, message):
    server.body = zipped(content)
    with pytest.raises(UserError, match=message):
        enwik8.download(server.url, tmp_path)
    assert not list(tmp_path.glob("enwik8*"))


def test_page_instead_of_the_file(server, tmp_path):
    server.body = b"<html>Please log in</html>"
    with pytest.raises(UserError, match="gave something else than enwik8"):
        enwik8.download(server.url, tmp_path)


def test_slow_server(server, tmp_path):
    server.body = zipped(CONTENT)
    server.pause = 0.002
    assert enwik8.download(server.url, tmp_path).read_bytes() == server.body


def test_server_that_falls_silent(server, tmp_path, monkeypatch):
    """What came before is kept, under a name that says that it is a part; the next call goes on behind it."""
    monkeypatch.setattr(enwik8, "_TIMEOUT", 0.2)
    monkeypatch.setattr(enwik8, "_PIECE", 1000)
    whole, quick = server.body, server.body[:5000]
    server.body, server.length = quick, len(whole)
    with pytest.raises(UserError, match=f"broke off at 5,000 of {len(whole):,} bytes"):
        enwik8.download(server.url, tmp_path)
    server.body, server.length, server.pause = whole, None, 1.0
    with pytest.raises(UserError, match=r"http://127.*timed out.*run the same command again to go on .5,000 bytes are kept"):
        enwik8.download(server.url, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["enwik8.zip.part"]
    server.pause = 0.0
    assert enwik8.download(server.url, tmp_path).read_bytes() == whole


def test_a_server_without_ranges_that_breaks_off_again_and_again(server, tmp_path):
    server.ranges, server.breaks_after = False, 7_000
    for _ in range(2):
        with pytest.raises(UserError, match="broke off at 7,000 of"):
            enwik8.download(server.url, tmp_path)
    assert (tmp_path / "enwik8.zip.part").read_bytes() == server.body[:7_000]
    assert not (tmp_path / "enwik8.zip").exists()


@pytest.mark.parametrize("length", [20_000, ""], ids=["too small", "none"])
def test_wrong_length(server, tmp_path, length):
    """Cut by a length that is too small, or cut where no length was said: the sum shows it."""
    server.length, server.breaks_after = length, 20_000
    with pytest.raises(UserError, match=r"gave something else than enwik8, which was removed: .*damaged or incomplete"):
        enwik8.download(server.url, tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_range_than_asked_for(server, tmp_path):
    (tmp_path / "enwik8.zip.part").write_bytes(server.body[:500])
    server.shift = 3
    with pytest.raises(UserError, match=r"sent the bytes from 503 on, asked for were those from 500 on.*run the same command"):
        enwik8.download(server.url, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("declared", [True, False])
def test_more_than_enwik8_is_not_fetched(server, tmp_path, monkeypatch, declared):
    monkeypatch.setattr(enwik8, "MOST_BYTES", 50_000)
    monkeypatch.setattr(enwik8, "_PIECE", 1000)
    server.body, server.length, seen = os.urandom(400_000), None if declared else "", []
    with pytest.raises(UserError, match=r"sends [\d,]+ bytes or more, enwik8 has"):
        enwik8.download(server.url, tmp_path, progress=lambda done, total: seen.append(done))
    assert max(seen, default=0) == (0 if declared else 50_000)
    assert not list(tmp_path.iterdir())


def test_redirected(server, tmp_path):
    start = server.url.removesuffix("enwik8.zip")
    with pytest.raises(UserError, match=r"answered 302 [^\n]*not allowed[^\n]*--url"):
        enwik8.download(f"{start}to/file:///etc/hostname", tmp_path)
    with pytest.raises(UserError, match=r"answered 302 [^\n]*infinite loop[^\n]*--url"):
        enwik8.download(f"{start}to//to/x", tmp_path)
    with pytest.raises(UserError, match="answered 404"):
        enwik8.download(f"{start}to/{start}nothing", tmp_path)
    assert not (tmp_path / "enwik8.zip").exists()
    assert enwik8.download(f"{start}to/{server.url}", tmp_path).read_bytes() == server.body


def test_errors_of_the_network(server, tmp_path):
    with pytest.raises(UserError, match="answered 404"):
        enwik8.download(server.url + "x", tmp_path)
    with pytest.raises(UserError, match="could not be fetched"):
        enwik8.download("http://127.0.0.1:9/enwik8.zip", tmp_path)
    with pytest.raises(UserError, match="could not be fetched"):
        enwik8.download("not an address", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        enwik8.download(server.url, tmp_path / "file" / "enwik8.zip")


def test_two_downloads_at_once(server, tmp_path):
    """The second is told who is at it and touches nothing; once the first one is done, the second finds the file."""
    begun, refused, found = threading.Event(), threading.Event(), []

    def hold(done, total):
        begun.set()
        assert refused.wait(30)

    first = threading.Thread(target=lambda: found.append(enwik8.download(server.url, tmp_path, hold)))
    first.start()
    assert begun.wait(30)
    try:
        with pytest.raises(UserError, match=rf"^{tmp_path} is in use by process {os.getpid()} on .*: wait for it, or"):
            enwik8.download(server.url, tmp_path)
    finally:
        refused.set()
        first.join()
    assert found == [tmp_path / "enwik8.zip"]
    assert found[0].read_bytes() == server.body
    assert enwik8.download(server.url, tmp_path) == found[0]
    assert server.requests == [None]
    assert list(tmp_path.iterdir()) == found


def test_a_download_that_ended_just_before_the_next_one(server, tmp_path, monkeypatch):
    take = enwik8.take_lock

    def late(path):
        monkeypatch.setattr(enwik8, "take_lock", take)
        enwik8.download(server.url, tmp_path)
        return take(path)

    monkeypatch.setattr(enwik8, "take_lock", late)
    assert enwik8.download(server.url, tmp_path).read_bytes() == server.body
    assert server.requests == [None]


@pytest.mark.parametrize("name", ["enwik8", "enwik8.zip"])
def test_file_of_that_name_must_be_enwik8(server, tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.write_bytes(zipped(CONTENT) if name.endswith("zip") else CONTENT)
    assert open_corpus(str(path)).sha256 == enwik8.SHA256
    path.write_bytes(zipped(CONTENT[::-1]) if name.endswith("zip") else CONTENT[::-1])
    with pytest.raises(UserError, match="rename it if it is another text"):
        open_corpus(str(path))
    path.write_bytes(CONTENT[:50])
    with pytest.raises(UserError, match="holds 50 bytes, enwik8 has"):
        open_corpus(str(path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="holds 50 bytes" if name == "enwik8" else "not in the cache"):
        open_corpus("enwik8")


def test_existing_wrong_file_is_not_overwritten(server, tmp_path):
    target = tmp_path / "enwik8.zip"
    target.write_bytes(b"mine")
    with pytest.raises(UserError, match="holds 4 bytes"):
        enwik8.download(server.url, target)
    assert target.read_bytes() == b"mine"
