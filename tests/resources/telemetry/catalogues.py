"""Catalogues as large as a test wants, without the files that they are made from."""

import duckdb

from resources.catalog import CATALOG, Catalog
from resources.results import ResultsStore
from tests.resources.catalog.test_catalogue import commit

METRICS = ("f1", "exact_match", "rouge1", "rougeL", "bleu")


def large_catalogue(store: ResultsStore, *, names: int, versions: int, datasets: int) -> Catalog:
    """A catalogue of ``names * versions * datasets`` cells with the five `METRICS` each."""
    commit(store, "seed@1", [1.0, 0.0])
    catalog = Catalog(store)
    catalog.refresh()
    with duckdb.connect(f"{store.root}/{CATALOG}") as connection:
        connection.execute("CREATE TEMP TABLE one AS SELECT * FROM stored.evaluations")
        connection.execute(
            """
            INSERT INTO stored.evaluations SELECT one.* REPLACE (
                row_number() OVER () + 1 AS number,
                format('{}-{}-{}-1', n, v, d) AS evaluation_id, format('bench{:02}', d) AS dataset,
                format('org/model-{:04}', n) AS model_name, v::VARCHAR AS model_version,
                format('org/model-{:04}@{}', n, v) AS model,
                started_at + to_minutes(v * 60) AS started_at,
                finished_at + to_minutes(v * 60 + 1) AS finished_at)
            FROM one, range($names) a(n), range($versions) b(v), range($datasets) c(d)
            """,
            {"names": names, "versions": versions, "datasets": datasets},
        )
        connection.execute(
            """
            INSERT INTO stored.metrics BY NAME SELECT number, unnest($metrics) AS metric,
                random() AS value, 0.01 AS stderr, 0.0 AS ci_low, 1.0 AS ci_high, 100 AS n
            FROM stored.evaluations WHERE evaluation_id LIKE '%-%-%-1'
            """,
            {"metrics": list(METRICS)},
        )
    return catalog
