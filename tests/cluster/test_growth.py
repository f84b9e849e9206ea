"""A node that joins while a stage is under way gives it another worker."""

from __future__ import annotations

from adatsq_pipe.cluster.pool import Pool
from adatsq_pipe.cluster.resources import Resources
from tests.bench.sleepers import Nap, Sleeper
from tests.nodes import Nodes


def test_a_node_that_joins_is_put_to_work() -> None:
    nodes = Nodes(1)
    try:
        pool = Pool(Resources(address=nodes.address), "growth")
        try:
            done = list[str]()
            for key, _ in pool.stream(Sleeper, Nap(1.0), [str(i) for i in range(60)]):
                done.append(key)
                if len(done) == 2:
                    assert pool.answering == 1
                    nodes.join()
                if pool.answering == 2:
                    break
            assert pool.answering == 2, "the second node was never used"
        finally:
            pool.close()
    finally:
        nodes.end()
