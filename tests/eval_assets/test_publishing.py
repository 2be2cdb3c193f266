"""The asset `report` as Dagster runs it, and what people see of it there."""

import base64
import io
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from PIL import Image

from eval_assets.automation import keep_report_fresh
from eval_assets.definitions import definitions
from eval_assets.leaderboard import leaderboard
from eval_assets.publishing import report
from resources.results import ResultsStore
from resources.settings import Settings
from tests.eval_assets.report.stores import usual_store


def materialized(store: ResultsStore, **config: int) -> dict[str, Any]:
    """The metadata that a run of both assets leaves."""
    ops = {"report": {"config": config}} if config else {}
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            [leaderboard, report, dg.AssetSpec("evaluation")],
            resources={"store": store, "settings": Settings.from_environment()},
            instance=instance,
            run_config={"ops": ops},
        )
    [event] = result.asset_materializations_for_node("report")
    return {name: value.value for name, value in event.metadata.items()}


def test_a_run_shows_the_report_its_table_and_a_picture(store: ResultsStore) -> None:
    """Who looks at the UI decides there whether to open the report at all."""
    metadata = materialized(usual_store(store))
    assert metadata["report"] == f"{store.root}/reports/index.html"
    assert Path(metadata["report"]).is_file()
    assert r"| capitals | tiny\@2 |" in metadata["leaderboard"]
    head, _, data = metadata["picture"].partition("base64,")
    assert head == "![The leaderboard](data:image/png;"
    image = Image.open(io.BytesIO(base64.b64decode(data.removesuffix(")"))))
    assert image.width > 400
    assert len(data) < 300_000
    colours = image.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    assert len(colours) > 50


def test_the_link_is_where_people_open_the_report(
    store: ResultsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVAL_REPORT_URL", "https://evaluation.example.org/report/")
    assert materialized(usual_store(store))["report"] == "https://evaluation.example.org/report/"


def test_the_run_says_how_many_samples_the_site_holds(store: ResultsStore) -> None:
    materialized(usual_store(store), items=0)
    assert not list(Path(store.root, "reports").rglob("*.data"))


def test_the_report_follows_new_evaluations_and_verdicts_and_nothing_else() -> None:
    """A report that nobody refreshes shows last month's champion; a refresh for nothing costs a pod."""
    with dg.instance_for_test() as instance:

        def asked() -> bool:
            context = dg.build_schedule_context(instance=instance)
            return isinstance(keep_report_fresh(context), dg.RunRequest)

        def materialized(asset: str) -> None:
            instance.report_runless_asset_event(dg.AssetMaterialization(asset))

        assert not asked()
        for new in ("evaluation", "promotion"):
            materialized(new)
            assert asked()
            materialized("report")
            assert not asked()
        materialized("model_version")
        assert not asked()
        materialized("evaluation")
        job = definitions(Settings.from_environment({})).resolve_job_def("refresh_leaderboard")
        run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
        assert not asked()
        instance.delete_run(run.run_id)
        assert asked()


def test_refreshing_the_leaderboard_builds_the_report_too(store: ResultsStore) -> None:
    job = definitions(Settings.from_environment({})).resolve_job_def("refresh_leaderboard")
    assert {key.to_user_string() for key in job.asset_layer.selected_asset_keys} == {"leaderboard", "report"}
