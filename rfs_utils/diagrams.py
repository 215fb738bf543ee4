"""The diagrams of the book, drawn from boxes and arrows. Each function returns a Figure.

Positions and sizes are inches from the lower left corner of the figure, font sizes are points.
"""

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import (
    Arc,
    Circle,
    Ellipse,
    FancyArrowPatch,
    FancyBboxPatch,
    Polygon,
    Rectangle,
)

from rfs_utils.plots import BAD, CARD, GOOD, INK, NEUTRAL, POLICY, REFERENCE, REWARD, STYLE, tint

WIDTH = 9.0  # inches, of every diagram
LINE = 1.35 / 72  # from one baseline to the next, in inches for every point of font size
MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


def canvas(height: float) -> tuple[Figure, Axes]:
    """An empty white figure, `WIDTH` wide, whose one axes measures in inches."""
    with rc_context(STYLE):
        fig = Figure(figsize=(WIDTH, height), layout="none")
        ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(0, height))
    ax.axis("off")
    return fig, ax


def write(
    ax: Axes, x: float, y: float, text: str, size: float = 12.5,
    ha: str = "center", va: str = "center", mono: bool = False, **kwargs,
) -> None:  # fmt: skip
    """Write `text` at (x, y); each line gets a baseline of its own, so that lines stand evenly.

    `mono=True` is for code and shapes. Other arguments, such as `weight`, go to `Axes.text`.
    """
    lines, step = text.split("\n"), size * LINE
    height = step * len(lines)
    top = y + {"center": height / 2, "top": 0, "bottom": height}[va]
    style = {"color": INK, "family": "DejaVu Sans Mono" if mono else "DejaVu Sans"} | kwargs
    for i, line in enumerate(lines):
        baseline = top - step * (i + 0.5) - 0.35 * size / 72  # half a capital below the middle
        ax.text(x, baseline, line, size=size, ha=ha, va="baseline", **style)


