#!/usr/bin/env python3
"""Runs the skill: run_skill.py session_manager <function> ['<json object>' | -]. See --help."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))


def fail(message, code):
    """Prints the one JSON document that every failure owes its caller."""
    import json

    print(json.dumps({"error": message, "code": code}))
    return 70


def run():
    if sys.version_info < (3, 11):
        return fail("Python 3.11 or newer is needed; this is %d.%d" % sys.version_info[:2], "python_too_old")
    try:
        from session_manager.faces.runner import main
    except ImportError as error:
        name = (error.name or "").partition(".")[0]
        what = f"the Python package {name!r} is missing or broken ({error})"
        if name == "session_manager":
            return fail(f"{what}; put the folder session_manager beside run_skill.py", "missing_package")
        return fail(f"{what}; install it: python3 -m pip install {name}", "missing_package")
    except KeyboardInterrupt:
        fail("interrupted", "interrupted")
        return 130
    return main(sys.argv[1:], os.environ)


if __name__ == "__main__":
    sys.exit(run())
