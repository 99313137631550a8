"""Home directories that there are not, and what follows from that."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from specx.backends.places import expanded, home, user_folder
from specx.backends.store import Store, cache_dir, user_store

pwd = pytest.importorskip("pwd")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in ("HOME", "SPECX_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def _no_account(monkeypatch):
    """This user has no passwd entry, as under a user id that a container was given."""

    def getpwuid(_number):
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)


@pytest.mark.parametrize("value", [None, "", "relative", "~"])
@pytest.mark.usefixtures("_no_account")
def test_nowhere_to_keep_anything(monkeypatch, tmp_path, value):
    monkeypatch.chdir(tmp_path)
    if value is not None:
        monkeypatch.setenv("HOME", value)
    assert home() is None
    assert expanded(Path("~/x")) == Path("~/x")
    assert (user_folder("cache"), user_folder("config"), cache_dir()) == (None, None, None)
    monkeypatch.setenv("SPECX_CACHE", "~/x")
    assert cache_dir() is None
    notices: list[str] = []
    store = user_store(True, notices.append)
    store.save_json("machine", "a", {"x": 1})
    store.save_json("machine", "b", {"x": 1})
    assert store.load_json("machine", "a") is None
    assert len(notices) == 1 and "there is no home directory" in notices[0]
    user_store(False, notices.append).save_json("machine", "a", {"x": 1})
    assert len(notices) == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_no_account")
def test_a_place_of_its_own_needs_no_home(monkeypatch, tmp_path):
    monkeypatch.setenv("SPECX_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    user_store(True, pytest.fail).save_json("machine", "a", {"x": 1})
    assert Store(tmp_path).load_json("machine", "a") == {"x": 1}
    monkeypatch.delenv("SPECX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "specx"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() is None


@pytest.mark.parametrize("value", [None, "", "relative"])
def test_the_account_says_where_home_is(monkeypatch, tmp_path, value):
    monkeypatch.setattr(pwd, "getpwuid", lambda _number: SimpleNamespace(pw_dir=str(tmp_path)))
    if value is not None:
        monkeypatch.setenv("HOME", value)
    assert home() == tmp_path
    assert expanded(Path("~/x")) == tmp_path / "x"


def test_somebody_else_who_is_not_there():
    assert expanded(Path("~nobody-of-that-name/x")) == Path("~nobody-of-that-name/x")
    assert expanded(Path("x/~")) == Path("x/~")
