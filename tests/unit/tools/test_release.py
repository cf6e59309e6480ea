"""A release is refused where changelog, version and tag do not say the same."""

import pytest

from samkit.errors import SamkitError
from tools.release import check_changelog, check_tags

DATED = "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-12-01\n\n- A thing.\n\n## [0.1.0] - 2026-11-28\n"


def test_a_changelog_with_a_dated_newest_version_is_taken():
    check_changelog(DATED, "0.2.0")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (DATED.replace("[Unreleased]\n", "[Unreleased]\n\n- More.\n"), "has unreleased changes"),
        (DATED.replace("0.2.0", "0.3.0"), "newest version is 0.3.0, samkit is 0.2.0"),
        (DATED.replace(" - 2026-12-01", ""), "has no date"),
        (DATED.replace("2026-12-01", "soon"), "has no date"),
        ("# Changelog\n", r"has no version; write '## \[0\.2\.0\]"),
    ],
)
def test_a_changelog_that_says_something_else_is_refused(text, said):
    with pytest.raises(SamkitError, match=said):
        check_changelog(text, "0.2.0")


def test_the_commit_needs_the_tag_of_the_version():
    check_tags(["v0.2.0", "seen"], "0.2.0")
    with pytest.raises(SamkitError, match=r"tags none, needed is v0\.2\.0; run git tag -a v0\.2\.0"):
        check_tags([], "0.2.0")
