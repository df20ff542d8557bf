"""`DistributedGradientTape` on ranks: its gradients are the votes of a simulation in NumPy, whatever the tape."""

import warnings

import horovod.tensorflow as hvd
import numpy as np
import pytest
import simulation
import tensorflow as tf
import tf_rules
from ranks import RANK, SIZE, process_sets
from tape_tasks import Task, assert_equal

import horovod_sign.tensorflow as hvs

RANKS = (2,)  # each has momenta of its own, and votes tie; that votes are right for others: test_votes.py


def workers(task, rule=simulation.SIGNSGD):
    """All ranks, in NumPy."""
    return simulation.Workers([v.numpy() for v in task.variables], SIZE, rule)


KINDS = {
    "default": (lambda: None, simulation.SIGNSGD, True),
    "signum": (lambda: hvs.Compression.signum(0.9), simulation.signum(0.9), False),
    "warmup": (lambda: hvs.Compression.signum(0.75, warmup=True), simulation.signum(0.75, 2), True),
    "lion": (hvs.Compression.lion, simulation.LION, True),
    "Muon": (lambda: hvs.Compression.of(tf_rules.Muon()), tf_rules.MUON, True),
    "two momenta": (lambda: hvs.Compression.of(tf_rules.TwoMomenta()), simulation.TWO_MOMENTA, False),
    "clipped": (lambda: hvs.Compression.of(tf_rules.Clipped()), tf_rules.CLIPPED, True),
}


@pytest.mark.quick
@pytest.mark.parametrize("kind", KINDS)
def test_tape_equals_the_simulation_also_when_traced_again(kind):
    make, rule, in_graph = KINDS[kind]
    task, compression = Task(), make()
    simulated = workers(task, rule)
    step = task.stepper(lambda tape: hvs.DistributedGradientTape(tape, compression=compression), in_graph)
    for number, rows in enumerate((16, 16, 8, 16, 8)):
        assert_equal(step(number, rows), simulated.votes(task.gradients_of_all(number, rows)))


@pytest.mark.ranks(2)  # one alone asks for it
def test_votes_of_nodes_that_are_refused(monkeypatch):
    options = {"compression": hvs.Compression.signsgd(), "hierarchical": RANK == 1}
    with pytest.raises(ValueError, match="hierarchical"):
        Task().stepper(lambda tape: hvs.DistributedGradientTape(tape, **options), False)(0)
    words = "hierarchical=True is for votes of all ranks: leave process_set out"
    with process_sets(hvd, [0], [1]) as sets, pytest.raises(ValueError, match=words):
        hvs.DistributedGradientTape(tf.GradientTape(), hierarchical=True, process_set=sets[RANK])
    monkeypatch.setenv("HOROVOD_ELASTIC", "1")
    with pytest.raises(ValueError, match="hierarchical=True cannot be used in an elastic job"):
        hvs.DistributedGradientTape(tf.GradientTape(), hierarchical=True)


@pytest.mark.fault("resume")
@pytest.mark.parametrize("late", [False, True])
def test_what_a_compression_votes_by_is_saved_and_loaded(late, tmp_path):
    """By all ranks in one file, before or after the first vote; variables in another order take theirs along."""
    task = Task()
    simulated = workers(task, simulation.signum(0.9))

    def stepper(compression):
        return task.stepper(lambda tape: hvs.DistributedGradientTape(tape, compression=compression), late)

    first, second = hvs.Compression.signum(0.9), hvs.Compression.signum(0.9)
    step = stepper(first)
    for number in range(3):
        assert_equal(step(number), simulated.votes(task.gradients_of_all(number)))
    np.savez(tmp_path / "momenta.npz", **first.gather_state_dict(task.variables))
    saved = dict(np.load(tmp_path / "momenta.npz"))
    assert saved["votes"] == 3 and all(len(saved[f"momentum{i}"]) == SIZE for i in range(2))
    step = stepper(second)
    if late:
        step(0)
    second.load_state_dict(saved, task.variables)
    for number in range(3, 6):
        assert_equal(step(number), simulated.votes(task.gradients_of_all(number)))
    mine = second.state_dict(task.variables[::-1])
    for i, m in enumerate(reversed(simulated.m[RANK])):
        np.testing.assert_array_equal(mine[f"momentum{i}"][0], m)
    del saved["votes"]
    for_three = {key: np.concatenate([value[:1], value[:1], 4 * value[:1]]) for key, value in saved.items()}
    second.load_state_dict({**for_three, "votes": 3}, task.variables)
    for i in range(2):
        mean = for_three[f"momentum{i}"].mean(0)
        np.testing.assert_array_equal(second.state_dict(task.variables)[f"momentum{i}"][0], mean)
    with pytest.raises(ValueError, match="not of this compression and these variables"):
        second.load_state_dict(saved, task.variables[:1])
    before = second.state_dict(task.variables)
    with pytest.raises(ValueError, match="how many votes"):
        second.load_state_dict(saved, task.variables)
    after = second.state_dict(task.variables)
    assert before.keys() == after.keys() and all((before[key] == after[key]).all() for key in before)
    assert hvs.Compression.signsgd().state_dict(task.variables) == {}


