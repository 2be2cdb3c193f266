from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.errors import UserError
from resources.retention import Inventory, RetentionPolicy, load_policy, plan
from resources.retention.policy import Kind, Leftover, StoredEvaluation

NOW = datetime(2026, 6, 15, tzinfo=UTC)
DAY = timedelta(days=1)

DAYS = st.none() | st.integers(0, 100)
MODELS = st.sampled_from([f"{name}@{version}" for name in ("a", "org/b") for version in range(5)])


@st.composite
def policies(draw: st.DrawFn) -> RetentionPolicy:
    texts, delete = draw(DAYS), draw(DAYS)
    if texts is not None and delete is not None:
        texts, delete = sorted((texts, delete))
    return RetentionPolicy(
        versions=draw(st.integers(1, 4)), texts_days=texts, delete_days=delete, leftovers_days=draw(DAYS)
    )


@st.composite
def inventories(draw: st.DrawFn) -> Inventory:
    evaluations = []
    for number in range(draw(st.integers(0, 12))):
        model = draw(MODELS)
        finished = NOW - draw(st.integers(-10, 120)) * DAY
        without_texts = draw(st.booleans())
        evaluations.append(
            StoredEvaluation(
                ("squad", model, f"e{number}"),
                f"evaluations/squad/{model}/e{number}",
                finished,
                1000,
                800,
                without_texts,
                held=draw(st.integers(0, 5)) == 0,
                entered_at=finished + draw(st.sampled_from([0, 0, 30])) * DAY,
                cost=draw(st.sampled_from([0.0, 2.0])),
                begun=without_texts and draw(st.integers(0, 3)) == 0,
            )
        )
    leftovers = [
        Leftover(
            draw(st.sampled_from([Kind.PROGRESS, Kind.ITEMS, Kind.DELETE])),
            f"leftover{number}",
            10,
            NOW - draw(st.integers(-10, 120)) * DAY,
            draw(st.booleans()),
            draw(st.booleans()),
        )
        for number in range(draw(st.integers(0, 5)))
    ]
    places = [one.place for one in evaluations]
    return Inventory(
        evaluations,
        leftovers,
        dict.fromkeys(draw(st.lists(MODELS, max_size=2)), "champion"),
        frozenset(draw(st.lists(st.sampled_from(places), max_size=4)) if places else []),
        draw(st.dictionaries(MODELS, st.integers(0, 120).map(lambda days: NOW - days * DAY), max_size=3)),
    )


def versions_by_age(inventory: Inventory, name: str) -> list[str]:
    """The versions of a model, the one that was first evaluated last first."""
    moments: dict[str, list[datetime]] = {}
    for one in inventory.evaluations:
        if one.place[1].rpartition("@")[0] == name:
            moments.setdefault(one.place[1], []).append(one.finished_at)
    first = {
        model: min([*found, *filter(None, [inventory.deleted.get(model)])])
        for model, found in moments.items()
    }
    return sorted(first, key=lambda model: (first[model], model), reverse=True)


@given(inventories(), policies())
def test_what_is_to_be_kept_is_kept(inventory: Inventory, policy: RetentionPolicy) -> None:
    """One wrong action here is somebody's evidence gone for good."""
    found = plan(inventory, policy, NOW)
    by_folder = {one.folder: one for one in inventory.evaluations}
    for action in found.actions:
        if action.place is None:
            continue
        one = by_folder[action.folder]
        model = one.place[1]
        assert action.entered_at == one.entered_at.isoformat()
        assert not one.held
        assert model not in inventory.kept_versions
        if one.begun:
            assert action.kind is Kind.TEXTS
            continue
        assert model in versions_by_age(inventory, model.rpartition("@")[0])[policy.versions :]
        age = NOW - one.entered_at
        assert age > timedelta(0)
        if action.kind is Kind.DELETE:
            assert policy.delete_days is not None
            assert age >= policy.delete_days * DAY
            assert one.place not in inventory.referenced
            assert not (one.cost and one.finished_at.month == NOW.month and one.finished_at.year == NOW.year)
        else:
            assert policy.texts_days is not None
            assert age >= policy.texts_days * DAY
            assert not one.without_texts
    for action in found.actions:
        if action.place is None:
            leftover = next(one for one in inventory.leftovers if one.folder == action.folder)
            assert not leftover.held
            assert not leftover.needed
            if leftover.kind is Kind.DELETE:
                continue
            assert policy.leftovers_days is not None
            assert NOW - leftover.changed_at >= max(policy.leftovers_days * DAY, timedelta(microseconds=1))


