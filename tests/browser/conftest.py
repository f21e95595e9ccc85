"""Without playwright, which `make test-browser` installs, these tests are not collected."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("playwright") else ["test_*.py"]
