"""Fetching from Hugging Face: against a small hub on this machine, and one that fails on command."""

import errno
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import httpx
import pytest
from huggingface_hub import HfApi, errors

from specx.backends.errors import DownloadError, UsageError
from specx.backends.hub.download import pull

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "README.md": b"words",
    "m-Q8_0.gguf": b"GGUF" + b"8" * 2996,
    "m-Q4_K_M.gguf": b"GGUF" + b"4" * 1996,
    "m-Q6_K-00001-of-00002.gguf": b"GGUF" + b"6" * 996,
    "m-Q6_K-00002-of-00002.gguf": b"GGUF" + b"7" * 496,
    "mmproj-m-Q4_K_M.gguf": b"GGUF" + b"p" * 6,
    "sub/other-Q5_0.gguf": b"GGUF" + b"5" * 6,
}
REFUSED = {
    "org/gone": (404, "RepoNotFound"),
    "org/gated": (403, "GatedRepo"),
    "org/busy": (429, ""),
    "org/broken": (500, ""),
    "org/lost": (404, ""),
}


class HubHandler(BaseHTTPRequestHandler):
    """As much of huggingface.co as a download asks for."""

    def log_message(self, *_):
        pass

    def reply(self, status, body=b"", **headers):
        self.send_response(status)
        for key, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        self.server.requests.append((self.command, self.path))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.info("/".join(parts[2:4]), parts[4:])
            return
        name = "/".join(parts[4:])
        content = FILES[name]
        headers = {"ETag": f'"{abs(hash(name)):040x}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        self.reply(200, content, **headers)

    do_HEAD = do_GET

    def info(self, repository, rest):
        if repository in REFUSED:
            status, code = REFUSED[repository]
            self.reply(status, X_Error_Code=code, X_Error_Message="no")
        elif rest[:1] == ["revision"] and rest[1] != "v1":
            self.reply(404, X_Error_Code="RevisionNotFound")
        else:
            files = [{"rfilename": f, "size": len(c)} for f, c in FILES.items()]
            if repository == "org/weights":
                files = [{"rfilename": "model.safetensors", "size": 5}]
            if repository in ("org/later", "org/half"):
                wanted = "00002-of" if repository == "org/later" else "00001-of"
                files = [f for f in files if wanted in f["rfilename"]]
            if repository == "org/partial":
                files = [f for f in files if "00002-of" not in f["rfilename"]]
            self.reply(200, json.dumps({"id": repository, "sha": COMMIT, "siblings": files}).encode())


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def hub(server):
    server.requests.clear()
    return HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token=False)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def failing(error):
    """A hub whose every answer is `error`."""

    def fail(*_, **__):
        raise error

    return SimpleNamespace(model_info=fail, hf_hub_download=fail)


def refusal(*args, **options) -> DownloadError:
    with pytest.raises(DownloadError) as caught:
        pull(*args, **options)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("spec", "options", "file"),
    [
        ("org/m", {}, "m-Q4_K_M.gguf"),
        ("org/m:Q8_0", {}, "m-Q8_0.gguf"),
        ("org/m", {"quant": "q8_0"}, "m-Q8_0.gguf"),
        ("org/m", {"file": "sub/other-Q5_0.gguf"}, "sub/other-Q5_0.gguf"),
        ("org/m/mmproj-m-Q4_K_M.gguf", {}, "mmproj-m-Q4_K_M.gguf"),
        ("https://huggingface.co/org/m/resolve/v1/m-Q8_0.gguf?download=true", {}, "m-Q8_0.gguf"),
        ("org/m", {"revision": "v1"}, "m-Q4_K_M.gguf"),
    ],
)
def test_the_right_file_arrives_where_other_tools_look(hub, cache, spec, options, file):
    path = pull(spec, hub=hub, **options)
    assert path.read_bytes() == FILES[file]
    assert path == cache / "models--org--m" / "snapshots" / COMMIT / file


