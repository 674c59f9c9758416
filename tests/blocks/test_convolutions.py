"""Convolutional readers and decoders: shapes, how far a cell is heard, and a mirror that learns."""

import pytest
import torch

from consilience.blocks.convolutions import ConvolutionDecoder, ConvolutionReader
from consilience.blocks.encoders import Architecture
from consilience.errors import SchemaError

SHAPES = [(5,), (17,), (1000,), (2, 3), (9, 13), (3, 32, 32), (2, 7, 9)]


@pytest.mark.parametrize("functions", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape_is_read_and_drawn(shape, functions):
    cells = torch.Size(shape).numel() * functions
    reader = ConvolutionReader(shape, functions, channels=4, hidden=8, outputs=5)
    decoder = ConvolutionDecoder(3, shape, functions, channels=4, hidden=8)
    assert reader(torch.randn(2, cells), torch.zeros(2, cells)).shape == (2, 5)
    assert decoder(torch.randn(2, 3)).shape == (2, cells)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_cell_is_heard_and_drawn(shape):
    torch.manual_seed(0)
    cells = torch.Size(shape).numel()
    value = torch.randn(1, cells, requires_grad=True)
    reader = ConvolutionReader(shape, 1, channels=4, hidden=8, outputs=5)
    assert torch.autograd.grad(reader(value, torch.zeros(1, cells)).square().sum(), value)[0].all()
    decoder = ConvolutionDecoder(3, shape, 1, channels=4, hidden=8)
    assert (decoder(torch.randn(50, 3)).std(0) > 0).all()


def test_functions_of_a_cell_stand_side_by_side():
    """As likelihoods want them: those of the first cell first."""
    decoder = ConvolutionDecoder(1, (5, 6), 2, channels=4, hidden=8)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
        decoder.layers[-1].weight[:, 1] = 1.0  # the second function alone
        decoder.first.layers[-1].bias.fill_(1.0)
    found = decoder(torch.zeros(1, 1)).unflatten(-1, (5, 6, 2))
    assert not found[..., 0].any()
    assert found[..., 1].all()


def test_nothing_of_what_is_missing_is_heard_at_first():
    reader = ConvolutionReader((3, 16, 16), 1, channels=4, hidden=8, outputs=5)
    value = torch.randn(2, 768)
    torch.testing.assert_close(reader(value, torch.rand(2, 768)), reader(value, torch.zeros(2, 768)))


def test_a_decoder_begins_at_an_offset_and_learns_a_moving_spot():
    torch.manual_seed(0)
    z = torch.rand(200, 1) * 2 - 1
    grid = torch.linspace(-1, 1, 16)
    image = torch.exp(-8 * ((grid - z[:, :, None]) ** 2 + grid[:, None] ** 2)).flatten(1)
    image = image / image.std()
    decoder = ConvolutionDecoder(1, (16, 16), 1, channels=8, hidden=32)
    decoder.begin(image.mean(0))
    first = float((decoder(z) - image).detach().square().mean() / image.var(0).mean())
    assert first < 1.2
    optimiser = torch.optim.Adam(decoder.parameters(), lr=5e-3)
    for _ in range(200):
        optimiser.zero_grad()
        (decoder(z) - image).square().mean().backward()
        optimiser.step()
    assert float((decoder(z) - image).detach().square().mean() / image.var(0).mean()) < 0.05


def test_convolutions_of_a_number_are_refused():
    with pytest.raises(SchemaError, match="event shape"):
        Architecture("conv", (), 1, 8, 4)
