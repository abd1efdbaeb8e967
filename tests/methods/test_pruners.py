"""The floors: random tokens and checkerboards, on the schedule of ToPi."""

import pytest
import torch

from topi import Checkerboard, RandomTokens
from topi.errors import ToPiError
from topi.methods.checker import checkerboard

small = {"front_layers": 1, "first_anchor": 1, "update_every": 3}


def masks(method, pipe, arguments):
    with method(pipe):
        pipe(**arguments)
    return {record.step: record.kept for record in method.trace}


class TestRandomTokens:
    def test_redrawn_at_each_anchor(self, flux):
        pipe, call = flux
        kept = masks(RandomTokens(**small), pipe, call(steps=8))
        assert [kept[step] for step in (0, 1, 4, 7)] == [None] * 4
        assert kept[2] == kept[3]
        assert kept[5] == kept[6]
        assert kept[2] != kept[5]
        assert len(kept[2]) == len(kept[5]) == 32
        assert list(kept[2]) == sorted(kept[2])

    def test_fixed(self, flux):
        pipe, call = flux
        kept = masks(RandomTokens(fixed=True, **small), pipe, call(steps=8))
        assert kept[2] == kept[3] == kept[5] == kept[6]

    def test_deterministic_seeded_and_private(self, flux):
        pipe, call = flux
        one = masks(RandomTokens(**small), pipe, call(steps=6))
        state = torch.get_rng_state()
        assert masks(RandomTokens(**small), pipe, call(steps=6)) == one
        assert torch.equal(torch.get_rng_state(), state)
        other = masks(RandomTokens(seed=1, **small), pipe, call(steps=6))
        assert other[2] != one[2]
        # seeds must not be each other's later draws
        assert other[2] != one[5]

    def test_both_branches_keep_the_same(self, qwen):
        pipe, call = qwen
        method = RandomTokens(**small)
        masks(method, pipe, call(steps=3))
        assert len({record.kept for record in method.trace if record.step == 2}) == 1

    @pytest.mark.parametrize("ratio", [-0.1, 1.5, "half"])
    def test_ratio_out_of_range(self, ratio):
        with pytest.raises(ToPiError, match="ratio="):
            RandomTokens(ratio=ratio)

    def test_front_layers_too_many(self, flux):
        with pytest.raises(ToPiError, match="front_layers=10"), RandomTokens()(flux[0]):
            pass


class TestCheckerboard:
    def test_board(self):
        squares = checkerboard((3, 4), 0).int().reshape(3, 4).tolist()
        assert squares == [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]
        assert torch.equal(checkerboard((3, 4), 1), ~checkerboard((3, 4), 0))

    @pytest.mark.parametrize(
        ("flip", "turns"),
        [("never", [0, 0, 0, 0]), ("anchor", [0, 0, 1, 1]), ("step", [0, 1, 1, 0])],
    )
    def test_flips(self, flux, flip, turns):
        pipe, call = flux
        kept = masks(Checkerboard(flip=flip, **small), pipe, call(steps=8))
        assert [kept[step] for step in (0, 1, 4, 7)] == [None] * 4
        boards = [tuple(checkerboard((8, 8), turn).nonzero().flatten().tolist()) for turn in (0, 1)]
        assert [kept[step] for step in (2, 3, 5, 6)] == [boards[turn] for turn in turns]

    def test_each_reference_has_its_own_board(self, qwen_plus):
        pipe, call = qwen_plus
        kept = masks(Checkerboard(**small), pipe, call(steps=3))[2]
        first = checkerboard((8, 8), 0).nonzero().flatten().tolist()
        second = checkerboard((6, 10), 0).nonzero().flatten().tolist()
        assert list(kept) == first + [64 + j for j in second]

    def test_unknown_flip(self):
        with pytest.raises(ToPiError, match="never, anchor, step"):
            Checkerboard(flip="always")
