"""Adjusted p-values, against examples worked out by hand and SciPy's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from stages.grid.multiplicity import benjamini_hochberg, holm

# Of Benjamini and Hochberg (1995), section 4: at q = .05 theirs rejects the four smallest, Bonferroni's three.
PUBLISHED = [
    *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344),
    *(0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000),
]
probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def test_the_published_example_confirms_four():
    assert (benjamini_hochberg(PUBLISHED) <= 0.05).sum() == 4
    assert (holm(PUBLISHED) <= 0.05).sum() == 3


def test_worked_examples_in_any_order():
    ps = [0.03, 0.01, 0.04, 0.005]
    assert holm(ps) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert benjamini_hochberg(ps) == pytest.approx([0.04, 0.02, 0.04, 0.02])
    assert list(holm([])) == list(benjamini_hochberg([])) == []


@given(probabilities)
def test_benjamini_and_hochberg_s_is_scipy_s(ps):
    assert benjamini_hochberg(ps) == pytest.approx(false_discovery_control(ps), abs=1e-12)


@given(probabilities)
def test_adjusted_ps_keep_their_order_and_a_failed_cell_makes_no_other_look_better(ps):
    for adjust in (benjamini_hochberg, holm):
        found, order = adjust(ps), np.argsort(ps)
        assert (found >= np.array(ps) - 1e-12).all() and (np.diff(found[order]) >= -1e-12).all()
        assert (adjust([*ps, 1.0])[:-1] >= found - 1e-12).all()
    assert (holm(ps) >= benjamini_hochberg(ps) - 1e-12).all()
