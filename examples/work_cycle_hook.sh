#!/bin/sh
# A work_cycle hook: removes what has been idle for an hour, in both layers.
# Prints the skill's document; its exit code is the skill's. SKILL_RUNNER says where run_skill.py is.
set -eu
exec python3 "${SKILL_RUNNER:-/app/skills/run_skill.py}" session_manager prune_sessions '{"max_age_minutes": 60}'
