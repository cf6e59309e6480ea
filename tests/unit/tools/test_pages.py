"""The tables of docs/ that are made of records are what the records say."""

import re

import pytest

import samkit
from tools import pages


@pytest.mark.parametrize("path", sorted(pages.pages()), ids=lambda path: path.name)
def test_page_has_the_tables_that_the_records_make(path):
    assert path.read_text() == pages.pages()[path], "a table differs; python -m tools.pages writes it"


def test_every_table_stands_in_one_page():
    named = [name for text in pages.pages().values() for name in re.findall(r"<!-- table: (.+?), by", text)]
    assert sorted(named) == sorted(pages.tables())


def test_graphs_of_every_method_are_told_with_every_tensor():
    text = pages.tables()["graphs"]
    for name in samkit.list_methods():
        method = samkit.get_method(name)
        (section,) = (part for part in text.split("## ") if f"`{name}`" in part.partition("\n")[0])
        for graph in method.graphs(method.sizes["full"]):
            assert f"`{graph.name}`" in section
            assert all(f"`{spec.name}`" in section for spec in (*graph.inputs, *graph.outputs))


def test_a_table_of_another_name_is_refused():
    with pytest.raises(KeyError):
        pages.filled("<!-- table: none, by python -m tools.pages -->\n\n\n\n<!-- end of table -->", pages.tables())
