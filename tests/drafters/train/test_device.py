"""What heads are trained on: a GPU where torch can use one, and what was asked for or a sentence."""

import pytest

torch = pytest.importorskip("torch")

from specx.backends.errors import UsageError  # noqa: E402
from specx.drafters.train.device import training_device  # noqa: E402


@pytest.fixture
def there(monkeypatch):
    """Says what torch can use."""

    def use(*names):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in names)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in names)

    return use


def test_a_gpu_if_there_is_one(there):
    for names, device in (((), "cpu"), (("mps",), "mps"), (("cuda",), "cuda")):
        there(*names)
        assert training_device("auto") == device
        assert training_device("cpu") == "cpu"


@pytest.mark.parametrize("asked", ["cuda", "tpu", ""])
def test_what_is_not_there_is_refused(there, asked):
    there("mps")
    with pytest.raises(UsageError, match="cannot use") as caught:
        training_device(asked)
    assert "--device cpu, mps" in caught.value.hint
