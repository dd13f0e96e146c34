#!/bin/sh
# Installs what the system tests need, where apt is there and may.
set -eu
missing=""
command -v node >/dev/null 2>&1 || missing="$missing nodejs"
[ -z "$missing" ] && exit 0
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
	apt-get update -qq
	# shellcheck disable=SC2086
	apt-get install -y -qq --no-install-recommends $missing
else
	echo "make test-system needs:$missing" >&2
	exit 1
fi
