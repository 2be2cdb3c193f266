"""What Prometheus is told: the metrics, read from the results' catalogue, served to scrapes or pushed.

`families` says which metrics there are, `results` reads them from the catalogue, `exporter` collects from
such sources in the background and serves what it has, `pushgateway` sends a short-lived pod's own results.
"""

from resources.telemetry.exporter import Exporter, Source
from resources.telemetry.families import FAMILIES, Family, Readings
from resources.telemetry.pushgateway import Pushgateway
from resources.telemetry.results import Champion, read_results

__all__ = [
    "FAMILIES",
    "Champion",
    "Exporter",
    "Family",
    "Pushgateway",
    "Readings",
    "Source",
    "read_results",
]
