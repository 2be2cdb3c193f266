"""What is in a catalogue, as data that two of them can be compared by."""

from resources.catalog import Catalog


def relations(catalog: Catalog) -> dict[str, list[str]]:
    """Every table and view that people query: its rows, in an order of their own."""
    with catalog.connect() as connection:
        names = connection.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'main' ORDER BY 1"
        ).fetchall()
        return {
            name: sorted(map(repr, connection.execute(f'SELECT * FROM "{name}"').fetchall()))
            for (name,) in names
        }


def stored_rows(catalog: Catalog) -> dict[str, int]:
    """How many rows each table has that the views are made of; rows that no view shows are among them."""
    with catalog.connect() as connection:
        names = connection.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'stored' ORDER BY 1"
        ).fetchall()
        counted = {}
        for (name,) in names:
            ((count,),) = connection.execute(f"SELECT count(*) FROM stored.{name}").fetchall()
            counted[name] = count
        return counted
