"""The floors: random tokens and checkerboards, on the schedule of ToPi."""

import pytest
import torch

from topi import Checkerboard, RandomTokens, ToPi
from topi.bench.runs.cell import draw_seed
from topi.engine import Call, CallRecord
from topi.errors import ToPiError
from topi.methods.floors.checker import checkerboard
from topi.methods.parts.pruner import merge_into_nearest
from topi.models import Layout

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

    def test_redrawn_at_every_step(self, qwen):
        pipe, call = qwen
        method = RandomTokens(redraw="step", **small)
        masks(method, pipe, call(steps=8))
        kept = {record.kept for record in method.trace if record.kept}
        assert len(kept) == 4  # the branches of a step share one
        assert {len(each) for each in kept} == {32}

    def test_samples_have_their_own_draws(self, flux):
        pipe, call = flux
        method, kept = RandomTokens(**small), []
        for seed in (0, 1, 0):
            with method(pipe, seed):
                pipe(**call(steps=3))
            kept.append(method.trace[2].kept)
        assert kept[0] == kept[2] != kept[1]
        assert draw_seed(0, "a") == draw_seed(0, "a") != draw_seed(0, "b") != draw_seed(1, "b")
        with pytest.raises(ToPiError, match="seed=-1"), method(pipe, seed=-1):
            pass

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


class TestStaticMask:
    @pytest.mark.parametrize("method", [RandomTokens, Checkerboard, ToPi])
    def test_one_anchor_and_its_mask_to_the_end(self, flux, method):
        pipe, call = flux
        options = {"flip": "anchor"} if method is Checkerboard else {"ratio": 0.5}
        options |= {"layers": (1, 3)} if method is ToPi else {}
        static = method(**options, **small | {"update_every": 0})
        kept = masks(static, pipe, call(steps=6))
        assert [record.step for record in static.trace if record.anchor] == [1]
        assert kept[0] is kept[1] is None
        assert len({kept[step] for step in range(2, 6)}) == 1
        assert kept[2] == masks(method(**options, **small), pipe, call(steps=6))[2]

    def test_anchors(self):
        static = RandomTokens(update_every=0, first_anchor=2)
        assert [step for step in range(9) if static.is_anchor(step)] == [2]
        assert [static.anchor_number(step) for step in (0, 1, 2, 8)] == [-1, -1, 0, 0]
        with pytest.raises(ToPiError, match="update_every=-1"):
            RandomTokens(update_every=-1)


class TestMerging:
    def test_dropped_tokens_are_averaged_into_their_nearest(self):
        """Tokens 0 and 2 stay; 1 points as 0 does, 3 and 4 as 2 does, however long they are."""
        states = torch.tensor([[[2.0, 0], [4, 1], [0, 1], [0, 5], [1, 3]]])
        merged = merge_into_nearest(states, torch.tensor([0, 2]))
        assert torch.allclose(merged, torch.tensor([[[3.0, 0.5], [1 / 3, 3]]]))

    def test_each_sample_has_its_own_neighbours(self):
        states = torch.tensor([[[1.0, 0], [0, 1], [3, 1]], [[1, 0], [0, 1], [1, 3]]])
        merged = merge_into_nearest(states, torch.tensor([0, 1]))
        assert torch.equal(merged, torch.tensor([[[2, 0.5], [0, 1]], [[1, 0], [0.5, 2]]]))

    def test_the_keeper_counts_once(self):
        same = torch.ones(1, 5, 3, dtype=torch.bfloat16)
        merged = merge_into_nearest(same, torch.tensor([4]))
        assert merged.dtype == torch.bfloat16
        assert torch.equal(merged, same[:, :1])

    def test_targets_are_not_touched_and_the_states_are_those_of_the_gather(self):
        layout = Layout(3, (1, 2), ((1, 3),))
        call = Call(4, "cond", layout, 1, torch.device("cpu"), CallRecord(4, "cond", layout, 1))
        states = torch.tensor([[[9.0, 9], [8, 8], [2, 0], [4, 1], [0, 1]]])
        rows = torch.tensor([0, 1, 2, 4])
        pruned = RandomTokens().gather(call, states, rows)
        merged = RandomTokens(dropped="merge").gather(call, states, rows)
        assert torch.equal(pruned, states[:, rows])
        assert torch.equal(merged, torch.tensor([[[9.0, 9], [8, 8], [3, 0.5], [0, 1]]]))

    @pytest.mark.parametrize("kind", ["flux", "qwen_plus"])
    def test_on_a_model(self, tiny, kind):
        options = {"zero_cond_t": True} if kind == "qwen_plus" else {}
        pipe, call = tiny(kind, **options)
        plain = pipe(**call(steps=3)).images
        topi = {"layers": (1, 3), **small}
        with ToPi(tau=1.0, dropped="merge", **topi)(pipe):
            assert torch.equal(pipe(**call(steps=3)).images, plain)
        images, kept = {}, {}
        for dropped in ("prune", "merge"):
            with ToPi(ratio=0.5, dropped=dropped, **topi)(pipe) as method:
                images[dropped] = pipe(**call(steps=3)).images
            kept[dropped] = [record.kept for record in method.trace]
        assert kept["prune"] == kept["merge"]
        assert any(kept["merge"])
        assert not torch.equal(images["prune"], images["merge"])

    def test_unknown_choice(self):
        with pytest.raises(ToPiError, match="prune, merge"):
            RandomTokens(dropped="average")
