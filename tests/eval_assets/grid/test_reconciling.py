"""The pure function that decides what runs: it converges, forgets no cell and asks for none twice."""

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from eval_assets.grid.reconciling import (
    Failures,
    Policy,
    Request,
    Task,
    Version,
    Work,
    World,
    judgement,
    reconcile,
    short,
)

DATASETS = ("arc", "mmlu", "squad")
NAMES = ("a", "b")
POLICY = Policy(tries=3, first_wait=60.0, longest_wait=600.0, requests_at_once=4)


class Simulation(RuleBasedStateMachine):
    """A registry, a store and a queue whose runs end well, badly or not at all, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000_000.0
        self.registry: dict[str, int] = {}
        self.champions: dict[str, str] = {}
        self.editions = dict.fromkeys(DATASETS, 0)
        self.registered: dict[str, int] = {}
        self.prepared: dict[str, int] = {}
        self.finished: set[tuple[str, str, str]] = set()
        self.judged: dict[str, str] = {}
        self.lacking: dict[str, frozenset[tuple[str, str, str]]] = {}
        """Of each judged version the cells, its own and its baseline's, that its verdict did without."""
        self.moving: set[str] = set()
        """Versions whose verdict has announced to move the alias and not said yet that it has."""
        self.failures: dict[Task, Failures] = {}
        self.queue: list[Request] = []
        self.given_up_before: set[Task] = set()

    def world(self) -> World:
        fingerprints = {
            (model, dataset): short(f"{model}{revision}{dataset}{self.prepared[dataset]}")
            for model, revision in self.registered.items()
            for dataset in self.prepared
        }
        return World(
            now=self.now,
            versions=tuple(
                Version(
                    model,
                    str(revision),
                    self.registered.get(model) == revision,
                    DATASETS,
                    self.champions.get(model[0]),
                    self.judged.get(model),
                    self.is_reopened(model),
                )
                for model, revision in self.registry.items()
            ),
            signatures={dataset: str(edition) for dataset, edition in self.editions.items()},
            prepared={d for d, edition in self.prepared.items() if edition == self.editions[d]},
            fingerprints=fingerprints,
            finished=set(self.finished),
            in_flight={task.place for request in self.queue for task in request.tasks},
            failures=dict(self.failures),
        )

    def is_reopened(self, model: str) -> bool:
        if model == self.champions.get(model[0]):
            return model in self.moving
        return model in self.moving or bool(self.lacking.get(model, frozenset()) & self.finished)

    def judge(self, task: Task, world: World, *, killed: bool = False) -> None:
        """The verdict on a version and what follows, or what of it comes before the kill."""
        champion = self.champions.get(task.model[0])
        if champion != task.model:
            wanted = {
                (model, dataset, world.fingerprints[model, dataset])
                for model in (task.model, champion or task.model)
                for dataset in DATASETS
                if (model, dataset) in world.fingerprints
            }
            self.judged[task.model] = task.fingerprint
            self.lacking[task.model] = frozenset(wanted - self.finished)
            if champion is None and task.model in self.registry:
                self.moving.add(task.model)
                self.champions[task.model[0]] = task.model
        if not killed:
            self.moving.discard(task.model)

    def kill(self, request: Request) -> None:
        (task,) = request.tasks
        self.judge(task, self.world(), killed=True)
        times = self.failures[task].times if task in self.failures else 0
        self.failures[task] = Failures(times + 1, self.now, "killed")

    def succeed(self, request: Request) -> None:
        world = self.world()
        for task in request.tasks:
            self.failures.pop(task, None)
            match task.work:
                case Work.REGISTER if task.model in self.registry:
                    self.registered[task.model] = self.registry[task.model]
                case Work.PREPARE:
                    self.prepared[task.dataset] = self.editions[task.dataset]
                case Work.EVALUATE:
                    self.finished.add((task.model, task.dataset, task.fingerprint))
                case Work.JUDGE:
                    self.judge(task, world)

    # -- what the world does -----------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES), number=st.integers(1, 4))
    def somebody_registers_a_version_or_puts_other_files_under_it(self, name: str, number: int) -> None:
        key = f"{name}@{number}"
        self.registry[key] = self.registry.get(key, 0) + 1

    @precondition(lambda self: self.registry)
    @rule(data=st.data())
    def somebody_deletes_a_version(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.registry)))
        if key not in self.champions.values():
            del self.registry[key]

    @rule(dataset=st.sampled_from(DATASETS))
    def somebody_edits_a_benchmark(self, dataset: str) -> None:
        self.editions[dataset] += 1

    @rule(seconds=st.sampled_from([1.0, 59.0, 120.0, 3600.0, -7200.0]))
    def time_passes_or_a_clock_is_set_back(self, seconds: float) -> None:
        self.now += seconds

    # -- what the automation does ------------------------------------------------------------------

    @rule(heard=st.booleans())
    def a_tick_comes_and_may_be_lost_on_its_way_to_the_queue(self, heard: bool) -> None:
        decision = reconcile(self.world(), POLICY)
        if heard:
            places = {task.place for request in self.queue for task in request.tasks}
            for request in decision.requests:
                for task in request.tasks:
                    assert task.place not in places, "asked for twice at once"
                    places.add(task.place)
            self.queue += decision.requests

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def a_run_succeeds(self, data: st.DataObject) -> None:
        self.succeed(self.queue.pop(data.draw(st.integers(0, len(self.queue) - 1))))

    @precondition(lambda self: self.queue)
    @rule(data=st.data(), permanent=st.booleans(), good=st.integers(0, 2))
    def a_run_fails_after_some_of_its_tasks(self, data: st.DataObject, permanent: bool, good: int) -> None:
        request = self.queue.pop(data.draw(st.integers(0, len(self.queue) - 1)))
        done, failed = request.tasks[:good], request.tasks[good:]
        if done:
            self.succeed(replace(request, tasks=done))
        for task in failed:
            times = self.failures[task].times if task in self.failures else 0
            self.failures[task] = Failures(times + 1, self.now, "it broke", permanent)

    @precondition(lambda self: any(request.work is Work.JUDGE for request in self.queue))
    @rule(data=st.data())
    def a_run_is_killed_between_its_verdict_and_its_end(self, data: st.DataObject) -> None:
        judging = [request for request in self.queue if request.work is Work.JUDGE]
        request = data.draw(st.sampled_from(judging))
        self.queue.remove(request)
        self.kill(request)

    @precondition(lambda self: self.failures)
    @rule(data=st.data())
    def somebody_has_what_failed_tried_again(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(sorted({task.model for task in self.failures})))
        self.failures = {task: failed for task, failed in self.failures.items() if task.model != model}

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def a_run_vanishes_with_its_daemon(self, data: st.DataObject) -> None:
        self.queue.pop(data.draw(st.integers(0, len(self.queue) - 1)))

    # -- what must always hold ---------------------------------------------------------------------

    @invariant()
    def nothing_in_flight_is_asked_for_again(self) -> None:
        world = self.world()
        for request in reconcile(world, POLICY).requests:
            assert not {task.place for task in request.tasks} & world.in_flight

    @invariant()
    def no_tick_asks_for_more_than_its_share(self) -> None:
        assert len(reconcile(self.world(), POLICY).requests) <= POLICY.requests_at_once

    @invariant()
    def a_task_that_keeps_failing_is_given_up_and_not_asked_for(self) -> None:
        decision = reconcile(self.world(), POLICY)
        for task, failed in decision.given_up.items():
            assert failed.permanent or failed.times >= POLICY.tries
            assert task not in {asked for request in decision.requests for asked in request.tasks}

    @invariant()
    def when_the_weather_clears_everything_wanted_comes_to_be(self) -> None:
        """Convergence: from any state, ticks and successful runs alone lead to nothing left to do.

        Also where each first run for a verdict is killed; and once more after what was given up is retried.
        """
        copy = Simulation()
        for name in ("now", "registry", "champions", "editions", "registered", "prepared", "finished",
                     "judged", "lacking", "moving", "failures"):  # fmt: skip
            value = getattr(self, name)
            setattr(copy, name, value if isinstance(value, float) else type(value)(value))
        copy.comes_to_rest()
        copy.failures.clear()
        copy.comes_to_rest()

    def comes_to_rest(self) -> None:
        killed: set[Task] = set()
        for _ in range(200):
            self.now += POLICY.longest_wait + 1
            decision = reconcile(self.world(), POLICY)
            if not decision.requests:
                break
            for request in decision.requests:
                if request.work is Work.JUDGE and request.tasks[0] not in {*killed, *self.failures}:
                    killed.add(request.tasks[0])
                    self.kill(request)
                else:
                    self.succeed(request)
        else:
            raise AssertionError("it never comes to rest")
        world = self.world()
        given_up = reconcile(world, POLICY).given_up
        for version in world.versions:
            if not version.registered:
                assert Task(Work.REGISTER, version.model, "", version.revision) in given_up
                continue
            for dataset in version.datasets:
                if dataset not in world.prepared:
                    assert Task(Work.PREPARE, "", dataset, world.signatures[dataset]) in given_up
                    continue
                fingerprint = world.fingerprints[version.model, dataset]
                done = (version.model, dataset, fingerprint) in world.finished
                assert done or Task(Work.EVALUATE, version.model, dataset, fingerprint) in given_up
            task = judgement(version, world.fingerprints)
            assert not version.reopened or task in given_up, f"{version.model}'s verdict is out of date"
            family = [dataset for dataset in version.datasets if dataset in world.prepared]
            assert (
                version.model == version.baseline
                or version.judged == task.fingerprint
                or task in given_up
                or not family
            ), f"{version.model} was never judged"


