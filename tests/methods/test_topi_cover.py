"""Coverage against facility location by hand, and its masks on models."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from topi import ToPiCover
from topi.errors import ToPiError
from topi.methods.paper.topi import smallest_set
from topi.methods.parts.anchor_masks import static_set
from topi.methods.parts.coverage import covering_gains, neighbourhood, tiles
from topi.models import Layout
from topi.models.tiny import random_image

BESIDE = float(torch.tensor(-1 / 2.88).exp())
small = {"front_layers": 1, "layers": (1, 3), "first_anchor": 1, "update_every": 4}


def flat(grid, radius=1):
    """A reference without any detail."""
    return neighbourhood(grid, torch.ones(grid[0] * grid[1], 2), radius)


def links(near):
    """(i, j) -> s_ij."""
    return {
        (i, j): s
        for phase in zip(near.tokens, near.index, near.similarity, strict=True)
        for i, around, alike in zip(*(each.flatten(0, 1).tolist() for each in phase), strict=True)
        for j, s in zip(around, alike, strict=True)
        if s > 0
    }


def covered(near, weights, kept):
    """f(S), token by token."""
    best = [0.0] * len(weights)
    for (i, j), s in links(near).items():
        if j in kept:
            best[i] = max(best[i], s)
    return sum(w * s for w, s in zip(weights.tolist(), best, strict=True))


class TestNeighbourhood:
    def test_by_hand(self):
        """A row of three: distances 1, latents 0, 3 and 4 apart by 3 and 1, 2 on average."""
        near = neighbourhood((1, 3), torch.tensor([[0.0], [3], [4]]))
        left, right = (BESIDE * float(torch.tensor(-gap / 2).exp()) for gap in (3, 1))
        expected = {(0, 0): 1, (1, 1): 1, (2, 2): 1, (0, 1): left, (1, 0): left}
        assert links(near) == pytest.approx(expected | {(1, 2): right, (2, 1): right})

    @pytest.mark.parametrize("grid", [(5, 7), (1, 3), (8, 8), (2, 1)])
    @pytest.mark.parametrize("side", [2, 4])
    def test_tiles_of_a_phase_cannot_cover_the_same_token(self, grid, side):
        n = grid[0] * grid[1]
        phases = tiles(grid, side, torch.device("cpu"))
        assert sorted(t for p in phases for t in p.flatten().tolist() if t < n) == list(range(n))
        for phase in phases:
            for one in range(len(phase)):
                for other in range(one):
                    for a in phase[one][phase[one] < n].tolist():
                        for b in phase[other][phase[other] < n].tolist():
                            rows = abs(a // grid[1] - b // grid[1])
                            columns = abs(a % grid[1] - b % grid[1])
                            assert max(rows, columns) > side


class TestGains:
    def test_two_tokens_by_hand(self):
        near, one = flat((1, 2)), torch.ones(2)
        assert covering_gains(near, torch.ones(2), one).tolist() == pytest.approx(
            [1 + BESIDE, 1 - BESIDE]
        )
        assert covering_gains(near, torch.tensor([1.0, 0]), one).tolist() == [1, 0]
        damped = covering_gains(near, torch.ones(2), torch.tensor([0.1, 1]))
        assert damped.tolist() == pytest.approx([1 - BESIDE, 1 + BESIDE])

    @pytest.mark.parametrize("radius", [1, 2])
    def test_they_are_exact_in_sum_and_a_bound_for_every_subset(self, radius):
        generator = torch.Generator().manual_seed(radius)
        grid = (7, 6)
        latents = torch.rand(42, 3, generator=generator)
        near = neighbourhood(grid, latents, radius)
        weights = torch.rand(42, generator=generator).double()
        gains = covering_gains(near, weights, torch.ones(42).double())
        assert float(gains.sum()) == pytest.approx(float(weights.sum()), rel=1e-5)
        assert (gains > 0).all()
        for count in (3, 10, 21, 35):
            kept = set(gains.argsort(descending=True)[:count].tolist())
            held = float(gains.sort(descending=True)[0][:count].sum())
            assert covered(near, weights, kept) >= held - 1e-4
        for tau in (0.5, 0.9):
            kept = smallest_set(gains, tau, mass=gains).nonzero().flatten()
            assert covered(near, weights, set(kept.tolist())) >= tau * float(weights.sum())
            assert len(kept) < len(smallest_set(weights, tau).nonzero().flatten())

    def test_no_holes_where_top_k_leaves_them(self):
        weights = torch.tensor([4.0, 4, 4, 4, 3, 3, 3, 3])
        assert static_set(weights, 0.5).nonzero().flatten().tolist() == [0, 1, 2, 3]
        near = flat((1, 8))
        kept = (
            static_set(covering_gains(near, weights, torch.ones(8)), 0.5)
            .nonzero()
            .flatten()
            .tolist()
        )
        assert covered(near, weights, set(kept)) > covered(near, weights, {0, 1, 2, 3})
        assert all({j - 1, j, j + 1} & set(kept) for j in range(8))

    def test_its_cost_in_operations_does_not_grow_with_the_grid(self):
        class Count(TorchDispatchMode):
            calls = elements = 0

            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                result = function(*args, **(kwargs or {}))
                self.calls += 1
                self.elements += result.numel() if isinstance(result, torch.Tensor) else 0
                return result

        counts = []
        for side in (16, 64):
            near = flat((side, side))
            with Count() as count:
                covering_gains(near, torch.ones(side**2), torch.ones(side**2))
            counts.append((count.calls, count.elements / side**2))
        assert counts[0][0] == counts[1][0] < 600
        assert counts[1][1] < 1000  # 4 million numbers per mask at 4096 tokens


class TestDamping:
    def test_a_kept_token_stands_back_and_recovers_by_half_at_each_mask(self):
        """Two tokens that cover each other; in the first sample the left one is kept, once."""
        method, layout = ToPiCover(damping=0.16), Layout(1, (1, 1), ((1, 2),))
        method._weights["shared"] = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
        method._near = [[flat((1, 2))]] * 2
        seen, used = [], {}

        def choose(worth, gains):
            seen.append((worth.flatten().tolist(), gains.flatten().tolist()))
            first = torch.tensor([[True, False], [False, False]])
            return first if len(seen) == 1 else torch.zeros(2, 2, dtype=torch.bool)

        kept = [method.in_turn("shared", layout, used, choose).tolist() for _ in range(3)]
        assert kept == [[0], [], []]
        more, less, other = 1 + BESIDE, 1 - BESIDE, [1, 0]
        assert seen[0] == (pytest.approx([more, less, *other]),) * 2
        for worth, gains, factor in ((*seen[1], 0.16**0.5), (*seen[2], 0.16**0.25)):
            assert gains == pytest.approx([less, more, *other])  # true gains, the right one first
            assert worth == pytest.approx([factor * less, more, *other])

    def test_without_damping_a_mask_does_not_change(self, flux):
        pipe, call = flux
        with ToPiCover(ratio=0.5, damping=1.0, **small)(pipe) as method:
            pipe(**call(steps=5))
        assert len({record.kept for record in method.trace[2:]}) == 1


class TestMasks:
    def masks(self, pipe, arguments, **options):
        with ToPiCover(**{"ratio": 0.5, **small, **options})(pipe) as method:
            images = pipe(**arguments).images
        return images, method

    def test_new_at_every_step_and_shared_by_the_branches(self, qwen):
        pipe, call = qwen
        _, method = self.masks(pipe, call(steps=6))
        kept = {(r.step, r.branch): r.kept for r in method.trace}
        assert [kept[step, "cond"] for step in (0, 1, 5)] == [None] * 3
        assert all(kept[step, "cond"] == kept[step, "uncond"] for step in range(6))
        assert {len(kept[step, "cond"]) for step in (2, 3, 4)} == {32}
        seen = set(kept[2, "cond"]) | set(kept[3, "cond"])
        assert len(seen) > 56  # the second mask complements the first: two draws would see 48
        chose = {(r.step, r.branch) for r in method.trace if r.selection_seconds > 0}
        assert chose == {(0, "cond"), (1, "uncond"), (5, "uncond")} | {
            (step, "cond") for step in (2, 3, 4)
        }

    def test_the_scores_are_what_leaving_a_token_out_changes(self, flux):
        pipe, call = flux
        kept = [
            self.masks(pipe, call(steps=3), **options)[1].trace[2].kept
            for options in ({}, {"score": "leave_one_out"}, {"score": "influence"})
        ]
        assert kept[0] == kept[1] != kept[2]

    def test_a_second_picture_begins_anew(self, flux):
        pipe, call = flux
        one, two = (call(steps=4, references=[random_image(seed=seed)]) for seed in (3, 5))
        alone, _ = self.masks(pipe, two)
        with ToPiCover(ratio=0.5, **small)(pipe):
            pipe(**one)
            assert torch.equal(
                pipe(**call(steps=4, references=[random_image(seed=5)])).images, alone
            )

    def test_at_anchors_only(self, flux):
        pipe, call = flux
        _, method = self.masks(pipe, call(steps=8), redraw="anchor")
        kept = [record.kept for record in method.trace]
        assert kept[2] == kept[3] == kept[4] != kept[6] == kept[7]

    def test_several_references_share_one_budget(self, tiny):
        pipe, call = tiny("qwen_plus", zero_cond_t=True)
        _, method = self.masks(pipe, call(steps=4))
        kept = method.trace[4].kept
        assert len(kept) == 62
        assert 0 < sum(j < 64 for j in kept) < 62
        _, floored = self.masks(pipe, call(steps=4), ratio=0.1, reference_floor=0.1)
        assert sum(j < 64 for j in floored.trace[4].kept) >= 6

    @pytest.mark.parametrize("kind", ["flux", "qwen_plus"])
    def test_all_covered_is_the_full_run(self, tiny, kind):
        pipe, call = tiny(kind)
        images, _ = self.masks(pipe, call(), ratio=None, tau=1.0)
        assert torch.equal(images, pipe(**call()).images)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"radius": 0}, "radius=0"),
            ({"damping": 0}, "damping=0"),
            ({"damping": 2}, "damping=2"),
            ({"redraw": "never"}, "anchor, step"),
            ({"order": "lowest"}, "order=highest"),
        ],
    )
    def test_bad_values(self, options, words):
        with pytest.raises(ToPiError, match=words):
            ToPiCover(**options)
