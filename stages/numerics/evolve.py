"""An evolutionary search over one option per layer, under a least mean size.

Source: Q-DiT (2406.17343), sec. 3.3, which scores whole models by FVD or FID; here a layer's options have errors of
their own, and the fitness is their sum.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

Genes = tuple[int, ...]
"""One option per layer, by its index among the layer's options."""

POPULATION = 64
GENERATIONS = 200
PARENTS = 16
MUTATION = 0.05


def evolve(
    errors: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], start: Genes, *, least_mean: float, seed: int = 0
) -> Genes:
    """The best genes found: least summed error, with a mean size of at least `least_mean`.

    `errors[l][i]` and `sizes[l][i]` belong to option i of layer l. The result is never worse than `start`. Half of each
    generation comes from the crossover of two parents, half from the mutation of one; all draws come from `seed`.
    Raises ValueError if the mean size of `start` is too small.
    """
    draw = random.Random(seed)
    least_sum = least_mean * len(start) - 1e-9

    def fitness(genes: Genes) -> tuple[float, Genes]:
        return sum(errors[layer][i] for layer, i in enumerate(genes)), genes

    def is_feasible(genes: Genes) -> bool:
        return sum(sizes[layer][i] for layer, i in enumerate(genes)) >= least_sum

    if not is_feasible(start):
        raise ValueError(f"the start has a mean size below {least_mean:g}")

    def mutate(genes: Genes) -> Genes:
        target = draw.randrange(len(genes))
        return tuple(
            draw.randrange(len(sizes[layer])) if layer == target or draw.random() < MUTATION else i
            for layer, i in enumerate(genes)
        )

    def crossover(a: Genes, b: Genes) -> Genes:
        return tuple(x if draw.random() < 0.5 else y for x, y in zip(a, b, strict=True))

    parents = [start]
    for _ in range(GENERATIONS):
        children = {*parents}
        for i in range(POPULATION):
            parent = parents[draw.randrange(len(parents))]
            child = crossover(parent, parents[draw.randrange(len(parents))]) if i % 2 else mutate(parent)
            if is_feasible(child):
                children.add(child)
        parents = sorted(children, key=fitness)[:PARENTS]
    return parents[0]
