"""Make 24 of four numbers by a search through thoughts, each of which is a state of one live sandbox.

A thought is a step, as in "13 - 9". It is tried in the sandbox, whose Python variables and files it changes; the state
after it is kept as a checkpoint. To try the next one, the sandbox is rolled back. The best few of each level are
gone on from.

    python examples/tree-of-thought/agent.py 4 9 10 13
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import httpx
from e2b_code_interpreter import Sandbox

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from branching import Branching, drawn, value

TARGET = 24
STEP = re.compile(r"(-?\d+(?:/\d+)?)\s*([-+*/])\s*(-?\d+(?:/\d+)?)")
#: What the session has in memory. `apply` also writes down what it did: files go back with the variables.
SESSION = """
from fractions import Fraction
numbers = [Fraction(text) for text in {numbers!r}]
def apply(left, sign, right):
    left, right = Fraction(left), Fraction(right)
    numbers.remove(left); numbers.remove(right)
    made = {{"+": left + right, "-": left - right, "*": left * right, "/": left / right if right else None}}[sign]
    numbers.append(made)
    with open("steps.txt", "a") as file:
        file.write(f"{{left}} {{sign}} {{right}} = {{made}}\\n")
    return " ".join(map(str, numbers))
open("steps.txt", "w").close()
" ".join(map(str, numbers))
"""

Step = tuple[str, str, str]
Proposer = Callable[[list[Fraction], int], list[Step]]


@dataclass(frozen=True, kw_only=True)
class Thought:
    """A state of the session that is kept."""

    checkpoint: str
    numbers: list[Fraction]
    score: float


def results(left: Fraction, right: Fraction) -> list[tuple[str, Fraction]]:
    """What can be made of two numbers, in this order."""
    made = [("+", left + right), ("-", left - right), ("*", left * right)]
    return [*made, ("/", left / right)] if right else made


def steps(numbers: list[Fraction]) -> list[tuple[Step, list[Fraction]]]:
    """All that can be done next, with what is left then."""
    found = []
    for first, left in enumerate(numbers):
        for second, right in enumerate(numbers):
            if first != second:
                rest = [one for index, one in enumerate(numbers) if index not in (first, second)]
                found += [((str(left), sign, str(right)), [*rest, made]) for sign, made in results(left, right)]
    return found


def score(numbers: list[Fraction]) -> float:
    """The evaluator, the same for whoever proposes: how near 24 one more step comes. 0 is best."""
    within_reach = [left[-1] for _, left in steps(numbers)] or numbers
    return -float(min(abs(made - TARGET) for made in within_reach)) - (0.1 * len(numbers) if len(numbers) > 2 else 0)


def scripted(numbers: list[Fraction], count: int) -> list[Step]:
    """A proposer that is no model: every step, those first whose result leaves the evaluator the happiest."""
    ranked = sorted(steps(numbers), key=lambda step: (-score(step[1]), step[1][-1].denominator, step[0]))
    seen: set[tuple[Fraction, ...]] = set()
    chosen: list[Step] = []
    for step, left in ranked:
        if (state := tuple(sorted(left))) not in seen and len(chosen) < count:
            seen.add(state)
            chosen.append(step)
    return chosen


def by_model(base_url: str) -> Proposer:
    """One that asks a model, by the API that OpenAI's clients speak."""
    headers = {"authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}"}
    http = httpx.Client(base_url=base_url, headers=headers, timeout=120)

    def propose(numbers: list[Fraction], count: int) -> list[Step]:
        asked = (
            f"We want to make {TARGET} of these numbers: {' '.join(map(str, numbers))}. A step takes two of them, "
            f"puts their sum, difference, product or quotient in their place. Give the {count} most promising "
            "next steps, each on a line of its own, as in `13 - 9`, and nothing else."
        )
        body = {
            "model": os.environ.get("OPENAI_MODEL", "default"),
            "messages": [{"role": "user", "content": asked}],
        }
        reply = http.post("/chat/completions", json=body).raise_for_status().json()
        said = str(reply["choices"][0]["message"]["content"] or "")
        possible = {step for step, _ in steps(numbers)}
        chosen = [step for step in dict.fromkeys(STEP.findall(said)) if step in possible][:count]
        if not chosen:
            print("  the model proposed nothing that can be done; the scripted proposer takes this turn")
        return chosen or scripted(numbers, count)

    return propose


def search(numbers: list[str], propose: Proposer, branches: int, beam: int) -> bool:
    """Whether 24 was made."""
    sandbox = Sandbox.create(timeout=600)
    live = Branching(sandbox)
    try:
        start = parsed(value(sandbox, SESSION.format(numbers=numbers)))
        level = [Thought(checkpoint=live.checkpoint(" ".join(numbers)), numbers=start, score=score(start))]
        tried = 0
        while len(level[0].numbers) > 1:
            found: list[Thought] = []
            for thought in level:
                for left, sign, right in propose(thought.numbers, branches):
                    live.rollback(thought.checkpoint)
                    now = parsed(value(sandbox, f"apply({left!r}, {sign!r}, {right!r})"))
                    label = f"{left} {sign} {right} -> {' '.join(map(str, now))}  ({score(now):.1f})"
                    found.append(Thought(checkpoint=live.checkpoint(label), numbers=now, score=score(now)))
                    tried += 1
            level = sorted(found, key=lambda thought: -thought.score)[:beam]
        best = level[0]
        live.rollback(best.checkpoint)
        print("\n".join(drawn(live.tree())))
        print(f"\n{tried} thoughts, one session. The best one's own notes, from its files:")
        print(sandbox.files.read("steps.txt"), end="")
        solved = best.numbers == [TARGET]
        print(f"{TARGET} was made." if solved else f"The best is {best.numbers[0]}, not {TARGET}.")
        return solved
    finally:
        live.close()
        sandbox.kill()


def parsed(text: str) -> list[Fraction]:
    """What a cell shows of the numbers: the representation of a string."""
    return [Fraction(one) for one in text.strip("'").split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", default=["4", "9", "10", "13"], help="whole numbers; four are usual")
    parser.add_argument("--branches", type=int, default=4, help="thoughts that are tried from each state")
    parser.add_argument("--beam", type=int, default=3, help="states of each level that are gone on from")
    options = parser.parse_args()
    base_url = os.environ.get("OPENAI_BASE_URL", "")
    if base_url:
        print(f"The model at {base_url} proposes.")
    else:
        print(
            "No model is configured (OPENAI_BASE_URL): a scripted proposer takes its place, which is no intelligence."
        )
    propose = by_model(base_url) if base_url else scripted
    sys.exit(0 if search(options.numbers, propose, options.branches, options.beam) else 1)


if __name__ == "__main__":
    main()