TestSimulation = Simulation.TestCase
TestSimulation.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def _world(**changes: object) -> World:
    base = World(
        now=0.0,
        versions=(Version("a@1", "r", True, DATASETS, "a@1"),),
        signatures={},
        prepared=set(DATASETS),
        fingerprints={("a@1", dataset): dataset for dataset in DATASETS},
        finished=set(),
        in_flight=set(),
    )
    return replace(base, **changes)  # type: ignore[arg-type]  # the fields of a dataclass by name


def test_a_row_is_one_run_so_that_weights_are_loaded_once() -> None:
    (request,) = reconcile(_world()).requests
    assert (request.work, request.model, request.datasets) == (Work.EVALUATE, "a@1", DATASETS)


def test_a_cell_that_failed_waits_and_then_runs_alone() -> None:
    """In the row it would hold up, or break again, the cells that have nothing wrong with them."""
    failed = Task(Work.EVALUATE, "a@1", "mmlu", "mmlu")
    world = _world(now=1000.0, failures={failed: Failures(1, 990.0, "weather")})
    decision = reconcile(world)
    assert [request.datasets for request in decision.requests] == [("arc", "squad")]
    assert decision.waiting == {failed: 1050.0}
    later = reconcile(replace(world, now=1050.0))
    assert [request.datasets for request in later.requests] == [("arc", "squad"), ("mmlu",)]