def test_all_parts_of_a_split_model_with_progress(hub):
    told = []
    path = pull("org/m:Q6_K", hub=hub, progress=lambda *args: told.append(args))
    assert path.name == "m-Q6_K-00001-of-00002.gguf"
    assert path.with_name("m-Q6_K-00002-of-00002.gguf").read_bytes() == FILES["m-Q6_K-00002-of-00002.gguf"]
    assert {total for _, _, total in told} == {1500}
    done = [done for _, done, _ in told]
    assert done == sorted(done)
    assert done[-1] == 1500
    assert {file for file, _, _ in told} == {path.name, "m-Q6_K-00002-of-00002.gguf"}


def test_nothing_is_fetched_twice_and_damage_is_mended(hub, server):
    path = pull("org/m", hub=hub)
    server.requests.clear()
    assert pull("org/m", hub=hub) == path
    assert not [r for r in server.requests if r[0] == "GET" and "resolve" in r[1]]
    path.resolve().write_bytes(b"GGUF" + b"4" * 3)
    assert pull("org/m", hub=hub).read_bytes() == FILES["m-Q4_K_M.gguf"]


def test_offline_takes_what_is_there(hub, server, monkeypatch):
    assert "offline" in refusal("org/m", offline=True, hub=hub).message
    path = pull("org/m:Q8_0", hub=hub)
    server.requests.clear()
    assert pull("org/m", offline=True, hub=hub) == path
    assert "Q8_0" in refusal("org/m:Q5_0", offline=True).hint
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert pull("org/m", hub=hub) == path
    assert server.requests == []


def test_offline_a_revision_is_that_revision(hub, cache):
    path = pull("org/m:Q8_0", hub=hub)
    address = "https://huggingface.co/org/m/resolve/{}/m-Q8_0.gguf"
    for known in ("main", COMMIT):
        assert pull("org/m:Q8_0", revision=known, offline=True) == path
        assert pull(address.format(known), offline=True) == path
    for unknown in ("v1", COMMIT[:-1]):
        assert f"revision {unknown} of org/m" in refusal(address.format(unknown), offline=True).message
        assert f"revision {unknown} of org/m" in refusal("org/m", revision=unknown, offline=True).message
    assert pull("org/m:Q8_0", revision="v1", hub=hub) == path
    assert (cache / "models--org--m/refs/v1").read_text() == COMMIT
    assert pull(address.format("v1"), offline=True) == path


def test_what_an_update_left_out_is_fetched(hub):
    """The link to a part is there, the part is not, and no other revision is whole."""
    path = pull("org/m:Q6_K", hub=hub)
    second = path.with_name("m-Q6_K-00002-of-00002.gguf")
    second.resolve().unlink()
    refusal("org/m:Q6_K", offline=True)
    assert pull("org/m:Q6_K", hub=hub) == path
    assert second.read_bytes() == FILES[second.name]


@pytest.mark.parametrize(
    ("spec", "options", "message", "hint"),
    [
        ("org/gone", {}, "no repository org/gone", "spelling"),
        ("org/gated", {}, "gated", "HF_TOKEN"),
        ("org/busy", {}, "HTTP 429", "wait"),
        ("org/broken", {}, "HTTP 500", "later"),
        ("org/weights", {}, "no GGUF file", "weights+gguf"),
        ("org/m", {"revision": "v9"}, "no revision v9", "--revision"),
        ("org/m:Q2_K", {}, "no Q2_K", "Q4_K_M, Q5_0, Q6_K, Q8_0"),
        ("org/m/absent.gguf", {}, "no file absent.gguf", "m-Q8_0.gguf"),
        ("org/partial:Q6_K", {}, "lacks 1 of the 2 parts", "m-Q8_0.gguf"),
        ("org/half", {}, "lacks 1 of the 2 parts", "another repository"),
        ("org/later", {}, "only later parts of split models: m-Q6_K-00002-of", "another repository"),
        ("org/later:Q8_0", {}, "only later parts", "search=later+gguf"),
        ("org/lost", {}, "HTTP 404): it knows no such address", "spelling"),
    ],
)
def test_refusals_say_what_to_do(hub, spec, options, message, hint):
    error = refusal(spec, hub=hub, **options)
    assert message in error.message
    assert hint in error.hint


