"""Faults that are planted in the library are noticed by its quick tests."""

import pytest
from planted_faults import FAULTS, HOUSE, noticed


def test_each_fault_is_named_once_and_its_snippet_stands_once_in_its_file():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 44
    for fault in FAULTS:
        text = (HOUSE / "jaxnn" / fault.file).read_text()
        compile(fault.planted_in(text), fault.file, "exec")
        assert fault.old != fault.new, fault.name


@pytest.mark.slow
def test_nine_of_ten_faults_are_noticed_by_the_quick_tests_of_their_area():
    missed = [fault.name for fault in FAULTS if not noticed(fault)]
    assert len(missed) <= len(FAULTS) / 10, missed
