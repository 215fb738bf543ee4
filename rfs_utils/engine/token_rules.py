"""Which tokens of a step learn, and how: the rules of rfs_utils.off_policy by name, each with one number."""

import torch

from ..ch06 import Rollouts
from ..files.kinds import Kind
from ..off_policy import TOKEN_RULES, response_entropies
from ..qwen3 import Qwen3Model

EXPECTED = f"all, or one of {', '.join(f'{name}=NUMBER' for name in TOKEN_RULES)}, with a number from 0 to 1"


def parse_token_rule(text: object) -> tuple[str, float] | None:
    """Name and number of a rule, as in "top_entropy=0.2"; None for "all". ValueError for anything else."""
    if text == "all":
        return None
    name, _, number = text.partition("=") if isinstance(text, str) else ("", "", "")
    try:
        if name in TOKEN_RULES and 0 <= float(number) <= 1:
            return name, float(number)
    except ValueError:
        pass
    raise ValueError(f"expected {EXPECTED}")


def is_token_rule(value: object) -> bool:
    """Whether a value is a rule with its number."""
    try:
        parse_token_rule(value)
    except ValueError:
        return False
    return True


TOKEN_RULE = Kind(EXPECTED, is_token_rule)


def apply_token_rule(
    text: str, advantages: torch.Tensor, model: Qwen3Model, rollouts: Rollouts, temperature: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Advantages, (N,), as the rule has them, (N, T), and how strongly each token is held, (N, T), or None.

    Of several processes, each chooses among its own tokens.
    """
    rule = parse_token_rule(text)
    if rule is None:
        return advantages, None
    assert rollouts.logps is not None  # they have been sampled
    name, number = rule
    advantages = advantages[:, None].expand_as(rollouts.logps)
    return TOKEN_RULES[name](
        number, advantages, rollouts.logps, rollouts.mask, lambda: response_entropies(model, rollouts, temperature)
    )
