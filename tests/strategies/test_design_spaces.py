"""The contract of strategies, held by the refinement of design spaces."""

from contract import StrategyContract, problem

from peftscout.strategies.design_spaces import design_spaces


class TestDesignSpaces(StrategyContract):
    factory = staticmethod(design_spaces)

    def test_the_seed_is_the_seed_of_every_request(self):
        """Here base model k has the seed ``problem.seed + k``: the seeds are replicates (see `Bench.request`)."""
        p = problem(seed=3, trials=150)
        seeds = {r.seed for r in self.run(p)}
        assert min(seeds) == 3
        assert max(seeds) == 3 + 8 - 1  # base models of a stage at so few trials
