"""Steps of Muon: singular values of about 1, whatever those of the gradient, and of a stated size."""

import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

from specx.drafters.train.muon import SIZE, Muon, orthogonalized  # noqa: E402


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (24, 24)])
def test_directions_stay_and_their_sizes_are_made_equal(shape):
    torch.manual_seed(2)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    sizes = torch.logspace(2, 0.7, 24)  # down to a twentieth
    found = u.T @ orthogonalized((u * sizes) @ v) @ v.T
    assert (found - torch.diag(found.diagonal())).abs().max() < 1e-3
    assert found.diagonal().min() > 0.55 and found.diagonal().max() < 1.25


def test_a_step_has_the_size_of_its_rate():
    torch.manual_seed(3)
    matrix = torch.nn.Parameter(torch.randn(24, 40))
    before = matrix.detach().clone()
    optimizer = Muon([matrix], 0.01, 0.5, bf16=False)
    (1000 * matrix * torch.randn(24, 40)).sum().backward()
    optimizer.step()
    step = matrix.detach() - before * (1 - 0.01 * 0.5)
    size = step.square().mean().sqrt() / (0.01 * SIZE)
    assert 0.6 < size < 1.2  # a matrix of 24 directions of size 1 has sqrt(1 / 40) in each place