@pytest.mark.parametrize("spec", ["just-a-word", "https://example.com/a/b/c.gguf"])
def test_what_cannot_be_a_name_is_wrong_usage(hub, spec):
    with pytest.raises(UsageError, match="does not name") as caught:
        pull(spec, hub=hub)
    assert "ORG/REPO" in caught.value.hint


def test_several_models_of_one_quantization_are_listed(hub, monkeypatch):
    monkeypatch.setitem(FILES, "n-Q4_K_M.gguf", b"GGUFn")
    error = refusal("org/m", hub=hub)
    assert "m-Q4_K_M.gguf, n-Q4_K_M.gguf" in error.message
    assert "specx pull org/m/m-Q4_K_M.gguf" in error.hint


def test_contradictions_are_wrong_usage(hub):
    for spec, options in [
        ("org/m:Q4_0", {"quant": "Q8_0"}),
        ("org/m/a.gguf", {"file": "b.gguf"}),
        ("org/m/a.gguf", {"quant": "Q8_0"}),
    ]:
        with pytest.raises(UsageError):
            pull(spec, hub=hub, **options)


def test_a_full_disk_is_seen_before_anything_is_fetched(hub, server, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1999))
    assert "free" in refusal("org/m", hub=hub).message
    assert not [path for _, path in server.requests if "resolve" in path]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2000))
    assert pull("org/m", hub=hub).exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "full"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be written"),
        (ConnectionError("reset"), "cannot be reached"),
        (TimeoutError("slow"), "cannot be reached"),
        (errors.LocalEntryNotFoundError("no connection"), "cannot be reached"),
        (errors.HFValidationError("name"), "no repository name"),
        (EOFError("odd"), "org/m could not be fetched: EOFError: odd"),
        (RuntimeError("no answer from a server"), "org/m could not be fetched: no answer"),  # of hf_xet
        (httpx.InvalidURL("a path must begin with '/'"), "is not Hugging Face"),
    ],
)
def test_failures_become_one_message(error, message):
    assert message in refusal("org/m", hub=failing(error)).message


def test_without_a_network_a_copy_at_hand_is_named(hub):
    pull("org/m:Q8_0", hub=hub)
    closed = HfApi(endpoint="http://127.0.0.1:9", token=False)
    error = refusal("org/m", hub=closed)
    assert "cannot be reached" in error.message
    assert "org/m/m-Q8_0.gguf" in error.hint


def test_an_interrupt_is_not_an_error():
    with pytest.raises(KeyboardInterrupt):
        pull("org/m", hub=failing(KeyboardInterrupt()))


def test_the_token_reaches_the_library(monkeypatch):
    seen = []

    class Api:
        def __init__(self, **options):
            seen.append(options["token"])

        def model_info(self, *_, **__):
            raise ConnectionError

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    refusal("org/m", token="hf_secret")
    refusal("org/m")
    assert seen == ["hf_secret", None]


@pytest.mark.parametrize("token", ["hf_gehe\u00efm", "hf_secret\n", "hf secret"])
def test_what_cannot_be_a_token_is_not_sent(monkeypatch, token):
    monkeypatch.setattr("huggingface_hub.HfApi", lambda **_: pytest.fail("the hub was asked"))
    with pytest.raises(UsageError, match="access token") as caught:
        pull("org/m", token=token)
    assert "--token" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", "hf_gehe\u00efm")
    with pytest.raises(UsageError, match="access token") as caught:
        pull("org/m")
    assert "HF_TOKEN" in caught.value.hint


def test_nothing_is_written_beside_the_cache_that_was_named(hub, cache, tmp_path):
    assert pull("org/m", hub=hub).is_relative_to(cache)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
