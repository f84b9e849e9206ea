"""An evolutionary search over one choice per layer under a mean (Q-DiT, 2406.17343, sec. 3.3, with another fitness)."""

from __future__ import annotations

import random
from collections.abc import Sequence

Genes = tuple[int, ...]
"""One option per layer, by its place among the layer's options."""

POPULATION = 64
GENERATIONS = 200
PARENTS = 16
MUTATION = 0.05


def evolve(
    errors: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], start: Genes, *, least_mean: float, seed: int = 0
) -> Genes:
    """The genes of least summed error found, the mean of their sizes at least `least_mean`.

    `errors[l][i]` and `sizes[l][i]` are those of option i of layer l. `start` must be allowed; the best found is never
    worse. Half of each generation comes from crossing two parents, half from mutating one; all from `seed`.
    """
    draw = random.Random(seed)
    floor = least_mean * len(start) - 1e-9

    def fitness(genes: Genes) -> tuple[float, Genes]:
        return sum(errors[layer][i] for layer, i in enumerate(genes)), genes

    def allowed(genes: Genes) -> bool:
        return sum(sizes[layer][i] for layer, i in enumerate(genes)) >= floor

    if not allowed(start):
        raise ValueError(f"the start has a mean size below {least_mean:g}")

    def mutated(genes: Genes) -> Genes:
        chosen = draw.randrange(len(genes))
        return tuple(
            draw.randrange(len(sizes[layer])) if layer == chosen or draw.random() < MUTATION else i
            for layer, i in enumerate(genes)
        )

    def crossed(a: Genes, b: Genes) -> Genes:
        return tuple(x if draw.random() < 0.5 else y for x, y in zip(a, b, strict=True))

    best = [start]
    for _ in range(GENERATIONS):
        children = {*best}
        for i in range(POPULATION):
            parent = best[draw.randrange(len(best))]
            child = crossed(parent, best[draw.randrange(len(best))]) if i % 2 else mutated(parent)
            if allowed(child):
                children.add(child)
        best = sorted(children, key=fitness)[:PARENTS]
    return best[0]
