"""Connected components of a graph, by union-find."""

from __future__ import annotations

from collections.abc import Iterable


def connected_components(count: int, edges: Iterable[tuple[int, int]]) -> list[int]:
    """Find the connected components of the nodes 0 to `count` - 1.

    Returns, for each node, the smallest node of its component. Source: Tarjan, "Efficiency of a Good But Not Linear Set
    Union Algorithm", Journal of the ACM 22, 1975; with path halving.
    """
    parent = list(range(count))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for first, second in edges:
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    return [root(node) for node in range(count)]