def box(
    ax: Axes, x: float, y: float, width: float, height: float, title: str = "", body: str = "",
    color: str = NEUTRAL, shape: str = "", size: float = 14, **kwargs,
) -> None:  # fmt: skip
    """A rounded box, (x, y) its lower left: a bold title, a plain body, a tensor's shape in mono.

    Other arguments, such as `ls="--"`, go to the patch.
    """
    style = {"fc": tint(color), "ec": color, "lw": 1.8, "zorder": 2} | kwargs
    ax.add_patch(FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=0.1", **style))
    parts = [(title, size, {"weight": "bold"}), (body, 12.5, {}), (shape, 12, {"mono": True})]
    parts = [(text, points, look) for text, points, look in parts if text]
    heights = [(text.count("\n") + 1) * points * LINE + 0.04 for text, points, _ in parts]
    top = y + height / 2 + sum(heights) / 2 - 0.02  # 0.04 between the parts
    for (text, points, look), used in zip(parts, heights, strict=True):
        write(ax, x + width / 2, top, text, points, va="top", **look)
        top -= used


def arrow(ax: Axes, *points: tuple[float, float], color: str = INK, lw: float = 2.0) -> None:
    """An arrow from the first point to the last, in straight lines through those between."""
    line = {"color": color, "lw": lw}
    if len(points) > 2:
        ax.plot(*zip(*points[:-1], strict=True), "-", solid_joinstyle="miter", **line)
    head = {"arrowstyle": "-|>", "mutation_scale": 16, "shrinkA": 0, "shrinkB": 0, "zorder": 1.5}
    ax.add_patch(FancyArrowPatch(*points[-2:], **head, **line))


def bracket(ax: Axes, x0: float, x1: float, y: float, text: str, up: bool = True) -> None:
    """A bracket over (or, with `up=False`, under) the span from x0 to x1, and what it says."""
    tick = -0.1 if up else 0.1
    ax.plot([x0, x0, x1, x1], [y + tick, y, y, y + tick], "-", color=INK, lw=1.5)
    write(ax, (x0 + x1) / 2, y - tick / 2, text, 13, va="bottom" if up else "top")


def training_stages() -> Figure:
    """Where reinforcement learning sits among the stages of training (ch06, 6.1)."""
    fig, ax = canvas(4.15)
    stages = [
        ("Pre-training", "predict the next\ntoken of web text", NEUTRAL, "base model"),
        ("Instruction\ntuning", "imitate\nwritten answers", NEUTRAL, "instruct model"),
        ("Preference\ntuning: RLHF", "please people\nwho compare", REFERENCE, "chat model"),
        ("Reasoning\nRL: RLVR", "solve problems a\nprogram can check", POLICY, "reasoning model"),
    ]
    width, gap, bottom, height = 1.95, 0.3, 1.35, 1.95
    lefts = [0.15 + i * (width + gap) for i in range(4)]
    for i, (x, (title, body, color, result)) in enumerate(zip(lefts, stages, strict=True)):
        middle, optional = x + width / 2, {"ls": "--"} if i in (1, 2) else {}
        box(ax, x, bottom, width, height, color=color, **optional)
        write(ax, middle, bottom + 1.48, title, 14, weight="bold")
        write(ax, middle, bottom + 0.82, body)
        write(ax, middle, bottom + 0.25, f"\N{RIGHTWARDS ARROW} {result}", style="italic")
        if i:
            arrow(ax, (x - gap, bottom + height / 2), (x, bottom + height / 2))
    bracket(ax, lefts[0], lefts[1] + width, 3.6, "learn from given text")
    bracket(ax, lefts[2], lefts[3] + width, 3.6, "learn from own answers: RL")
    start, end = lefts[0] + width / 2, lefts[3] + width / 2
    arrow(ax, (start, bottom), (start, 0.95), (end, 0.95), (end, bottom), color=POLICY, lw=3)
    note = (
        "Chapter 6 skips the dashed stages and goes from the base model\n"
        "straight to RLVR, as DeepSeek-R1-Zero did."
    )
    write(ax, (start + end) / 2, 0.47, note, 13)
    return fig


def rlhf_and_rlvr() -> Figure:
    """RLHF with a learned reward model and PPO beside RLVR with a verifier and GRPO (ch06, 6.1)."""
    fig, ax = canvas(6.6)
    left, right, width = 1.0, 5.1, 3.75
    write(ax, left + width / 2, 6.32, "RLHF: human feedback", 15, weight="bold")
    write(ax, right + width / 2, 6.32, "RLVR: verifiable reward", 15, weight="bold")
    rows = [  # label, top, height, left box, right box
        ("data", 6.05, 1.0,
         ("Preference labels", "people say which of\ntwo answers is better", NEUTRAL),
         ("Problems with answers", "7 coins, finds 5, loses 3:\nground truth 9", NEUTRAL)),
        ("scorer", 4.75, 1.0,
         ("Reward model", "a network trained\nto predict the labels", REWARD),
         ("Verifier", "a program: extract \\boxed{9},\ncompare with 9", REWARD)),
        ("reward", 3.45, 0.7,
         ("", "a score per answer, say 0.73", REWARD),
         ("", "1 for a right answer, else 0", REWARD)),
        ("update", 2.45, 1.0,
         ("PPO", "advantage: reward against\nthe value model's forecast", POLICY),
         ("GRPO", "advantage: reward against\nthe mean of the group", POLICY)),
    ]  # fmt: skip
    for i, (label, top, height, *pair) in enumerate(rows):
        write(ax, 0.48, top - height / 2, label, style="italic")
        for x, (title, body, color) in zip((left, right), pair, strict=True):
            box(ax, x, top - height, width, height, title, body, color)
            if i:
                arrow(ax, (x + width / 2, top + 0.3), (x + width / 2, top))
    write(ax, 0.48, 0.66, "models in\nmemory", 12, style="italic")
    chips = [("policy", POLICY), ("reference", REFERENCE), ("reward", REWARD), ("value", GOOD)]
    for i, (name, color) in enumerate(chips):
        x, y = left + (i % 2) * 1.92, 0.72 - (i // 2) * 0.56
        box(ax, x, y, 1.83, 0.46, name, "", color, size=13)
    box(ax, right, 0.72, 1.83, 0.46, "policy", "", POLICY, size=13)
    box(ax, right + 1.92, 0.72, 1.83, 0.46, "reference", "", REFERENCE, size=13, ls="--")
    write(ax, right + width / 2, 0.37, "reference only with a KL penalty")
    return fig


def grpo_stages() -> Figure:
    """The six stages of one GRPO step and the way back to the first (ch06, 6.2)."""
    fig, ax = canvas(3.9)
    stages = [
        ("1  Sample", "a group of G rollouts\nfor one prompt", POLICY),
        ("2  Rewards", "right answer 1,\nwrong answer 0", REWARD),
        ("3  Advantages", "rewards against the\nmean of the group", GOOD),
        ("4  Log-probs", "of each sequence\nunder the policy", POLICY),
        ("5  Loss", f"policy gradient:\n{MINUS}mean(A {TIMES} log-prob)", POLICY),
        ("6  Update", "the weights, by one\noptimizer step", POLICY),
    ]
    width, height, gap, low, high = 2.6, 1.25, 0.4, 0.25, 2.35
    columns = [0.2 + i * (width + gap) for i in (0, 1, 2, 2, 1, 0)]  # there and back again
    for i, (x, (title, body, color)) in enumerate(zip(columns, stages, strict=True)):
        box(ax, x, high if i < 3 else low, width, height, title, body, color, size=15)
    top, bottom = high + height / 2, low + height / 2
    for x in columns[:2]:
        arrow(ax, (x + width, top), (x + width + gap, top))
        arrow(ax, (x + width + gap, bottom), (x + width, bottom))
    first, last = columns[0] + width / 2, columns[2] + width / 2
    arrow(ax, (last, high), (last, low + height))
    arrow(ax, (first, low + height), (first, high), lw=3, color=POLICY)
    write(ax, first + 0.2, (high + low + height) / 2, "again, with the next prompt", 13, ha="left")
    return fig


def group_data_flow() -> Figure:
    """One group from prompt to loss, with the shape of every tensor (ch06, 6.5 to 6.9)."""
    fig, ax = canvas(8.5)

    def band(y, height, text):
        ax.add_patch(Rectangle((0.1, y), 8.8, height, fc="#F6F6F6", ec="none", zorder=0))
        write(ax, WIDTH / 2, y + height - 0.22, text, 13, style="italic")

    band(6.35, 2.05, "sample: without gradient")
    band(3.0, 2.85, "grade: without gradient")
    band(0.5, 2.2, "score: with gradient")

    boxes = [
        ("Prompt", "7 coins, finds 5,\nloses 3. Now?", NEUTRAL, f"1 {TIMES} P"),
        ("Prefill", "one pass fills\nthe KV cache", POLICY, f"1 {TIMES} P"),
        ("Repeat", "one cache for\neach rollout", POLICY, f"G {TIMES} P"),
        ("Decode", "all rollouts\nas one batch", POLICY, f"G {TIMES} T"),
    ]
    for i, (title, body, color, shape) in enumerate(boxes):
        x = 0.25 + i * 2.2
        box(ax, x, 6.5, 1.9, 1.4, title, body, color, shape)
        if i:
            arrow(ax, (x - 0.3, 7.2), (x, 7.2))
    arrow(ax, (7.8, 6.5), (7.8, 6.0), (2.05, 6.0), (2.05, 5.35))
    arrow(ax, (2.05, 6.0), (0.32, 6.0), (0.32, 2.05))  # the same ids are scored below
    write(ax, 4.9, 6.17, "token ids of the rollouts")

    rollouts = [
        ("7+5=12; 12-3=9; \\boxed{9}", "1 \N{CHECK MARK}", "+0.87"),
        ("7-3=4; 4+5=9; \\boxed{9}", "1 \N{CHECK MARK}", "+0.87"),
        ("\\boxed{15}", "0 \N{BALLOT X}", f"{MINUS}0.87"),
        ("\\boxed{4}", "0 \N{BALLOT X}", f"{MINUS}0.87"),
    ]
    columns = [("Text", "G strings", 0.55, 3.0), ("Reward R", "(G,)", 4.5, 1.2),
               ("Advantage A", "(G,)", 7.29, 1.5)]  # fmt: skip
    for title, shape, x, width in columns:
        write(ax, x + width / 2, 5.15, title, 13.5, weight="bold")
        write(ax, x + width / 2, 4.9, shape, 12, mono=True)
    for i, row in enumerate(rollouts):
        y, sign = 4.38 - 0.4 * i, GOOD if i < 2 else BAD
        colors = (POLICY, REWARD, sign)
        for text, (_, _, x, width), color in zip(row, columns, colors, strict=True):
            ax.add_patch(Rectangle((x, y), width, 0.36, fc=tint(color), ec=color, lw=1.2))
            write(ax, x + width / 2, y + 0.18, text, 12, mono=True)
    arrow(ax, (3.55, 3.96), (4.5, 3.96))
    write(ax, 4.02, 4.15, "verifier")
    arrow(ax, (5.7, 3.96), (7.29, 3.96))
    write(ax, 6.48, 4.15, f"(R {MINUS} mean) / std", 12)
    arrow(ax, (8.04, 3.18), (8.04, 2.05))

    boxes = [
        ("Full ids", "prompt and\nresponses", NEUTRAL, f"G {TIMES} (P+T)"),
        ("Forward", "one pass,\nlogits", POLICY, f"G {TIMES} T {TIMES} V"),
        ("Log-probs", "of response\ntokens", POLICY, f"G {TIMES} T"),
        ("Mask, sum", f"{MINUS}6.0  {MINUS}8.0\n{MINUS}3.5  {MINUS}4.5", POLICY, "(G,)"),
        ("Loss", f"{MINUS}mean(A {TIMES}\nlog-prob)", POLICY, "scalar: 1.30"),
    ]
    for i, (title, body, color, shape) in enumerate(boxes):
        x = 0.2 + i * 1.77
        box(ax, x, 0.65, 1.52, 1.4, title, body, color, shape, size=13)
        if i:
            arrow(ax, (x - 0.25, 1.35), (x, 1.35))
    legend = "G rollouts (here 4), P prompt tokens, T response tokens, V vocabulary size"
    write(ax, WIDTH / 2, 0.25, legend, 12)
    return fig


def response_mask() -> Figure:
    """Which logits score which token of one rollout, and which tokens count (ch06, 6.8)."""
    fig, ax = canvas(4.7)
    tokens = "<pad> <pad> What is 7+5 ? It is 12 <eos> <pad> <pad>".split()
    logprobs = {6: 0.9, 7: 0.1, 8: 0.3, 9: 0.2}  # negated
    left, cell, height = 1.2, 0.64, 0.46
    logits_y, tokens_y, mask_y, logp_y = 4.05, 2.95, 2.35, 1.75
    is_pad = [token == "<pad>" for token in tokens]
    rows = [("logits at t", logits_y), ("token", tokens_y), ("mask", mask_y), ("log-prob", logp_y)]
    for text, y in rows:
        write(ax, left - 0.12, y + height / 2, text, 12, ha="right", weight="bold")

    def put(i, y, text, color, filled=True, **style):
        fill = tint(color) if filled else "none"
        patch = Rectangle((left + i * cell + 0.03, y), cell - 0.06, height, fc=fill, ec=color)
        ax.add_patch(patch)
        write(ax, left + (i + 0.5) * cell, y + height / 2, text, 12, mono=True, **style)

    for i, token in enumerate(tokens):
        counts, scores_response = i in logprobs, i + 1 in logprobs
        color = POLICY if counts else NEUTRAL
        put(i, tokens_y, token, color, not is_pad[i], weight="bold" if counts else "normal")
        put(i, logits_y, str(i), POLICY if scores_response else NEUTRAL, scores_response)
        if i + 1 < len(tokens):
            x, look = left + (i + 0.5) * cell, {"lw": 1.0, "color": NEUTRAL}
            look = {"lw": 2.4, "color": POLICY} if scores_response else look
            arrow(ax, (x, logits_y), (x + cell, tokens_y + height), **look)
        if i:
            put(i, mask_y, str(int(counts)), color, counts, weight="bold" if counts else "normal")
        if counts:
            put(i, logp_y, f"{MINUS}{logprobs[i]}", color)
    for first, last, text in [(0, 2, "left padding"), (2, 6, "prompt"),
                              (6, 10, "response, with <eos>"), (10, 12, "padding")]:  # fmt: skip
        x0, x1 = left + first * cell + 0.05, left + last * cell - 0.05
        bracket(ax, x0, x1, 1.6, text, up=False)
    total = f" {MINUS} ".join(str(value) for value in logprobs.values())
    note = (
        "The logits at t score the token at t + 1. Padding and prompt make prompt_len = 6,\n"
        "so scoring starts at t = 5. Log-prob of the response, <eos> included:\n"
        f"{MINUS}{total} = {MINUS}{sum(logprobs.values()):.1f}"
    )
    write(ax, WIDTH / 2, 0.48, note)
    return fig


def _person(ax, x, y):
    """A smiling cook or taster, (x, y) the middle of the head."""
    body = [(x - 0.45, y - 0.9), (x - 0.3, y - 0.2), (x + 0.3, y - 0.2), (x + 0.45, y - 0.9)]
    ax.add_patch(Polygon(body, fc=CARD, ec=INK, lw=1.5))
    ax.add_patch(Circle((x, y), 0.27, fc=tint(REWARD, 0.3), ec=INK, lw=1.5, zorder=3))
    for dx in (-0.09, 0.09):
        ax.add_patch(Circle((x + dx, y + 0.05), 0.025, fc=INK, zorder=4))
    ax.add_patch(Arc((x, y - 0.03), 0.24, 0.2, theta1=200, theta2=340, lw=1.5, ec=INK, zorder=4))


def chef_analogy() -> Figure:
    """GRPO as a kitchen: cook several versions of a dish, score them, shift the recipe (6.2)."""
    fig, ax = canvas(5.6)

    def term(x, y, text, color):
        box(ax, x - 0.7, y, 1.4, 0.42, text, "", color, size=13.5)

    columns = [
        (0.95, "one order\nto one cook", "policy", POLICY),
        (3.0, "several versions\nof the dish", "rollouts", POLICY),
        (5.1, "a taster\nscores each", "reward", REWARD),
        (6.65, "against the\naverage, 5", "advantage", GOOD),
        (8.2, "the recipe\nshifts", "update", POLICY),
    ]
    for x, heading, name, color in columns:
        write(ax, x, 5.2, heading, 13)
        term(x, 0.95, name, color)
    slip = [(0.3, 4.15), (1.6, 4.15), (1.6, 4.8), (0.3, 4.8)]
    ax.add_patch(Polygon(slip, fc=CARD, ec=INK, lw=1.5))
    write(ax, 0.95, 4.475, "Omelette,\nplease!", style="italic")
    term(0.95, 3.65, "prompt", NEUTRAL)
    _person(ax, 0.95, 2.45)
    for dx, dy in ((-0.19, 0.55), (0.19, 0.55), (0, 0.64)):  # the hat
        ax.add_patch(Circle((0.95 + dx, 2.45 + dy), 0.19, fc=CARD, ec=INK, lw=1.5, zorder=3))
    ax.add_patch(Rectangle((0.72, 2.62), 0.46, 0.34, fc=CARD, ec=INK, lw=1.5, zorder=3.5))
    _person(ax, 4.7, 3.3)

    versions = [("herbs", 9), ("butter", 7), ("salt", 3), ("burnt", 1)]
    middle, unit = 6.65, 0.13
    ax.plot([middle, middle], [1.55, 4.8], "-", color=INK, lw=1.5, zorder=3)
    for i, (name, score) in enumerate(versions):
        y, advantage = 4.4 - 0.82 * i, score - 5
        ax.add_patch(Ellipse((2.7, y), 1.1, 0.62, fc=CARD, ec=INK, lw=1.5))
        ax.add_patch(Ellipse((2.7, y), 0.8, 0.4, fc="none", ec=NEUTRAL, lw=0.8))
        egg = BAD if name == "burnt" else tint(REWARD, 0.55)
        ax.add_patch(Ellipse((2.7, y), 0.6, 0.26, fc=egg, ec=INK, lw=1.0))
        dots = [(-0.17, 0.0), (-0.08, 0.06), (0.0, -0.05), (0.08, 0.05), (0.17, -0.01)]
        topping = {"herbs": (GOOD, dots), "salt": (CARD, dots), "butter": (tint(REWARD), [(0, 0)])}
        color, places = topping.get(name, (INK, []))
        for dx, dy in places:
            side = 0.13 if name == "butter" else 0.05
            corner = (2.7 + dx - side / 2, y + dy - side / 2)
            ax.add_patch(Rectangle(corner, side, side, fc=color, ec=INK, lw=0.6, zorder=3))
        write(ax, 3.35, y, name, 13, ha="left")
        box(ax, 5.4, y - 0.22, 0.44, 0.44, str(score), "", REWARD)
        style = {"fc": tint(GOOD, 0.5), "ec": GOOD} if advantage > 0 else {"fc": BAD, "ec": BAD}
        ax.add_patch(Rectangle((middle, y - 0.17), unit * advantage, 0.34, lw=1.5, **style))
        side = -0.3 if advantage > 0 else 0.3
        write(ax, middle + side, y, f"{advantage:+d}".replace("-", MINUS), 13, weight="bold")
    box(ax, 7.52, 2.1, 1.36, 2.1, color=NEUTRAL, fc=CARD)
    write(ax, 8.2, 3.93, "Recipe", 13.5, weight="bold")
    for i, line in enumerate(("more herbs", "more butter", "less salt", "less heat")):
        write(ax, 8.2, 3.52 - 0.36 * i, line)

    for start, end in ((1.5, 2.1), (3.95, 4.25), (5.1, 5.4), (5.84, 6.14), (7.2, 7.52)):
        arrow(ax, (start, 3.17), (end, 3.17))
    arrow(ax, (8.2, 0.95), (8.2, 0.6), (0.95, 0.6), (0.95, 0.95), color=POLICY, lw=3)
    write(ax, 4.6, 0.32, "the next order is cooked by the new recipe", 13)
    return fig