@given(inventories(), policies())
def test_everything_has_one_fate_and_an_even_order(inventory: Inventory, policy: RetentionPolicy) -> None:
    found = plan(inventory, policy, NOW)
    folders = [action.folder for action in found.actions]
    assert len(folders) == len(set(folders))
    acted = sum(action.place is not None for action in found.actions)
    assert acted + sum(found.kept.values()) == len(inventory.evaluations)
    reversed_inventory = Inventory(
        list(reversed(inventory.evaluations)), list(reversed(inventory.leftovers)), inventory.kept_versions,
        inventory.referenced, inventory.deleted,
    )  # fmt: skip
    assert plan(reversed_inventory, policy, NOW) == found


@given(inventories(), policies(), st.integers(0, 50))
def test_time_only_ever_adds_to_what_is_due(inventory: Inventory, policy: RetentionPolicy, days: int) -> None:
    """Were something due today and not tomorrow, it would depend on when the job happens to run."""
    policy = policy.model_copy(update={"delete_days": None})
    today = {action.folder for action in plan(inventory, policy, NOW).actions}
    assert today <= {action.folder for action in plan(inventory, policy, NOW + days * DAY).actions}


def stored(model: str, days: int, imported_days: int | None = None) -> StoredEvaluation:
    finished = NOW - days * DAY
    entered = finished if imported_days is None else NOW - imported_days * DAY
    return StoredEvaluation(
        ("d", model, f"e{days}"), f"{model}/{days}", finished, 1, 1, False, False, entered
    )


def test_a_gentle_policy_does_nothing() -> None:
    inventory = Inventory([stored(f"m@{number}", 999 - number) for number in range(4)])
    policy = RetentionPolicy(texts_days=None, delete_days=None, leftovers_days=None)
    found = plan(inventory, policy, NOW)
    assert found.actions == ()
    assert found.kept == {"among the last 3 versions of its model": 3, "not old enough": 1}
    assert [action.kind for action in plan(inventory, RetentionPolicy(), NOW).actions] == [Kind.TEXTS]


def test_a_version_that_is_evaluated_again_pushes_no_newer_one_out() -> None:
    """A recheck of last year's version would cost this month's its samples."""
    policy = RetentionPolicy(versions=2, texts_days=10)
    evaluations = [stored("m@1", 300), stored("m@1", 1), stored("m@2", 50), stored("m@3", 40)]
    found = plan(Inventory(evaluations), policy, NOW)
    assert [action.folder for action in found.actions] == ["m@1/300"]
    again = Inventory(evaluations[1:], deleted={"m@1": NOW - 300 * DAY})  # its first one was deleted
    assert plan(again, policy, NOW).actions == ()
    assert plan(Inventory(evaluations[1:]), policy, NOW).actions != ()


def test_what_was_imported_is_as_old_as_its_import() -> None:
    """Results of years ago would be gone on the day on which somebody brings them."""
    policy = RetentionPolicy(versions=1, texts_days=10, delete_days=20)
    evaluations = [stored("m@1", 800, 1), stored("m@2", 700, 15), stored("m@3", 600, 25), stored("m@4", 5)]
    found = plan(Inventory(evaluations), policy, NOW)
    assert [(action.kind, action.why) for action in found.actions] == [
        (Kind.TEXTS, "imported 15 days ago, without texts after 10"),
        (Kind.DELETE, "imported 25 days ago, deleted after 20"),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("versions: 0", "versions: .* greater than or equal to 1"),
        ("delete_days: 5\ntexts_days: 10", r"'delete_days' \(5\) comes before 'texts_days' \(10\)"),
        ("keep: 3", "keep: unknown field"),
        ("texts_days: -1", "texts_days: .* greater than or equal to 0"),
        ("delete_days: 1000000", "delete_days: .*less than or equal"),
        ("delete_days: soon", "delete_days: .*integer"),
        ("- a", "valid dictionary"),
        ("{", "not valid YAML"),
    ],
)
def test_a_wrong_policy_names_file_field_and_rule(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "retention.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=reason) as raised:
        load_policy(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_policy_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "retention.yaml"
    path.write_text("versions: 5\ntexts_days: 90\ndelete_days: 400\n")
    assert load_policy(path) == RetentionPolicy(versions=5, texts_days=90, delete_days=400)
    with pytest.raises(UserError, match="can't be read"):
        load_policy(tmp_path / "nothing.yaml")
