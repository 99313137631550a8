"""Bytes that a hostile world hands in, at random: files, what comes over HTTP, and what a hub answers."""

from __future__ import annotations

import json
import socket
import struct
import threading
from contextlib import contextmanager, suppress
from http.server import ThreadingHTTPServer

from fuzz.texts import ODD_NUMBERS, ODD_TEXTS, body, value
from huggingface_hub import HfApi

HEADER_BYTES = 14_000  # of a tiny file, in which most of its header lies


def header(random, damage, good):
    """A GGUF file with something wrong: a value or a tensor of its header, or some of its bytes.

    Args:
        random: what is chosen by.
        damage: the module of tests/backends/gguf that takes headers apart.
        good: the file.
    """
    if random.random() < 0.2:
        return _wrong_bytes(random, good)
    whole = damage.parsed(good)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        what = random.random()
        if what < 0.25:
            whole = damage.replace(whole, data=_other_data(random, whole.data))
        elif what < 0.8:
            whole = damage.replace(whole, values=_other_values(random, damage, whole))
        else:
            changes = list(damage.wrong_tensors(whole.tensors))
            whole = damage.replace(whole, tensors=random.choice(changes)[1])
    return whole.written()


def _other_data(random, data):
    """Weights of which some are others, or no numbers."""
    found = bytearray(data)
    for _ in range(random.choice((1, 20, 300))):
        at = random.randrange(len(found) // 4) * 4
        found[at : at + 4] = struct.pack("<f", random.choice((float("nan"), float("inf"), -1e38, 1e-40, 7.0)))
    return bytes(found)


def _other_values(random, damage, whole):
    """The values of a header, of which one is another, or is not there, or a number a little off."""
    values = dict(whole.values)
    architecture = next(key for key in values if key.endswith(b".block_count")).decode().partition(".")[0]
    added = [f"{architecture}.{name}".encode() for name in damage.MISSING]
    added += [name.encode() for name in damage.TOKENIZER]
    key = random.choice(list(values) if random.random() < 0.8 else added)
    if key not in values:
        values[key] = random.choice(list(damage.ANY.values()))
    elif random.random() < 0.05:
        del values[key]
    else:
        kind, number = damage.Reader(values[key]).value()
        if isinstance(number, float | int) and not isinstance(number, bool) and random.random() < 0.5:
            other = random.choice(
                (number * 2, number // 2, number + 1, number - 1, random.choice(ODD_NUMBERS))
            )
            if kind in damage.SCALARS and damage.SCALARS[kind] in "BHIQ":
                other = int(other) % (1 << 8 * struct.calcsize(damage.SCALARS[kind]))
            values[key] = damage.scalar(kind, other) if abs(other) < 1 << 31 else damage.scalar(6, other)
        else:
            values[key] = random.choice(list(damage.wrong_values(values[key])))[1]
    return values


def _wrong_bytes(random, good):
    """A file with some of its bytes wrong; the header is hit more often than the rest."""
    data = bytearray(good)
    for _ in range(random.choice((1, 1, 2, 5, 40))):
        size = max(1, min(len(data), HEADER_BYTES))
        data += b"\0" * (not data)
        at, what = random.randrange(size), random.randrange(5)
        if what == 0:
            data[at] = random.randrange(256)
        elif what == 1:
            number = random.choice(ODD_NUMBERS) & (2**64 - 1)
            data[at : at + 8] = struct.pack("<Q", number)
        elif what == 2:
            data[at : at + 4] = struct.pack("<I", random.choice(ODD_NUMBERS) & (2**32 - 1))
        elif what == 3:
            other, length = random.randrange(size), random.randrange(64)
            data[at : at + length] = data[other : other + length]
        elif random.random() < 0.2:
            del data[random.randrange(len(data)) :]
    return bytes(data)


def spoiled(random, good):
    """What a file may hold instead of `good`."""
    what = random.randrange(6)
    if what == 0:
        return json.dumps(value(random, 4)).encode(errors="replace")
    if what == 1:
        return good[: random.randrange(len(good) + 1)]
    if what == 2:
        return bytes(random.randrange(256) for _ in range(random.randrange(200)))
    if what == 3:
        return random.choice((b"[" * 100_000, b"", b"\0" * 4096, b'{"version": 1}', b"9" * 6000))
    data = bytearray(good)
    for _ in range(random.choice((1, 3, 20))):
        if data:
            data[random.randrange(len(data))] = (
                random.randrange(256) if what == 4 else random.choice(b'0-9."[]{}e')
            )
    return bytes(data)


PATHS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/chat/completions", "/v1/completions"),
    *("/tokenize", "/detokenize", "/v1/models", "/v1/models/scripted", "/health", "/metrics", "/props"),
    *("/slots", "/tokenizer_info", "/specx/x", "/", "//", "/%00", "/..%2f..", "*", "http://localhost/health"),
)
FIELDS = (
    *(b"Host: evil.example", b"Origin: http://evil.example", b"Authorization: Bearer \xff", b"X: \x00y"),
    *(b"Expect: 100-continue", b"Upgrade: websocket", b"Connection: close", b"Connection: x, keep-alive"),
    *(
        b"Content-Type: \xff/\xff",
        b"Content-Encoding: gzip",
        b"Content-Length: 3",
        b"Transfer-Encoding: gzip",
    ),
    *(
        b"X-Api-Key: " + b"k" * 9000,
        b" folded: x",
        b"no colon",
        b": empty",
        b"Cookie: \r",
        b"Range: bytes=1-0",
    ),
)


def request(random):
    """One request as it comes over the wire, right or wrong in its head or its body."""
    path, odd = random.choice(PATHS), random.random() < 0.4
    sent = json.dumps(body(random)).encode()
    if "tokenize" in path:
        key = random.choice(("content", "tokens", "x"))
        wanted = value(random, 2) if odd else random.choice(("a text", [1, 2, 3]))
        sent = json.dumps({key: wanted, "add_special": True}).encode()
    if random.random() < 0.1:
        sent = spoiled(random, sent)
    verb = random.choice((b"GET", b"PUT", b"\xff", b"")) if odd else b"POST" if "/" in path[1:] else b"GET"
    lines = [b"%b %b HTTP/1.%d" % (verb, path.encode(), random.choice((1, 1, 1, 0, 9)) if odd else 1)]
    lines.append(b"Host: localhost")
    lines += random.sample(FIELDS, random.randrange(3)) if odd else []
    if random.random() < 0.2:
        pieces = [sent[: len(sent) // 2], sent[len(sent) // 2 :]]
        lines.append(b"Transfer-Encoding: chunked")
        wrong = odd and random.random() < 0.5
        sent = b"".join(b"%x\r\n%b\r\n" % (len(p) + 7 * wrong, p) for p in pieces if p) + b"0\r\n\r\n"
    else:
        length = random.choice(ODD_NUMBERS) if odd and random.random() < 0.3 else len(sent)
        lines.append(b"Content-Length: %d" % length)
    data = bytearray(b"\r\n".join(lines) + b"\r\n\r\n" + sent)
    for _ in range(random.choice((1, 3)) if odd and random.random() < 0.3 else 0):
        data[random.randrange(len(data))] = random.randrange(256)
    return bytes(data)


def reply(random, good, address):
    """What a hub answers instead of a file: (status, headers, body, how much of it is sent).

    Args:
        random: what is chosen by.
        good: the file.
        address: of the hub.
    """
    status = random.choice((200, 200, 200, 206, 204, 301, 302, 307, 401, 404, 416, 429, 500, 503, 999))
    sent = spoiled(random, good) if random.random() < 0.5 else good
    headers = {
        "Content-Length": random.choice((len(sent), len(sent), len(sent) + 9, *ODD_NUMBERS[:6], -1, "x"))
    }
    odd = [text for text in ODD_TEXTS if text.isprintable() and text.isascii()]
    for name in (
        "ETag",
        "Content-Range",
        "Content-Encoding",
        "X-Linked-Etag",
        "X-Linked-Size",
        "X-Repo-Commit",
    ):
        if random.random() < 0.2:
            headers[name] = random.choice((*odd, "gzip", "bytes 5-9/3", '"../../x"', "0"))
    if 300 <= status < 400:
        places = (f"{address}/loop", "http://127.0.0.1:1/x", "file:///etc/passwd", "//", "../..", address, "")
        headers["Location"] = random.choice(places)
    return status, headers, sent, random.choice((len(sent), len(sent), random.randrange(len(sent) + 1)))


def listing(random, good):
    """What a hub lists instead of `good`, as text."""
    if random.random() < 0.3:
        return spoiled(random, json.dumps(good).encode())
    good = json.loads(json.dumps(good))
    entry = random.choice((good, *good["siblings"], *(s["lfs"] for s in good["siblings"] if "lfs" in s)))
    key = random.choice(sorted(entry))
    entry[key] = value(random, 3)
    return json.dumps(good).encode(errors="replace")


def exchange(port, sent, *, cut):
    """Send bytes to a server, then a request that asks for the end, and return all that it answers.

    With `cut`, hang up after a little of it.
    """
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection, suppress(ConnectionError):
        connection.sendall(sent + b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        if cut:
            return connection.recv(20)
        while data := connection.recv(1 << 16):
            received += data
    return received


@contextmanager
def hub_of(answers, good, model, random):
    """A hub on this machine that answers oddly: (its client, whether what it lists is right).

    Args:
        answers: the handler of requests of a hub that may be told what to send.
        good: what it should list.
        model: what it should send.
        random: what is chosen by.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), answers)
    address = f"http://127.0.0.1:{server.server_port}"
    right = random.random() < 0.6
    odd = [random.random() < 0.7 for _ in range(8)]

    def sends(request):
        if not (odd.pop() if odd else True):
            return False
        status, headers, body, length = reply(random, model, address)
        request.close_connection = True
        with suppress(OSError):
            request.send_response(status)
            for key, value in headers.items():
                request.send_header(key, str(value))
            request.end_headers()
            if request.command != "HEAD":
                request.wfile.write(body[:length])
        return True

    server.asked, server.others, server.sha, server.etag, server.states = [], [], "", "0" * 40, {}
    server.listing = json.dumps(good).encode() if right else listing(random, good)
    server.sends = sends
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield HfApi(endpoint=address, token=False), right
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