@pytest.mark.fault("resume")
@pytest.mark.limit(30)  # where ranks are not asked first, some wait for states that others do not have
@pytest.mark.parametrize("other", ["a variable fewer", "a rule without states", "no variable"])
def test_states_that_ranks_do_not_have_alike_are_not_gathered(other):
    compression, variables = hvs.Compression.signum(0.9), Task().variables
    words, error = "momentum 1 is .* on rank 0 and nothing more on rank 1", ValueError
    if other == "no variable":
        words, error = "rank 1", (TypeError, ValueError)
    if RANK == 1:
        if other == "a rule without states":
            compression = hvs.Compression.signsgd()
        variables = {"a variable fewer": variables[:1], "no variable": [variables[0], "second"]}.get(other, variables)
    if other == "a rule without states":
        words = "momentum 0 is .* on rank 0 and nothing more on rank 1"
    with pytest.raises(error, match=words):
        compression.gather_state_dict(variables)


@pytest.mark.fault("two-models")
def test_two_models_with_one_compression_do_not_mix():
    tasks, compression = [Task(1), Task(2)], hvs.Compression.signum(0.9)
    simulated = [workers(task, simulation.signum(0.9)) for task in tasks]
    steps = [
        task.stepper(lambda tape: hvs.DistributedGradientTape(tape, compression=compression), i == 0)
        for i, task in enumerate(tasks)
    ]
    for number, turn in enumerate((0, 1, 1, 0, 1, 0)):
        expected = simulated[turn].votes(tasks[turn].gradients_of_all(number))
        assert_equal(steps[turn](number), expected)
    with pytest.raises(ValueError, match="several lists of variables"):
        compression.vote_statistics()


@pytest.mark.fault("accumulation")
def test_tape_votes_once_in_two_passes():
    """Also with a warm-up, which is two votes long and not two passes."""
    compression = hvs.Compression.signum(0.75, warmup=True)
    task = Task()
    simulated = workers(task, simulation.signum(0.75, 2))
    step = task.stepper(
        lambda tape: hvs.DistributedGradientTape(tape, compression=compression, backward_passes_per_step=2), True
    )
    for number in range(0, 6, 2):
        assert not any(tf.reduce_any(vote != 0) for vote in step(number))
        first, second = (task.gradients_of_all(number + i) for i in range(2))
        mean = [[(a + b) / 2 for a, b in zip(*pair, strict=True)] for pair in zip(first, second, strict=True)]
        assert_equal(step(number + 1), simulated.votes(mean))


@pytest.mark.fault("sparse")
@pytest.mark.fault("unseen")
@pytest.mark.fault("unused")
def test_structure_none_and_sparse():
    """Nested sources keep their structure; a missing gradient abstains; an embedding's gradient is voted on dense."""
    table, unused, mine = tf.Variable(tf.ones((6, 2))), tf.Variable(1.0), tf.Variable([1.0, -1.0])

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = -tf.reduce_sum(tf.gather(table, [1, 1, RANK + 2]))
            loss += tf.reduce_sum(mine) if RANK == 0 else 0.0
        return hvs.DistributedGradientTape(tape).gradient(loss, {"a": table, "b": [unused, mine]})

    votes = step()
    expected = np.zeros((6, 2))
    expected[[1, *range(2, 2 + SIZE)]] = -1
    np.testing.assert_array_equal(votes["a"], expected)
    assert votes["b"][0] is None
    np.testing.assert_array_equal(votes["b"][1], [1, 1])


@pytest.mark.fault("unused")
def test_a_gradient_that_comes_late_is_reported_once_where_it_is():
    used, late = tf.Variable([1.0]), tf.Variable([1.0], name="latecomer")
    compression, said = hvs.Compression.signsgd(), []
    for step in range(3):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(used) + (tf.reduce_sum(late) if step and RANK == 1 else 0.0)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            votes = hvs.DistributedGradientTape(tape, compression=compression).gradient(loss, [used, late])
        said.append([str(each.message) for each in warned if "was left out of the votes" in str(each.message)])
        assert votes[1] is None and votes[0] == 1
    assert [len(texts) for texts in said] == [0, int(RANK == 1), 0]
    assert all("latecomer" in text for text in said[1])


