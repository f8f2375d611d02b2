"""The targets of L{fuzz} without atheris: their corpus, and inputs that Hypothesis makes from it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

import fuzz
from fuzz.__main__ import NAMES, main, parse
from fuzz.corpus import CORPUS, seeds
from fuzz.cuts import chunkings, sameInPieces
from fuzz.targets import TARGETS
from tests.examples import EXAMPLES

ROOT = Path(fuzz.__file__).parent.parent

MOST_SEEDS, LARGEST_SEED = 48, 4096
"""Files that a target has at most, and bytes of each."""

few = settings(
    max_examples=max(10, min(EXAMPLES, 10_000) // 5),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def mutants(name: str) -> st.SearchStrategy[bytes]:
    """Inputs like those in a corpus: a beginning of one, some bytes, and the end of another."""
    files = st.sampled_from([data for _, data in seeds(name)])
    places = st.integers(0, 200)
    return st.builds(
        lambda one, keep, between, other, skip: one[:keep] + between + other[skip:],
        files,
        places,
        st.binary(max_size=20),
        files,
        places,
    )


class TargetsTests(SynchronousTestCase):
    """Every target."""

    def test_corpus(self) -> None:
        """Each file of the corpus is well: none is a finding, or is one again."""
        for name, target in TARGETS.items():
            for file, data in seeds(name):
                try:
                    target(data)
                except Exception as error:
                    raise AssertionError(f"{name}, {file}: {error!r}") from error

    def test_inputs(self) -> None:
        """Made-up inputs are well, too."""
        for name, target in TARGETS.items():
            few(given(mutants(name))(target))()

    def test_everyTargetHasACorpus(self) -> None:
        """Targets and folders have the same names; a corpus is small."""
        self.assertEqual(sorted(TARGETS), NAMES)
        for name in NAMES:
            files = list(seeds(name))
            self.assertTrue(2 < len(files) <= MOST_SEEDS, name)
            self.assertEqual([file for file, data in files if len(data) > LARGEST_SEED], [], name)


class CutsTests(SynchronousTestCase):
    """L{chunkings}."""

    @settings(max_examples=max(10, EXAMPLES // 10), deadline=None)
    @given(st.binary(max_size=300))
    def test_nothingIsLost(self, data: bytes) -> None:
        """The pieces of each way to cut are the whole."""
        for pieces in chunkings(data):
            self.assertEqual(b"".join(pieces), data)

    def test_difference(self) -> None:
        """A result that depends on the cuts is a finding."""
        self.assertEqual(sameInPieces(b"".join, b"abc"), b"abc")
        self.assertRaises(AssertionError, sameInPieces, len, b"abc")


class CommandTests(SynchronousTestCase):
    """C{python -m fuzz}."""

    def run_(self, *words: str) -> tuple[int, str]:
        with redirect_stdout(StringIO()) as out:
            return main(words), out.getvalue()

    def test_list(self) -> None:
        """The list names each target, and says what it checks."""
        status, text = self.run_("--list")
        self.assertEqual(status, 0)
        self.assertEqual([line.split()[0] for line in text.splitlines()], NAMES)
        self.assertTrue(all(len(line.split()) > 3 for line in text.splitlines()))

    def test_file(self) -> None:
        """A file is fed once, without atheris."""
        status, text = self.run_("frames", str(CORPUS / "frames" / "hello"))
        self.assertEqual(status, 0)
        self.assertIn("is well", text)

    def test_finding(self) -> None:
        """What a target finds in a file is raised."""
        self.patch(sys.modules["fuzz.targets"], "TARGETS", {"frames": self.fail})
        self.assertRaises(self.failureException, self.run_, "frames", str(CORPUS / "frames" / "hello"))

    def test_unknown(self) -> None:
        """A target that is not there is refused, and so is no target at all."""
        for words in (["nonsense"], []):
            with redirect_stderr(StringIO()):
                self.assertRaises(SystemExit, parse, words)

    def test_withoutAtheris(self) -> None:
        """Without atheris the command says what to install."""
        self.patch(sys.modules["fuzz.__main__"], "find_spec", lambda name: None)
        with redirect_stderr(StringIO()) as error:
            self.assertEqual(main(["frames"]), 2)
        self.assertIn("pip install '.[fuzz]'", error.getvalue())

    def test_targetsNeedNoAtheris(self) -> None:
        """The targets are imported without atheris."""
        code = "import sys, fuzz.targets; sys.exit('atheris' in sys.modules)"
        self.assertEqual(subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode, 0)
