"""What a run's cells came to, told to the Pushgateway that ``EVAL_PUSHGATEWAY`` names; none by default."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from eval_assets.grid.observing import Observer
from resources.errors import UserError
from resources.keys import ModelKey
from resources.records import EvaluationRecord
from resources.settings import Settings

if TYPE_CHECKING:
    from resources.telemetry import Pushgateway


class Pushing:
    """Tells the results of one run; a gateway that is away costs seconds once, and no result."""

    def __init__(self, settings: Settings, on_warning: Callable[[str], object]) -> None:
        self._gateway = _gateway(settings, on_warning)
        self._on_warning = on_warning

    def tell(self, record: EvaluationRecord, look: Observer) -> None:
        """Push what an evaluation's record says, in the place of what it supersedes; never raises."""
        if self._gateway is None:
            return
        try:
            keep = _others_shown(record, look)
        except UserError as error:
            self._on_warning(f"nothing is pushed of {record['model']} on {record['dataset']}: {error}")
        else:
            self._gateway.push(record, keep)


def forget_pushed(settings: Settings, model: str) -> None:
    """Remove what was pushed of a model version. Raises UserError where the gateway is away."""
    gateway = _gateway(settings, lambda _: None)
    if gateway is not None:
        gateway.forget(model)


def _gateway(settings: Settings, on_warning: Callable[[str], object]) -> "Pushgateway | None":
    if settings.pushgateway is None:
        return None
    # Imported where it is used: most runs push nothing.
    from resources.telemetry import Pushgateway

    return Pushgateway(settings.pushgateway, settings.store, on_warning)


def _others_shown(record: EvaluationRecord, look: Observer) -> list[str]:
    """The other versions whose scores stay: that in production, and those that were registered later."""
    name, version = record["model_name"], record["model_version"]
    known = [ModelKey.parse(key) for key in look.instance.get_dynamic_partitions("model")]
    versions = [key.version for key in known if key.name == name]
    newer = versions[versions.index(version) :] if version in versions else []
    champion = look.production([record["model"]]).get(name, "")
    return [*newer, champion.rpartition("@")[2]]
