"""Problems that no training sees, and how a model does on them."""

from ..data import GENERATED, HARDER_LEVELS, generate_stories, generate_tiny_problems, problem_set
from ..engine import parallel
from ..engine.config import TrainConfig
from ..engine.learner import Learner
from ..engine.packing import packed
from ..engine.rollouts import cache_bytes_per_token
from ..engine.sharding import gathered
from ..evaluate import Evaluation, evaluate_model, level_name, longest_prompt

NUM_PROBLEMS, NUM_HARDER = 500, 150  # of those that are generated


class HeldOut:
    """Problems that no training sees; every process answers its part of them."""

    def __init__(self, config: TrainConfig):
        self.config = config
        data = config.eval_data
        if data == "auto" and config.data not in (*GENERATED, "math-train"):
            raise ValueError(f"training on {config.data} needs held-out problems: give a file of them with --eval-data")
        if data == "auto":
            data = config.data if config.data in GENERATED else "math500"
        if data == "tiny":
            self.problems = generate_tiny_problems(NUM_PROBLEMS, "test", seed=0)
            self.harder = generate_tiny_problems(NUM_HARDER, "test", HARDER_LEVELS, seed=0)
        elif data == "stories-1":  # a real model answers slowly: not more than are asked for
            self.problems = generate_stories(config.eval_problems, "test", 1)
            self.harder = generate_stories(config.eval_problems, "test", 2)
        else:
            self.problems, self.harder = problem_set(data, "test")[: config.eval_problems], []

    def evaluate(self, learner: Learner, problems: list[dict], room: int = 1, progress: bool = False) -> Evaluation:
        """Greedy answers of at most `room * max_new_tokens`, or as many as fit."""
        own = problems[parallel.own_part(len(problems))]
        limit = room * self.config.max_new_tokens
        if room > 1:
            limit = min(limit, learner.model.cfg["context_length"] - longest_prompt(learner.tokenizer, problems))
        tokens = 256 + limit  # of a row, with a prompt of the usual length
        records = []
        with gathered(learner.model):
            rows = learner.plan.cache_bytes // (cache_bytes_per_token(learner.model) * tokens)
            if own:
                records = evaluate_model(
                    packed(learner.model), learner.tokenizer, own, learner.device, limit,
                    batch_size=max(1, min(128, rows)), progress=progress and parallel.rank() == 0,
                ).records  # fmt: skip
        return Evaluation([record for part in parallel.gather(records) for record in part])

    def summary(self, learner: Learner) -> dict:
        """Accuracy and mean response tokens, overall and by level, and three answers."""
        result = self.evaluate(learner, self.problems, progress=True)
        # The longest chains need more room than training gives.
        harder = self.evaluate(learner, self.harder, room=2) if self.harder else None
        return {
            "all": [result.accuracy, result.mean_tokens],
            "levels": {level: [part.accuracy, part.mean_tokens] for level, part in result.by("level").items()},
            "harder": harder and {k: [part.accuracy, part.mean_tokens] for k, part in harder.by("level").items()},
            "harder_accuracy": harder and harder.accuracy,
            "responses": [result.records[i]["response"] for i in self.example_indices()],
        }

    def example_indices(self) -> list[int]:
        """Three different problems to show, if there are as many: of levels 1, 3 and 5 where the set has them."""
        levels = [level_name(problem.get("level")) for problem in self.problems]
        wanted = [levels.index(level) for level in ("Level 1", "Level 3", "Level 5") if level in levels]
        return list(dict.fromkeys([*wanted, *range(len(levels))]))[:3]