def test_waits_double_and_end() -> None:
    assert [Policy().wait_after(times) for times in (1, 2, 3, 20)] == [60.0, 120.0, 240.0, 3600.0]


def test_a_changed_fingerprint_clears_what_was_given_up() -> None:
    task = Task(Work.EVALUATE, "a@1", "mmlu", "mmlu")
    world = _world(failures={task: Failures(1, 0.0, "a broken item", permanent=True)})
    assert task in reconcile(world).given_up
    edited = replace(world, fingerprints={**world.fingerprints, ("a@1", "mmlu"): "mmlu, edited"})
    decision = reconcile(edited)
    assert not decision.given_up
    assert decision.requests[0].datasets == DATASETS


def test_the_baseline_is_evaluated_before_what_is_compared_with_it() -> None:
    versions = (Version("a@2", "r", True, ("arc",), "a@1"), Version("a@1", "r", True, ("arc",), "a@1"))
    fingerprints = {("a@1", "arc"): "1", ("a@2", "arc"): "2"}
    world = _world(versions=versions, fingerprints=fingerprints)
    assert [request.model for request in reconcile(world).requests] == ["a@1", "a@2"]
    only_candidate = replace(world, finished={("a@2", "arc", "2")})
    assert [r.work for r in reconcile(only_candidate).requests] == [Work.EVALUATE]


def test_versions_of_one_model_are_judged_one_after_the_other() -> None:
    """The first verdict can move the alias that the second version must be compared with."""
    versions = tuple(Version(f"a@{i}", "r", True, ("arc",)) for i in (1, 2, 3))
    fingerprints = {(f"a@{i}", "arc"): str(i) for i in (1, 2, 3)}
    finished = {(f"a@{i}", "arc", str(i)) for i in (1, 2, 3)}
    world = _world(versions=versions, fingerprints=fingerprints, finished=finished)
    assert [(r.work, r.model) for r in reconcile(world).requests] == [(Work.JUDGE, "a@1")]
    held = replace(world, in_flight={(Work.JUDGE, "a@1", "")})
    assert reconcile(held).requests == ()


def test_a_moved_alias_does_not_judge_everything_again() -> None:
    version = Version("a@2", "r", True, ("arc",), "a@1")
    fingerprints = {("a@1", "arc"): "1", ("a@2", "arc"): "2", ("a@3", "arc"): "3"}
    task = judgement(version, fingerprints)
    assert task == judgement(replace(version, baseline="a@3"), fingerprints)
    assert task != judgement(version, {**fingerprints, ("a@2", "arc"): "another"})


def test_a_verdict_that_is_out_of_date_is_given_again_though_nothing_of_its_task_has_changed() -> None:
    """A version that was judged while one of its cells was given up would stay undecided for good."""
    version = Version("a@2", "r", True, ("arc",), "a@1")
    champion = Version("a@1", "r", True, ("arc",), "a@1")
    fingerprints = {("a@1", "arc"): "1", ("a@2", "arc"): "2"}
    judged = replace(version, judged=judgement(version, fingerprints).fingerprint)
    world = _world(
        versions=(champion, judged), fingerprints=fingerprints,
        finished={("a@1", "arc", "1"), ("a@2", "arc", "2")},
    )  # fmt: skip
    assert reconcile(world).requests == ()
    again = replace(world, versions=(champion, replace(judged, reopened=True)))
    assert [(r.work, r.model) for r in reconcile(again).requests] == [(Work.JUDGE, "a@2")]
    unwritten = replace(world, versions=(replace(champion, reopened=True), judged))
    assert [(r.work, r.model) for r in reconcile(unwritten).requests] == [(Work.JUDGE, "a@1")]


def test_a_task_is_tried_three_times_and_no_more() -> None:
    task = Task(Work.EVALUATE, "a@1", "mmlu", "mmlu")
    for times, given_up in ((1, False), (2, False), (3, True)):
        world = _world(now=10.0**6, failures={task: Failures(times, 0.0, "weather")})
        assert (task in reconcile(world).given_up) is given_up
