"""Faults that are planted in the library are noticed by its quick tests."""

import pytest
from conftest import TODAY
from planted_faults import FAULTS, HOUSE, noticed


def test_each_fault_is_named_once_and_its_snippet_stands_once_in_its_file():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 44
    for fault in FAULTS:
        text = (HOUSE / "jaxnn" / fault.file).read_text()
        compile(fault.planted_in(text), fault.file, "exec")
        assert fault.old != fault.new, fault.name


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS[TODAY % 10 :: 10], ids=lambda fault: fault.name)
def test_todays_tenth_of_the_faults_is_noticed_by_the_quick_tests_of_their_area(fault):
    """`python tests/planted_faults.py` tries all of them."""
    assert noticed(fault)
