#!/bin/sh
# Installs what the system tests need, where apt is there and may.
set -eu
missing=""
command -v node >/dev/null 2>&1 || missing="$missing nodejs"
command -v npm >/dev/null 2>&1 || missing="$missing npm"
PATH="$PATH:/usr/sbin" command -v pgbouncer >/dev/null 2>&1 || missing="$missing pgbouncer"
PATH="$PATH:/usr/sbin" command -v mkfs.exfat >/dev/null 2>&1 || missing="$missing exfatprogs"
PATH="$PATH:/usr/sbin" command -v mount.exfat-fuse >/dev/null 2>&1 || missing="$missing exfat-fuse"
command -v chromium >/dev/null 2>&1 || missing="$missing chromium"
[ -x /usr/lib/postgresql/15/bin/postgres ] || missing="$missing postgresql-15"
[ -z "$missing" ] && exit 0
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
	apt-get update -qq
	# A release of Debian has one version of PostgreSQL; without this one the tests that need it say so.
	apt-cache show postgresql-15 >/dev/null 2>&1 || missing=$(echo "$missing" | sed 's/ postgresql-15//')
	[ -z "$missing" ] && exit 0
	# The tests bring their own data; Debian's package would make a cluster and start it.
	no_cluster=/etc/postgresql-common/createcluster.d/session-manager-tests.conf
	mkdir -p "${no_cluster%/*}"
	trap 'rm -f "$no_cluster"' EXIT
	echo 'create_main_cluster = false' >"$no_cluster"
	# shellcheck disable=SC2086
	apt-get install -y -qq --no-install-recommends $missing
else
	echo "make test-system needs:$missing" >&2
	exit 1
fi
