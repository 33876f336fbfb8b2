"""Seeds: the documented formula, and generators that leave torch's global one alone."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import torch

from dd_plugins.seeds import make_generator, seed_for, seeded_layers


def test_seed_for_follows_the_documented_formula():
    digest = hashlib.sha256(b'["eval", 3]').hexdigest()
    assert seed_for("eval", 3) == int(digest[:16], 16) % 2**63


def test_paths_do_not_run_into_each_other():
    paths = [("eval", 0), ("eval", 1), ("eval", "0"), ("eval0",), ("eval", 0, 0), (), ("",)]
    seeds = {seed_for(*path) for path in paths}
    assert len(seeds) == len(paths)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_repeat_and_leave_the_global_one_alone():
    before = torch.get_rng_state()
    first, again, other = (torch.rand(8, generator=make_generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_layers_that_two_threads_make_do_not_draw_from_each_other():
    def weights(seed):
        with seeded_layers(seed):
            return torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(20)))[-1].weight.detach()

    expected = [weights(seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(weights, range(40)))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
