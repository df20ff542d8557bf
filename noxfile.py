"""What can be run, by name: `.venv/bin/nox -l`, `.venv/bin/nox -s lint`; arguments after `--` are passed on.

Each is one of the scripts in ci/, which set up what they need; no environments are made besides theirs.
"""

import nox

nox.options.sessions = ["lint", "quick"]
nox.options.default_venv_backend = "none"

SCRIPTS = {
    "lint": ("ci/test.sh --lint", "Style, formatting and types: seconds."),
    "quick": ("ci/test.sh --quick", "What a change most often breaks: two minutes."),
    "test": ("ci/test.sh", "All tests, or those that are named: nox -s test -- tests/torch -k pieces --ranks 3."),
    "demo": ("ci/demo.sh", "Trains on Fashion-MNIST by float32 and by votes."),
    "docs": ("ci/docs.sh", "The documentation's site, in build/site: nox -s docs -- serve."),
    "sanitize": (
        "ci/sanitize.sh",
        "The kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.",
    ),
    "emulate": ("ci/emulate.sh", "The kernels' tests on an emulated ARM machine, with its wheel from dist/."),
    "mutants": ("ci/mutants.sh", "Whether tests notice small mistakes: nox -s mutants -- torch/momenta."),
    "mpich": ("ci/mpich.sh", "majority_vote under MPICH."),
    "soak": ("ci/soak.sh", "A long training with random faults: nox -s soak -- 2000."),
    "slow": ("ci/slow.sh", "All that takes too long for every change: before a release."),
    "wheels": ("ci/packages.sh", "The source distribution and the wheel, into dist/: nox -s wheels -- --try."),
}


def _session(name: str, command: str, about: str):
    def run(session: nox.Session):
        session.run(*command.split(), *session.posargs, external=True)

    run.__doc__ = about
    nox.session(name=name)(run)


for name, (command, about) in SCRIPTS.items():
    _session(name, command, about)