@pytest.mark.ranks(1)  # what a tape is
def test_a_tape_does_all_else_as_the_wrapped_one():
    x, w = tf.constant([[2.0, -3.0]]), tf.Variable([1.0, 1.0])
    with hvs.DistributedGradientTape(tf.GradientTape(persistent=True), compression=hvs.Compression.signsgd()) as tape:
        tape.watch(x)
        y = x * w
        with tape.stop_recording():
            unseen = x * w
    np.testing.assert_array_equal(tape.gradient(y, [x], output_gradients=tf.constant([[1.0, -1.0]]))[0], [[1, -1]])
    np.testing.assert_array_equal(tape.gradient(y, [w])[0], [1, -1])
    assert tape.gradient(unseen, [w, x])[1] is None
    zero = tape.gradient(unseen, [x, w], unconnected_gradients=tf.UnconnectedGradients.ZERO)[0]
    np.testing.assert_array_equal(zero, [[0, 0]])
    np.testing.assert_array_equal(tape.jacobian(y, w)[0], [[2, 0], [0, -3]])
    np.testing.assert_array_equal(tape.batch_jacobian(y, x)[0], [[1, 0], [0, 1]])
    assert [v.ref() for v in tape.watched_variables()] == [w.ref()]
    with hvs.DistributedGradientTape(tf.GradientTape()) as tape:
        y = w * w
        tape.reset()
        y = x * x
    assert not tape.watched_variables()


@pytest.mark.ranks(1)  # one voter tells all of it
def test_tapes_with_other_options_do_not_share_an_election():
    x, compression = tf.Variable([0.0, 1.0, -1.0]), hvs.Compression.signsgd()

    def gradient(**options):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(x * x)
        return hvs.DistributedGradientTape(tape, compression=compression, **options).gradient(loss, [x])[0].numpy()

    assert gradient().tolist() == gradient(transport="counts").tolist() == [0, 1, -1]
    assert gradient(abstain=False).tolist() == [1, 1, -1]
    assert [gradient(backward_passes_per_step=2).tolist() for _ in range(2)] == [[0, 0, 0], [0, 1, -1]]


@pytest.mark.ranks(1)  # what one process remembers
def test_momenta_go_with_their_variables():
    compression = hvs.Compression.signum()
    Task().stepper(lambda tape: hvs.DistributedGradientTape(tape, compression=compression), False)(0)
    assert not compression.memories


@pytest.mark.fault("forgotten-compression")
@pytest.mark.ranks(1)  # what one process remembers
@pytest.mark.parametrize("how", ["eager", "traced again"])
def test_compressions_that_are_made_in_each_step_are_told_of(how):
    x = tf.Variable(tf.ones(3))

    def gradient(compression, n=1):
        with tf.GradientTape() as tape:
            loss = n * tf.reduce_sum(x * x)
        return hvs.DistributedGradientTape(tape, compression=compression).gradient(loss, [x])

    def steps(make, number):
        step = (lambda n: gradient(make(), n)) if how == "eager" else tf.function(lambda n: gradient(make(), n))
        for n in range(number):
            step(n + 1)  # a number of Python's is traced anew each time

    kept = [hvs.Compression.signum(momentum=0.5) for _ in range(5)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for each in kept * 2:  # of five losses, say
            gradient(each)
        steps(lambda: kept[0], 5)
        steps(hvs.Compression.signsgd, 5)
        steps(hvs.Compression.signum, 3)
    with pytest.warns(RuntimeWarning, match="was made anew in each of the last steps") as told:
        steps(hvs.Compression.signum, 5)
    assert len([each for each in told if "made anew" in str(each.message)]) == 1


@pytest.mark.fault("wrapped-by-horovod")
@pytest.mark.fault("wrapped-twice")
@pytest.mark.ranks(1)  # refused before anything is voted on
def test_tapes_that_are_refused():
    for tape in (hvd.DistributedGradientTape(tf.GradientTape()), hvs.DistributedGradientTape(tf.GradientTape())):
        with pytest.raises(ValueError, match="already wrapped"):
            hvs.DistributedGradientTape(tape)
    with tf.GradientTape() as tape:
        x = tf.constant([1.0])
        tape.watch(x)
        y = 2 * x
    with pytest.raises(ValueError, match="take gradients by variables only"):
        hvs.DistributedGradientTape(tape, compression=hvs.Compression.signum()).gradient(y, [x])
    for options, words in (
        ({"op": hvd.Max}, "has no op=Max"),
        ({"backward_passes_per_step": True + 0.5}, "an integer of"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            hvs.DistributedGradientTape(tape, **options)
