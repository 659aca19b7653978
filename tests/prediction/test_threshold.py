"""From probabilities to masks: one rule, also for those that are not finite."""

from __future__ import annotations

import pytest
import torch

from change.prediction.threshold import NotFiniteError, changed_pixels


@pytest.mark.parametrize(("images", "named"), [((0,), "a"), ((1, 2), "b, c"), ((0, 1, 2, 3), "a, b, c and 1 more")])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_rule_for_probabilities_that_are_not_finite(images: tuple[int, ...], named: str, value: float) -> None:
    probability = torch.rand(4, 1, 5, 7)
    assert torch.equal(changed_pixels(probability, 0.25, "abcd"), probability > 0.25)
    for index in images:
        probability[index, 0, 4, 6] = value
    with pytest.raises(NotFiniteError, match=f"no finite probability for {named}: ") as found:
        changed_pixels(probability, 0.25, "abcd")
    assert found.value.names == ["abcd"[index] for index in images]
