"""What `specx serve` is told on its command line, before anything is loaded."""

from __future__ import annotations

import pytest

from specx.cli.serve import command, run


@pytest.fixture
def started(monkeypatch):
    """What would have been served: the servers that were about to live."""
    lives = []

    def live(life):
        lives.append(life)
        life.names = life._places.names
        life._places.remove()

    monkeypatch.setattr(run.Life, "run", live)
    return lives


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "70000"], "--port is 70000"),
        (["--port", "x"], "--port"),
        (["-np", "0"], "--parallel is '0'"),
        (["-np", "300"], "--parallel is '300'"),
        (["-np", "many"], "--parallel is 'many'"),
        (["--queue", "-1"], "--queue is -1"),
        (["--timeout", "0"], "--timeout is 0"),
        (["--timeout", "nan"], "--timeout is nan"),
        (["--alias", " "], "--alias is empty"),
        (["-n", "-2"], "--n-predict is -2"),
        (["--api-key", ""], "--api-key is empty"),
        (["--cors", "example.org"], "--cors is 'example.org'"),
        (["--cors", "https://example.org/page"], "--cors is"),
        (["--temp", "-1"], "--temp is -1"),
        (["--idle", "soon"], "--idle"),
        (["--stop", "--background"], "--background and --stop are both given"),
        (["--stop", "--status"], "--status and --stop are both given"),
        (["--all"], "--all is given without --stop"),
        (["--stop", "--all"], "a model and --all are both given"),
    ],
)
def test_values_that_make_no_sense_are_refused(specx, started, arguments, said):
    done = specx("serve", str(specx.model), "--port", "0", *arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert started == []


def test_the_address_of_a_free_port_is_written(specx, started):
    done = specx("serve", str(specx.model), "--port", "0")
    assert done.code == 0
    assert done.out.startswith("http://127.0.0.1:")
    assert done.err == ""
    assert len(started) == 1


def policy_of(life):
    return life._api._policy


def test_keys_come_from_the_command_line_the_environment_and_a_file(specx, started, monkeypatch, tmp_path):
    path = tmp_path / "keys"
    path.write_text("third\n\n  fourth  \n")
    specx("serve", str(specx.model), "--port", "0", "--api-key", "first", "--api-key", "second")
    assert policy_of(started[-1]).keys == ("first", "second")
    monkeypatch.setenv("SPECX_API_KEY", "secret")
    specx("serve", str(specx.model), "--port", "0", "--api-key-file", str(path))
    assert policy_of(started[-1]).keys == ("secret", "third", "fourth")
    path.write_text("\n")
    monkeypatch.delenv("SPECX_API_KEY")
    assert specx("serve", str(specx.model), "--port", "0", "--api-key-file", str(path)).code == 2


def test_what_listens_beyond_the_machine_says_so(specx, started):
    done = specx("serve", str(specx.model), "--port", "0", "--host", "0.0.0.0")
    assert "other machines can ask at http://0.0.0.0:" in done.err
    assert "no --api-key is needed" in done.err
    assert not policy_of(started[-1]).local
    done = specx("serve", str(specx.model), "--port", "0", "--host", "0.0.0.0", "--api-key", "k")
    assert "other machines" in done.err and "no --api-key" not in done.err
    assert policy_of(specx and started[-1]).keys == ("k",)
    assert specx("serve", str(specx.model), "--port", "0", "--host", "localhost").err == ""


def test_a_socket_alone_listens_on_no_port(specx, started, tmp_path):
    path = tmp_path / "s"
    specx("serve", str(specx.model), "--socket", str(path))
    assert started[-1].names == [str(path)]
    specx("serve", str(specx.model), "--socket", str(path), "--port", "0")
    assert len(started[-1].names) == 2
    done = specx("serve", str(specx.model), "--socket", str(tmp_path / "missing" / "s"))
    assert done.code == 1


def test_what_a_request_leaves_open_is_what_the_options_say(specx, started):
    specx("serve", str(specx.model), "--port", "0", "--temp", "0.3", "-n", "50", "-a", "mine", "-np", "3")
    defaults = started[-1]._api._defaults
    assert (defaults.sampling.temperature, defaults.n_predict, defaults.model) == (0.3, 50, "mine")
    with started[-1]._open_session():
        assert specx.settings[-1].texts == 3
    specx("serve", str(specx.model), "--port", "0")
    assert started[-1]._api._defaults.model == "model"
    assert started[-1]._api._defaults.n_predict is None
    with started[-1]._open_session():
        assert specx.settings[-1].texts is None


def test_an_unexpected_error_is_told_without_what_was_typed(capsys):
    try:
        raise ValueError("the secret prompt")
    except ValueError as problem:
        command._report(problem)
    said = capsys.readouterr().err
    assert "ValueError" in said and "test_command.py" in said
    assert "secret" not in said
