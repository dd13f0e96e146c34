#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["msgspec>=0.19,<1", "filelock>=3.16,<5", "httpx>=0.28,<1", "pyjson5>=1.6.9,<3"]
# ///
"""Runs the skill: run_skill.py session_manager <function> ['<json object>' | -]. See --help."""

import os
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, HERE)


def fail(message, code):
    """Prints the one JSON document that every failure owes its caller."""
    import json

    print(json.dumps({"error": message, "code": code}))
    return 70


def use_vendored():
    """Puts the packages of ``skill build --vendor`` in front; returns what to say when they are for another Python."""
    from importlib.machinery import EXTENSION_SUFFIXES

    vendor = os.path.join(HERE, "vendor")
    try:
        with open(os.path.join(vendor, "built-for"), encoding="utf-8") as file:
            built_for = file.read().strip()
    except OSError:
        return ""
    if built_for == EXTENSION_SUFFIXES[0]:
        sys.path.insert(0, vendor)
        return ""
    return f"the packages in {vendor} are for the Python kind {built_for}, and this is {EXTENSION_SUFFIXES[0]}; "


def run():
    if sys.version_info < (3, 11):
        return fail("Python 3.11 or newer is needed; this is %d.%d" % sys.version_info[:2], "python_too_old")
    other = use_vendored()
    try:
        from session_manager.faces.runner import main
    except ImportError as error:
        name = (error.name or "").partition(".")[0]
        what = f"{other}the Python package {name!r} is missing or broken ({error})"
        if name == "session_manager":
            return fail(f"{what}; put the folder session_manager beside run_skill.py", "missing_package")
        return fail(f"{what}; install it: python3 -m pip install {name}", "missing_package")
    except KeyboardInterrupt:
        fail("interrupted", "interrupted")
        return 130
    return main(sys.argv[1:], os.environ)


if __name__ == "__main__":
    sys.exit(run())
