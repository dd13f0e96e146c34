#!/bin/sh
# The step after a delegation: removes the finished sub-agent's session, whose id is the one argument.
# Prints the skill's document; its exit code is the skill's. SKILL_RUNNER says where run_skill.py is.
set -eu
[ $# -eq 1 ] || { echo "usage: post_delegation_hook.sh <session id>" >&2; exit 2; }
# The id comes from a language model: made JSON by a program, it cannot bring arguments of its own.
arguments=$(python3 -c 'import json, sys; print(json.dumps({"session_id": sys.argv[1]}))' "$1")
exec python3 "${SKILL_RUNNER:-/app/skills/run_skill.py}" session_manager cleanup_after_delegation "$arguments"
