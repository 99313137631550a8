"""Who may ask: keys, host names and web pages of elsewhere."""

from __future__ import annotations

import pytest

from specx.cli.serve.gate import Policy

KEYED = Policy(keys=("first key", "second"))


def status(server, path="/v1/models", **headers):
    return server.client.get(
        path, headers={name.replace("_", "-"): value for name, value in headers.items()}
    ).status_code


def test_a_key_is_needed_everywhere_but_for_the_health(serve):
    server = serve(policy=KEYED)
    for path in ("/v1/models", "/metrics", "/props", "/slots", "/v1/nothing"):
        refused = server.client.get(path)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert refused.json()["error"]["code"] == "invalid_api_key"
    assert server.post("/v1/completions", {"prompt": "the"}).status_code == 401
    assert status(server, "/health") == status(server, "/v1/health") == 200


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Authorization": "Bearer first key"}, 200),
        ({"Authorization": "bearer second"}, 200),
        ({"Authorization": "Bearer  second "}, 200),
        ({"X_Api_Key": "second"}, 200),
        ({"Authorization": "Bearer first"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "second"}, 401),
        ({"Authorization": "Basic second"}, 401),
        ({"Authorization": "Bearer secondsecond"}, 401),
        ({"X_Api_Key": ""}, 401),
    ],
)
def test_which_keys_are_accepted(headers, expected):
    from specx.engine.api.errors import RequestError

    raw = [(name.replace("_", "-").lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"headers": [(b"host", b"127.0.0.1"), *raw], "server": ("127.0.0.1", 1), "path": "/v1/models"}
    try:
        KEYED.check(scope)
        found = 200
    except RequestError as problem:
        found = problem.status
    assert found == expected


def test_names_of_elsewhere_are_refused_on_the_loopback_interface(serve):
    server = serve()
    for host in ("127.0.0.1", "localhost", "localhost:1234", "LOCALHOST", "127.1.2.3:80", "[::1]:8080"):
        assert status(server, Host=host) == 200, host
    for host in (
        "example.org",
        "example.org:8080",
        "127.0.0.1.example.org",
        "localhost.example.org",
        "[2001:db8::1]",
        "10.0.0.1",
    ):
        assert status(server, Host=host) == 403, host


def test_a_server_of_a_network_has_any_name(serve):
    assert status(serve(policy=Policy(local=False)), Host="models.example.org") == 200


def test_web_pages_of_elsewhere_may_not_ask_unless_they_are_named(serve):
    server = serve()
    for origin in ("https://example.org", "null", "http://localhost:3000", "http://127.0.0.1"):
        refused = server.client.get("/v1/models", headers={"Origin": origin})
        assert refused.status_code == 403, origin
        assert "access-control-allow-origin" not in refused.headers
    assert status(server, Origin=server.url) == 200
    named = serve(policy=Policy(origins=("https://example.org",), keys=("k",)))
    allowed = named.client.get(
        "/v1/models", headers={"Origin": "https://example.org", "Authorization": "Bearer k"}
    )
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://example.org"
    assert status(named, Origin="https://example.com", Authorization="Bearer k") == 403
    preflight = named.client.options(
        "/v1/chat/completions",
        headers={
            "Origin": "https://example.org",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        },
    )
    assert preflight.status_code == 200
    # What is refused can be read by the page, too.
    refused = named.client.get("/v1/models", headers={"Origin": "https://example.org"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://example.org"


def test_any_page_may_ask_if_that_is_wanted(serve):
    server = serve(policy=Policy(origins=("*",)))
    answer = server.client.get("/v1/models", headers={"Origin": "https://example.org"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")
