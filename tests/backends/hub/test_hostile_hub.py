"""A hub, or what answers in its place, that sends something else than it lists: nothing of it stays."""

import contextlib
import gzip
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import HfApi, constants

from specx.backends.errors import DownloadError, UsageError
from specx.backends.hub import download, transfer, trust
from specx.backends.hub.download import pull
from specx.backends.hub.trust import guard_client, is_plain_name

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = b"GGUF" + bytes(range(256)) * 8
SHA256 = hashlib.sha256(MODEL).hexdigest()
LOGIN = b"<!doctype html><title>Log in to the network</title>"


STATES = {"lfs": {"size": len(MODEL), "sha256": SHA256, "pointerSize": 130}}


def listed(sha=COMMIT, states=STATES, others=()):
    """What a hub says of a repository with one file."""
    file = {"rfilename": "m.gguf", "size": len(MODEL), **states}
    return {"id": "org/m", "sha": sha, "siblings": [file, *others]}


class Answers(BaseHTTPRequestHandler):
    """A hub with one file; `server.sends` may answer a request for it in another way."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, body=b"", **headers):
        self.send_response(status)
        for key, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def cut(self, body, length):
        """Some of a body, and then the connection ends."""
        self.close_connection = True
        start = int((self.headers["Range"] or "bytes=0-")[6:].split("-")[0])
        status = 206 if self.headers["Range"] else 200
        self.reply(status, body[start : start + length], Content_Length=len(body) - start)

    def do_GET(self):
        server, path = self.server, unquote(urlsplit(self.path).path)
        if path.startswith("/api/"):
            listing = listed(server.sha, server.states, server.others)
            self.reply(200, server.listing or json.dumps(listing).encode())
            return
        server.asked.append((self.command, self.headers["Range"]))
        if not server.sends(self):
            self.send_whole()

    do_HEAD = do_GET

    def send_whole(self):
        wanted = self.headers["Range"]
        start = int(wanted[6:].split("-")[0]) if wanted else 0
        if start >= len(MODEL):
            self.reply(416)
            return
        head = {"ETag": f'"{self.server.etag}"', "X-Repo-Commit": COMMIT}
        self.reply(206 if wanted else 200, MODEL[start:], **head)


@pytest.fixture(scope="module")
def server():
    guard_client()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transfer, "_WAITS", (0.0,) * 5)
    server.asked, server.others, server.listing = [], [], b""
    server.sha, server.etag = COMMIT, SHA256
    server.states = STATES
    server.sends = lambda request: False
    return HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token=False)


def times(count, send):
    """Lets the first `count` requests for the content be answered by `send`."""
    left = [count]

    def sends(request):
        if request.command == "HEAD" or not left[0]:
            return False
        left[0] -= 1
        send(request)
        return True

    return sends


def gets(server):
    return [wanted for command, wanted in server.asked if command == "GET"]


def refusal(hub):
    with pytest.raises(DownloadError) as caught:
        pull("org/m", hub=hub)
    assert caught.value.hint
    return caught.value.message


def partial(tmp_path, content):
    blobs = tmp_path / "cache/models--org--m/blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{SHA256}.incomplete").write_bytes(content)


def page(request):
    request.reply(200, LOGIN)


@pytest.mark.parametrize(
    "states",
    [
        {"lfs": {"size": len(MODEL), "sha256": SHA256, "pointerSize": 130}},
        {"blobId": hashlib.sha1(b"blob %d\0" % len(MODEL) + MODEL).hexdigest()},
        {},
    ],
    ids=["sha256", "git", "nothing"],
)
def test_a_login_page_does_not_become_the_beginning_of_a_model(hub, server, tmp_path, states):
    server.states = states
    server.sends = times(1, page)
    assert pull("org/m", hub=hub).read_bytes() == MODEL
    server.sends = lambda request: False
    pull("org/m", hub=hub).unlink()
    for blob in (tmp_path / "cache/models--org--m/blobs").iterdir():
        blob.unlink()
    partial_of = tmp_path / f"cache/models--org--m/blobs/{SHA256}.incomplete"
    partial_of.write_bytes(LOGIN)  # as an earlier version left it
    assert pull("org/m", hub=hub).read_bytes() == MODEL


def test_a_login_page_that_stays_is_an_error_each_time(hub, server, tmp_path):
    server.sends = times(100, page)
    assert "did not arrive as org/m lists it" in refusal(hub)
    assert "did not arrive" in refusal(hub)
    server.sends = lambda request: False
    assert pull("org/m", hub=hub).read_bytes() == MODEL


def test_what_has_the_right_size_and_another_content_is_fetched_again_then_refused(hub, server, tmp_path):
    server.sends = times(1, lambda request: request.reply(200, MODEL[::-1]))
    assert pull("org/m", hub=hub).read_bytes() == MODEL
    path = pull("org/m", hub=hub)
    path.resolve().write_bytes(MODEL[:-1] + b"?")  # spoiled while it lay there
    assert pull("org/m", hub=hub).read_bytes() == MODEL
    path.resolve().write_bytes(MODEL[:-1] + b"?")
    server.sends = times(9, lambda request: request.reply(200, MODEL[::-1]))
    assert "SHA-256 sum is" in refusal(hub)
    assert not path.exists()


@pytest.mark.parametrize("content", [MODEL + b"more", b"x" * len(MODEL), LOGIN, b""], ids=range(4))
def test_a_partial_file_of_any_content(hub, tmp_path, content):
    partial(tmp_path, content)
    assert pull("org/m", hub=hub).read_bytes() == MODEL


def test_a_good_partial_file_is_gone_on_with(hub, server, tmp_path):
    partial(tmp_path, MODEL[:1000])
    assert pull("org/m", hub=hub).read_bytes() == MODEL
    assert gets(server) == ["bytes=1000-"]


def test_a_cut_connection_is_taken_up(hub, server, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 250)
    server.sends = times(3, lambda request: request.cut(MODEL, 500))
    assert pull("org/m", hub=hub).read_bytes() == MODEL
    assert gets(server) == [None, "bytes=500-", "bytes=1000-", "bytes=1500-"]


def test_a_connection_that_is_always_cut_ends(hub, server):
    server.sends = times(1000, lambda request: request.cut(MODEL, 1))
    assert "cannot be reached" in refusal(hub)
    assert len(server.asked) < 20


def test_an_answer_without_end_does_not_fill_the_disk(hub, server, tmp_path):
    sent = []

    def send(request):
        request.send_response(200)
        request.end_headers()
        request.close_connection = True
        try:
            while len(sent) < 1000:
                request.wfile.write(b"GGUF" * (1 << 18))
                sent.append(1)
        except OSError:
            pass

    server.sends = times(2, send)
    assert "more than" in refusal(hub)
    assert len(sent) < 200
    assert sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()) < 1 << 20


def test_a_compressed_answer_does_not_fill_the_disk(hub, server, tmp_path):
    body = gzip.compress(bytes(16 << 20))
    server.sends = times(2, lambda request: request.reply(200, body, Content_Encoding="gzip"))
    assert "more than" in refusal(hub)
    assert sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()) < 8 << 20


@pytest.mark.parametrize("command", ["HEAD", "GET"])
def test_redirects_end(hub, server, command):
    def sends(request):
        if request.command == command:
            request.reply(302, Location=request.path + "x")
        return request.command == command

    server.sends = sends
    assert "redirects without end" in refusal(hub)


@pytest.mark.parametrize("etag", ["../../../outside", "/outside", "..", "a/b", "x" * 300, 'W/"../a"', "a b"])
def test_an_etag_that_is_no_name(hub, server, tmp_path, etag):
    server.etag = etag
    assert "ETag" in refusal(hub)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("sha", ["../../outside", "", None, 7, "a\nb"])
def test_a_commit_that_is_no_name(hub, server, sha):
    server.sha = sha
    if sha not in (None, 7):
        assert "commit" in refusal(hub)
    else:  # taken as the word it is
        assert pull("org/m", hub=hub).read_bytes() == MODEL


ODD = (
    *("../m-Q4_0.gguf", "/abs-Q4_0.gguf", "a/../../m-Q4_0.gguf", "a//m-Q4_0.gguf", "./m-Q4_0.gguf"),
    *("m\n-Q4_0.gguf", "\x1b[2J-Q4_0.gguf", "a\\m-Q4_0.gguf", "\ud800-Q4_0.gguf", "a" * 300 + "-Q4_0.gguf"),
)


@pytest.mark.parametrize("name", ODD, ids=range(len(ODD)))
def test_odd_names_are_passed_over(hub, server, tmp_path, name):
    assert not is_plain_name(name)
    server.others = [{"rfilename": name, "size": 4}]
    assert pull("org/m", hub=hub).name == "m.gguf"  # Q4_0 would be preferred
    with pytest.raises((DownloadError, UsageError)):
        pull("org/m", file=name, hub=hub)


@pytest.mark.parametrize(
    "listing",
    [
        LOGIN,
        b"[" * 100_000,
        b"{}",
        b"[]",
        b'"x"',
        b'{"id": 7, "siblings": [{}]}',
        b"\xff",
        b'{"id": "a", "siblings": 7}',
    ],
    ids=range(8),
)
def test_a_listing_that_is_none(hub, server, listing):
    server.listing = listing
    told = refusal(hub)
    assert "is not Hugging Face" in told or "no GGUF file" in told or "commit" in told, told


def packed(length):
    """So many spaces, as gzip packs them."""
    return gzip.compress(b" " * length)


@pytest.mark.parametrize("packs", [True, False])
def test_a_listing_without_end_does_not_fill_the_memory(hub, server, monkeypatch, packs):
    monkeypatch.setattr(trust, "MOST_LISTED", 1 << 20)
    content = packed(8 << 20) if packs else b" " * (8 << 20)
    head = {"Content_Encoding": "gzip"} if packs else {}
    sent = []

    def lists(request):
        sent.append(1)
        request.close_connection = True
        with contextlib.suppress(OSError):
            request.reply(200, content, **head)

    monkeypatch.setattr(Answers, "do_GET", lists)
    with pytest.raises(DownloadError, match="more than 1,048,576 bytes"):
        pull("org/m", hub=hub)
    assert sent == [1]


def test_a_listing_that_comes_a_byte_at_a_time_is_not_waited_for(hub, server, monkeypatch):
    monkeypatch.setattr(download, "LONGEST_S", 0.5)
    ended = threading.Event()

    def drips(request):
        request.close_connection = True
        request.reply(200, Content_Length=1 << 20)
        with contextlib.suppress(OSError):
            while not ended.wait(0.05):
                request.wfile.write(b" ")

    monkeypatch.setattr(Answers, "do_GET", drips)
    try:
        with pytest.raises(DownloadError, match="not come to the end of an answer within 0 s"):
            pull("org/m", hub=hub)
    finally:
        ended.set()


@pytest.mark.parametrize("answer", [b"\x16\x03\x01", b"HTTP/1.1 302 X\r\nLocation: http://[::1\r\n\r\n"])
def test_an_answer_that_is_none_is_not_asked_for_again(hub, server, monkeypatch, answer):
    asked = []

    def answers(request):
        asked.append(1)
        request.close_connection = True
        request.wfile.write(answer)

    monkeypatch.setattr(Answers, "do_GET", answers)
    with pytest.raises(DownloadError):
        pull("org/m", hub=hub)
    assert asked == [1]


@pytest.mark.parametrize("revision", ["..", "../../x", "/etc", "a\nb", ""])
def test_a_revision_that_is_no_name(hub, revision):
    if not revision:
        assert pull("org/m", revision=revision, hub=hub).exists()
        return
    with pytest.raises(UsageError):
        pull("org/m", revision=revision, hub=hub)


def test_checking_is_told(hub):
    told = []
    pull("org/m", hub=hub, progress=lambda *args: told.append(args))
    assert told[-1] == ("checking m.gguf", len(MODEL), len(MODEL))
    told.clear()
    pull("org/m", hub=hub, progress=lambda *args: told.append(args))
    assert {name for name, _, _ in told} == {"checking m.gguf"}


def test_a_folder_in_the_place_of_a_file(hub, tmp_path):
    (tmp_path / f"cache/models--org--m/snapshots/{COMMIT}/m.gguf").mkdir(parents=True)
    told = refusal(hub)
    assert "cannot be used: " in told and "Error" not in told
