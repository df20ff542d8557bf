"""What can be run, by name: `.venv/bin/nox -l`, `.venv/bin/nox -s lint`; arguments after `--` are passed on.

Each is one of the scripts in ci/, which set up what they need; no environments are made besides theirs.
"""

import nox

nox.options.sessions = ["lint", "quick"]
nox.options.default_venv_backend = "none"


def script(session: nox.Session, *command: str):
    """Runs a command of the checkout with the session's arguments."""
    session.run(*command, *session.posargs, external=True)


@nox.session
def lint(session: nox.Session):
    """Style, formatting and types: seconds."""
    session.run(".venv/bin/ruff", "check", ".", external=True)
    session.run(".venv/bin/ruff", "format", "--check", ".", external=True)
    session.run(".venv/bin/python", "-m", "mypy", external=True)


@nox.session
def quick(session: nox.Session):
    """What a change most often breaks: two minutes."""
    script(session, "ci/test.sh", "--quick")


@nox.session
def test(session: nox.Session):
    """All tests, or those that are named: nox -s test -- tests/torch -k pieces --ranks 3."""
    script(session, "ci/test.sh")


@nox.session
def demo(session: nox.Session):
    """Trains on Fashion-MNIST by float32 and by votes."""
    script(session, "ci/demo.sh")


@nox.session
def docs(session: nox.Session):
    """The documentation's site, in build/site: nox -s docs -- serve."""
    script(session, "ci/docs.sh")


@nox.session
def sanitize(session: nox.Session):
    """The kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""
    script(session, "ci/sanitize.sh")


@nox.session
def mutants(session: nox.Session):
    """Whether tests notice small mistakes: nox -s mutants -- torch/momenta."""
    script(session, "ci/mutants.sh")


@nox.session
def mpich(session: nox.Session):
    """majority_vote under MPICH."""
    script(session, "ci/mpich.sh")


@nox.session
def soak(session: nox.Session):
    """A long training with random faults: nox -s soak -- 2000."""
    script(session, "ci/soak.sh")


@nox.session
def slow(session: nox.Session):
    """All that takes too long for every change: before a release."""
    script(session, "ci/slow.sh")


@nox.session
def wheels(session: nox.Session):
    """The source distribution and the wheel, into dist/: nox -s wheels -- --try."""
    script(session, "ci/packages.sh")
